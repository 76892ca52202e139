"""What whitening costs within training: epochs of the paper's network, the rows in turn.

    python examples/benchmarks/training.py                     # about 4 minutes on two cores

An epoch without whitening, with the SVD and with `Halley`, each also with `spectrum_monitor`; BLAS
with as many threads as it takes by itself, and with one.
"""

import contextlib
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import optax
import records
import tyro
from tqdm import tqdm

from egd_optax import diagnostics
from egd_optax.grokking import RECIPES
from egd_optax.grokking.session import one_blas_thread
from egd_optax.grokking.train import prepare

PAPER = RECIPES["addition-97"]
THREADS = {"default": contextlib.nullcontext, "one": one_blas_thread}


@dataclasses.dataclass(frozen=True)
class Training:
    """Time epochs of addition modulo p with and without whitening and the monitor.

    Args:
        primes: moduli of the paper's recipe, from 33 on; the whitened matrix is 2p x 512.
        every: updates from one measurement of the monitor to the next.
        rounds: rounds over all rows; the median over their epochs counts.
        epochs: timed epochs of a row in a round, after an untimed one.
        out: JSONL log to write, numbered where it exists.
    """

    primes: tuple[int, ...] = (97, 127)
    every: int = 10
    rounds: int = 12
    epochs: int = 2
    out: Path = Path("runs/benchmark/training.jsonl")

    def __post_init__(self) -> None:
        for name in ("every", "rounds", "epochs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")
        if not self.primes:
            raise ValueError("primes: at least one modulus, such as 97.")
        for prime in self.primes:
            examples = int(PAPER.task.train_fraction * prime**2)
            if examples < PAPER.batch_size:
                raise ValueError(
                    f"primes: {prime} gives {examples} training examples, fewer than a batch of "
                    f"{PAPER.batch_size}; take 33 or more."
                )


def rows(training: Training, prime: int) -> dict[str, Callable[[], float]]:
    """Return functions that train for an epoch and return its seconds, by name."""
    task = dataclasses.replace(PAPER.task, p=prime)
    recipe = dataclasses.replace(PAPER, task=task, switch_off=None)
    found = {"no whitening": epochs(dataclasses.replace(recipe, gradient="raw"))}
    for name, method in (("SVD", "svd"), ("Gram", "gram")):
        config = dataclasses.replace(recipe, method=method)
        found[name] = epochs(config)
        found[f"{name}, monitor"] = epochs(config, training.every)
    return found


def epochs(config, every: int | None = None) -> Callable[[], float]:
    """Return a function that runs one more epoch of `config`, monitored or not."""
    state, split, run_epoch = prepare(config)
    if every is not None:
        monitor = diagnostics.spectrum_monitor(every)
        optimizer = optax.with_extra_args_support(optax.chain(monitor, run_epoch.optimizer))
        run_epoch = dataclasses.replace(run_epoch, optimizer=optimizer)
        state = state._replace(optimizer=optimizer.init(state.params))
    compiled = jax.jit(run_epoch).lower(state, split).compile()
    held = [state]

    def run() -> float:
        start = time.perf_counter()
        held[0], _ = jax.block_until_ready(compiled(held[0], split))
        return time.perf_counter() - start

    return run


def measure(training: Training, prime: int, threads: str) -> list[dict]:
    """Return a record for each row."""
    found = rows(training, prime)  # compiles
    times: dict[str, list[float]] = {name: [] for name in found}
    with THREADS[threads]():
        for _ in tqdm(range(training.rounds), desc="rounds", leave=False):
            for name, run in found.items():
                run()
                times[name] += [run() for _ in range(training.epochs)]
    return [
        {
            "kind": "measurement",
            "prime": prime,
            "blas_threads": threads,
            "row": name,
            "seconds": statistics.median(seconds),
            "quartiles": np.quantile(seconds, (0.25, 0.75)).tolist(),
        }
        for name, seconds in times.items()
    ]


def main(training: Training) -> None:
    """Run, print and log."""
    out, lines = records.begin(training)
    for threads in THREADS:
        for prime in training.primes:
            print(f"p = {prime}, BLAS threads: {threads}")
            found = measure(training, prime, threads)
            lines += found
            records.write(out, lines)
            for record in found:
                print(f"{record['row']:16} {1000 * record['seconds']:7.1f} ms an epoch")
    print(f"written: {out}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Training))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
