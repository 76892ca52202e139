"""Measure whitening at the scale of real models: steps, devices, accelerators.

    PYTHONPATH=examples python -m benchmarks.scale            # about 20 minutes on two cores
    PYTHONPATH=examples python -m benchmarks.scale --parts models --models 4x128

Five parts. `models`: one optimizer step of each model, all optimizers in turn in one process; a
model that is too large is compiled alone, from shapes. `depths`: what more layers add to tracing
and compiling, few and many layers in turn. `counts`: FLOPs of a factor, from the
programs that JAX lowers for CUDA; nothing is compiled. `devices`: products and received bytes on 1
to 8 forced CPU devices, from the compiled programs; nothing is run. `accelerator`: achieved FLOP/s
of single factors; a GPU or TPU by default, and CPUs where the part is named.

The log is written after every row. `benchmarks.scale_tables` makes docs/scale.md from it.
"""

import dataclasses
import re
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from benchmarks import records, scale_accelerator, scale_models, scale_paper
from benchmarks.scale_timing import Row, lines_of, product, rounded, take_turns

Part = Literal["models", "depths", "counts", "devices", "accelerator"]


@dataclasses.dataclass(frozen=True)
class Scale:
    """Measure whitening at the scale of real models.

    Args:
        parts: of the measurements; empty for those that suit this backend.
        models: to run: names of benchmarks.scale_models, or 4x128 for 4 layers of width 128.
        compiled: models to compile from shapes, each optimizer in a process of its own.
        depths: models of one width that are traced and compiled in turn.
        rounds: turns of the depths.
        compile_limit: seconds after which such a process is ended.
        compilations: how often a row that is run is traced and compiled; the medians count.
        calls: most timed calls of a row; the median counts.
        budget: seconds for a row's calls, after which it gets no more; the first call always runs.
        stacks: for the devices: 24x256x1024, or a model.
        devices: how many of them.
        shapes: for the accelerator: 4096x4096, or 24x768x3072 for a stack.
        dtypes: for the accelerator.
        note: for the page, such as what else ran on the machine.
        out: JSONL log to write, numbered where it exists.
    """

    parts: tuple[Part, ...] = ()
    models: tuple[str, ...] = (
        "4x128",
        "4x256",
        "12x256",
        "24x256",
        "48x256",
        "vit-s16",
        "resnet-50",
        "gpt2-small",
    )
    compiled: tuple[str, ...] = ("llama-7b-layer", "llama-7b")
    compile_limit: float = 240
    depths: tuple[str, ...] = ("12x256", "48x256")
    rounds: int = 7
    compilations: int = 3
    calls: int = 9
    budget: float = 15
    stacks: tuple[str, ...] = ("24x256x1024", "gpt2-small")
    devices: tuple[Literal[1, 2, 4, 8], ...] = (1, 2, 4, 8)
    shapes: tuple[str, ...] = (
        "1024x1024",
        "2048x2048",
        "4096x4096",
        "8192x8192",
        "1024x4096",
        "2048x8192",
        "24x768x3072",
    )
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32", "bfloat16")
    note: str = ""
    out: Path = Path("runs/benchmark/scale.jsonl")

    def __post_init__(self) -> None:
        for model in (*self.models, *self.compiled, *self.depths):
            scale_models.shapes(model)
        for stack in self.stacks:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*", stack):
                scale_models.shapes(stack)
        for shape in self.shapes:
            if not re.fullmatch(r"([1-9]\d*x)?[1-9]\d*x[1-9]\d*", shape):
                raise ValueError(f"a shape is 4096x4096, or 24x768x3072, got {shape!r}.")
        if min(self.compilations, self.calls, self.rounds) < 1:
            given = f"{self.compilations}, {self.calls} and {self.rounds}"
            raise ValueError(f"compilations, calls and rounds must be at least 1, got {given}.")
        if self.budget < 0 or self.compile_limit <= 0:
            raise ValueError("budget must be at least 0 s, and compile_limit more than 0 s.")

    def chosen(self) -> tuple[Part, ...]:
        """Return the parts to run."""
        cpu = jax.default_backend() == "cpu"
        return self.parts or (
            ("counts", "models", "depths", "devices") if cpu else ("models", "accelerator")
        )


def random(shape: tuple[int, ...], seed: int) -> jax.Array:
    draw = np.random.default_rng(seed).standard_normal
    return jnp.asarray(draw(shape, dtype=np.float32))


@dataclasses.dataclass
class Update:
    """One optimizer's update of a model: what tracing and compiling it took, each time."""

    name: str
    optimizer: optax.GradientTransformation
    gradients: dict[str, jax.Array]
    tracing: list[float] = dataclasses.field(default_factory=list)
    compiling: list[float] = dataclasses.field(default_factory=list)

    def compile(self) -> None:
        """Trace and compile once more, from nothing."""
        jax.clear_caches()
        kernels = {path: leaf.shape for path, leaf in self.gradients.items()}
        start = time.perf_counter()
        lowered = scale_models.lower(self.optimizer, kernels)
        traced = time.perf_counter()
        self.executable = lowered.compile()
        self.tracing.append(traced - start)
        self.compiling.append(time.perf_counter() - traced)

    def row(self) -> Row:
        """Return the compiled update as a row to time."""
        state = jax.block_until_ready(jax.jit(self.optimizer.init)(self.gradients))

        def run() -> None:
            nonlocal state
            updates, state = jax.block_until_ready(
                self.executable(self.gradients, state, self.gradients)
            )
            del updates

        return Row(self.name, run)

    def record(self) -> dict:
        """Return what was measured before the first call."""
        return {
            "trace_seconds": statistics.median(self.tracing),
            "compile_seconds": statistics.median(self.compiling),
            "compilations": len(self.compiling),
            "temporary": scale_models.temporary(self.executable),
        }


def unit(sides: list[tuple[int, int]], config: Scale) -> tuple[float, float]:
    """Return seconds and FLOPs of one product for each matrix of a model."""
    rows = {one: product(one) for one in dict.fromkeys(sides)}
    take_turns([*rows.values()], config.budget, config.calls, "products")
    seconds = {one: row.record()["seconds"] for one, row in rows.items()}
    return sum(seconds[one] for one in sides), sum(2.0 * m * m * n for m, n in sides)


def steps(config: Scale, model: str) -> Iterator[dict]:
    """Yield a record for each optimizer on a model that is run."""
    kernels = scale_models.shapes(model)
    gradients = {path: random(shape, i) for i, (path, shape) in enumerate(kernels.items())}
    optimizers = scale_models.optimizers(kernels).items()
    updates = [Update(name, optimizer, gradients) for name, optimizer in optimizers]
    for update in tqdm(updates * config.compilations, desc=f"{model}, compile", leave=False):
        update.compile()
    rows = [update.row() for update in updates]
    take_turns(rows, config.budget, config.calls, model)
    sides = [scale_models.matrix(shape) for shape in kernels.values()]
    seconds, flops = unit(sides, config)
    for update, row in zip(updates, rows, strict=True):
        measured = row.record()
        yield {
            **head(model, row.name, kernels),
            "run": True,
            **update.record(),
            **measured,
            "products": measured["seconds"] / seconds,
            "product_seconds": seconds,
            "product_rate": flops / seconds,
        }


def shapes_alone(config: Scale, model: str) -> Iterator[dict]:
    """Yield a record for each optimizer on a model that is compiled and not run."""
    kernels = scale_models.shapes(model)
    for name in tqdm(scale_models.optimizers(kernels), desc=f"{model}, compile", leave=False):
        found: dict = {"trace_seconds": None, "compile_seconds": None, "temporary": None}
        try:
            for line in lines_of(
                "benchmarks.scale_models", model, name, limit=config.compile_limit
            ):
                found |= line
            if found["compile_seconds"] is None:
                found["stopped_after"] = config.compile_limit
        except OSError as error:  # the others are still of interest
            found["failed"] = str(error)
        yield {**head(model, name, kernels), "run": False, **found}


def head(model: str, row: str, kernels: scale_models.Shapes) -> dict:
    entries = sum(int(np.prod(shape)) for shape in kernels.values())
    return {
        "kind": "model",
        "model": model,
        "row": row,
        "leaves": len(kernels),
        "parameters": entries,
    }


def depths(config: Scale) -> Iterator[dict]:
    """Yield a record for each optimizer and depth: the seconds until it is ready, in each round.

    All optimizers and depths take turns, in random order; the round before the first warms up.
    """
    kernels = {model: scale_models.shapes(model) for model in config.depths}
    found: dict[tuple[str, str], list[float]] = {
        (model, name): [] for model in kernels for name in scale_models.optimizers(kernels[model])
    }
    order = np.random.default_rng(0)
    for turn in tqdm(range(config.rounds + 1), desc="depths", leave=False):
        for place in order.permutation(len(found)):
            model, name = [*found][place]
            optimizer = scale_models.optimizers(kernels[model])[name]
            jax.clear_caches()
            start = time.perf_counter()
            scale_models.lower(optimizer, kernels[model]).compile()
            if turn:
                found[model, name].append(time.perf_counter() - start)
    for (model, name), seconds in found.items():
        yield {"kind": "depth", "model": model, "row": name, "ready_seconds": seconds}


def counts(config: Scale) -> Iterator[dict]:
    yield from map(scale_paper.count, scale_paper.METHODS)


def models(config: Scale) -> Iterator[dict]:
    for model in config.models:
        yield from steps(config, model)
    for model in config.compiled:
        yield from shapes_alone(config, model)


def devices(config: Scale) -> Iterator[dict]:
    arguments = (*config.stacks, "--devices", *map(str, config.devices))
    programs = lines_of("benchmarks.scale_devices", *arguments, devices=8)
    yield from tqdm(programs, desc="devices", unit=" programs", leave=False)


def accelerator(config: Scale) -> Iterator[dict]:
    for shape in config.shapes:
        for dtype in config.dtypes:
            yield from scale_accelerator.measure(shape, dtype, config.budget, config.calls)


PARTS = {
    "counts": counts,
    "models": models,
    "depths": depths,
    "devices": devices,
    "accelerator": accelerator,
}
COLUMNS = {
    "model": ("model", "row", "trace_seconds", "compile_seconds", "seconds", "calls", "products"),
    "depth": ("model", "row", "ready_seconds"),
    "count": ("row", "m", "long", "short"),
    "devices": ("stack", "devices", "layout", "row", "product_flops", "received"),
    "accelerator": ("shape", "dtype", "row", "seconds", "calls", "teraflops"),
}


def table(lines: list[dict]) -> Table:
    """Return records of one kind as a table."""
    kind = lines[0]["kind"]
    result = Table(title=kind, box=None)
    for column in COLUMNS[kind]:
        result.add_column(column)
    for line in lines:
        cells = (line.get(column) for column in COLUMNS[kind])
        result.add_row(*("" if cell is None else f"{cell}" for cell in cells))
    return result


def main(config: Scale) -> None:
    """Run, log and print."""
    out, lines = records.begin(config)
    torch = scale_accelerator.torch
    lines[0]["versions"] |= {"torch": torch.__version__} if torch else {}
    try:
        for record in (one for part in config.chosen() for one in PARTS[part](config)):
            lines.append(rounded(record))
            records.write(out, lines)
    finally:
        console = Console(width=max(Console().width, 100))
        for kind in dict.fromkeys(line["kind"] for line in lines[1:]):
            console.print(table([line for line in lines if line["kind"] == kind]))
        print(f"written: {out}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Scale))
    except KeyboardInterrupt:
        sys.exit("interrupted: the log holds what was measured")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
