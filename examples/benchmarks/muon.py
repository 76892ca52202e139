"""Time Optax's five Newton-Schulz steps, ours, and the exact factor on a transformer's kernels.

    PYTHONPATH=examples python -m benchmarks.muon             # minutes on two cores
    PYTHONPATH=examples python -m benchmarks.muon --models 4x128 --rounds 3

A model `4x128` has 4 layers of width 128. Its kernels are stacks of 4: query, key and value fused
(128x384), o (128x128), up (128x512) and down (512x128). One update of all of them is timed, from
gradients to factors, without momentum, scale and learning rate. Rounds go over all rows in random
order, as in `benchmarks.factors`. The five steps are also mapped over each stack by itself, in the
ways from which `polar/_stacks.py` chooses. Tracing and compilation are timed as often as there are
`compilations`, the rows in turn, each from nothing.
"""

import dataclasses
import functools
import math
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import tyro
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks import records
from benchmarks.factors import turn
from egd_optax import MatrixAxes, polar, scale_by_egd

KERNELS = {"query_key_value": (1, 3), "o": (1, 1), "up": (1, 4), "down": (4, 1)}


@dataclasses.dataclass(frozen=True)
class Muon:
    """Time one update of a transformer's kernels.

    Args:
        models: layers and width, such as 4x128.
        only: rows to time, such as exact; none means all.
        rounds: rounds over all rows; the median over all calls counts.
        calls: timed calls of a row in a round.
        compilations: how often each row is traced and compiled; the medians count.
        pause: seconds before each row's turn, for the threads of the one before to fall asleep.
        warm: seconds of untimed calls before the timed ones.
        out: JSONL log to write, numbered where it exists.
    """

    models: tuple[str, ...] = ("4x128", "4x256", "4x512")
    only: tuple[str, ...] = ()
    rounds: int = 9
    calls: int = 3
    compilations: int = 3
    pause: float = 0.05
    warm: float = 0.1
    out: Path = Path("runs/benchmark/muon.jsonl")

    def __post_init__(self) -> None:
        for model in self.models:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", model):
                raise ValueError(f"a model is written as 4x128, got {model!r}.")
        for name in ("rounds", "calls", "compilations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.models or self.pause < 0 or self.warm < 0:
            raise ValueError("models: at least one; pause and warm: at least 0 s.")
        if unknown := {*self.only} - {*optimizers()}:
            raise ValueError(f"only: some of {[*optimizers()]}, got {[*unknown]}.")


def gradients(layers: int, width: int) -> dict[str, jax.Array]:
    """Return random kernels, each (layers, rows, columns)."""
    draw = np.random.default_rng(0).standard_normal
    shapes = {name: (layers, m * width, n * width) for name, (m, n) in KERNELS.items()}
    return {name: jnp.asarray(draw(shape), jnp.float32) for name, shape in shapes.items()}


def optimizers() -> dict[str, optax.GradientTransformation]:
    """Return the transformations to time, by name; each whitens the last two axes."""
    numbers, axes = optax.contrib.MuonDimensionNumbers(-2, -1), MatrixAxes(-2, -1)
    of_optax = optax.contrib.scale_by_muon(
        beta=0.0,  # the average is the gradient
        nesterov=False,
        weight_dimension_numbers=functools.partial(jax.tree.map, lambda _: numbers),
    )
    five = polar.NewtonSchulz("standard", steps=5)
    mappings = {
        "one by one": lambda stack: jax.lax.map(five.factor, stack),
        "four side by side": lambda stack: _side_by_side(five.factor, stack, 4),
        "batches of two": lambda stack: jax.lax.map(five.factor, stack, batch_size=2),
        "one batch": jax.vmap(five.factor),
    }
    return {
        "peer: optax muon": of_optax,
        "five steps": scale_by_egd(five, axes=axes),
        "three steps": scale_by_egd(polar.NewtonSchulz("three_steps"), axes=axes),
        "exact": scale_by_egd(polar.Auto(), axes=axes),
    } | {f"five steps, {name}": _mapped(function) for name, function in mappings.items()}


def _mapped(function: Callable) -> optax.GradientTransformation:
    return optax.stateless(lambda tree, _: jax.tree.map(function, tree))


def _side_by_side(function: Callable, stack: jax.Array, count: int) -> jax.Array:
    return jax.lax.scan(lambda _, x: (None, function(x)), None, stack, unroll=count)[1]


@dataclasses.dataclass
class Row:
    """An optimizer's update of the gradients: its compiled call, and what was measured of it."""

    name: str
    optimizer: optax.GradientTransformation
    tree: dict[str, jax.Array]
    run: Callable = lambda: None
    tracing: list[float] = dataclasses.field(default_factory=list)
    compiling: list[float] = dataclasses.field(default_factory=list)
    times: list[float] = dataclasses.field(default_factory=list)

    def compile(self) -> None:
        """Trace and compile once more, from nothing."""
        jax.clear_caches()
        state = jax.block_until_ready(self.optimizer.init(self.tree))
        start = time.perf_counter()
        update = jax.jit(lambda tree, state: self.optimizer.update(tree, state)[0])
        lowered = update.lower(self.tree, state)
        middle = time.perf_counter()
        executable = lowered.compile()
        self.compiling.append(time.perf_counter() - middle)
        self.tracing.append(middle - start)
        self.run = lambda: jax.block_until_ready(executable(self.tree, state))

    def gains(self) -> tuple[float, float]:
        """Return the least and the largest singular value of all factors."""
        least, largest = math.inf, 0.0
        for stack in jax.tree.leaves(self.run()):
            for matrix in np.asarray(stack, np.float64):
                wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
                gains = np.sqrt(np.linalg.eigvalsh(wide @ wide.T))
                least, largest = min(least, gains[0]), max(largest, gains[-1])
        return float(least), float(largest)

    def record(self, model: str) -> dict:
        """Return the log's line."""
        return {
            "kind": "measurement",
            "model": model,
            "row": self.name,
            "seconds": statistics.median(self.times),
            "quartiles": np.quantile(self.times, (0.25, 0.75)).tolist(),
            "trace_seconds": statistics.median(self.tracing),
            "compile_seconds": statistics.median(self.compiling),
            "gains": self.gains(),
        }


def measure(config: Muon, model: str) -> list[dict]:
    """Return a record for each row."""
    tree = gradients(*map(int, model.split("x")))
    chosen = config.only or tuple(optimizers())
    rows = [Row(name, optimizers()[name], tree) for name in chosen]
    order = np.random.default_rng(0)  # who comes after whom matters
    for _ in tqdm(range(config.compilations), desc=f"{model}, compile", leave=False):
        for index in order.permutation(len(rows)):
            rows[index].compile()
    for _ in tqdm(range(config.rounds), desc=f"{model}, rounds", leave=False):
        for index in order.permutation(len(rows)):
            rows[index].times += turn(config, rows[index].run)[1]
    return [row.record(model) for row in rows]


def table(found: list[dict]) -> Table:
    """Return the measurements of one model as a table; the first row is the peer."""
    result = Table(title=found[0]["model"], box=None)
    for heading in ("row", "ms", "quartiles", "times faster", "trace, s", "compile, s", "gains"):
        result.add_column(heading)
    for record in found:
        result.add_row(
            record["row"],
            f"{1000 * record['seconds']:.3g}",
            " to ".join(f"{1000 * quartile:.3g}" for quartile in record["quartiles"]),
            f"{found[0]['seconds'] / record['seconds']:.2f}",
            f"{record['trace_seconds']:.2f}",
            f"{record['compile_seconds']:.2f}",
            " to ".join(f"{gain:.3f}" for gain in record["gains"]),
        )
    return result


def main(config: Muon) -> None:
    """Run, print and log."""
    out, lines = records.begin(config)
    for model in config.models:
        found = measure(config, model)
        lines += found
        records.write(out, lines)
        Console(width=max(Console().width, 100)).print(table(found))
    print(f"written: {out}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Muon))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
