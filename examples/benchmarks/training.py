"""What whitening costs within training: epochs of the paper's network, the rows in turn.

    PYTHONPATH=examples python -m benchmarks.training         # about 4 minutes on two cores

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
import tyro
from tqdm import tqdm

from benchmarks import modular, records
from egd_optax import diagnostics, polar, scale_by_egd

THREADS = {"default": contextlib.nullcontext, "one": records.one_blas_thread}


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
            task = modular.Addition(prime)
            if task.train_size < task.batch_size:
                raise ValueError(
                    f"primes: {prime} gives {task.train_size} training examples, fewer than a "
                    f"batch of {task.batch_size}; take 33 or more."
                )


def rows(training: Training, prime: int) -> dict[str, Callable[[], float]]:
    """Return functions that train for an epoch and return its seconds, by name."""
    task = modular.Addition(prime)
    monitor = diagnostics.spectrum_monitor(training.every)
    found = {"no whitening": epochs(task, modular.sgd(optax.identity()))}
    for name, method in (("SVD", polar.SVD()), ("Halley", polar.Halley())):
        optimizer = modular.sgd(scale_by_egd(method))
        found[name] = epochs(task, optimizer)
        found[f"{name}, monitor"] = epochs(task, optax.chain(monitor, optimizer))
    return found


def epochs(task: modular.Addition, optimizer: optax.GradientTransformation) -> Callable[[], float]:
    """Return a function that trains for one more epoch and returns its seconds."""
    held = [modular.start(task, optimizer)]
    step = jax.jit(lambda state: modular.epoch(task, optimizer, state)).lower(held[0]).compile()

    def run() -> float:
        started = time.perf_counter()
        held[0], _ = jax.block_until_ready(step(held[0]))
        return time.perf_counter() - started

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
