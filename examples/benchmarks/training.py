"""What whitening costs within training: epochs of the paper's network, the rows in turn.

    PYTHONPATH=examples python -m benchmarks.training         # about 4 minutes on two cores

An epoch without whitening, with the SVD and with `Halley`, each also with `spectrum_monitor`; BLAS
with as many threads as it takes by itself, and with one.
"""

import contextlib
import dataclasses
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from common.environment import one_blas_thread
from flax import nnx
from tqdm import tqdm

from benchmarks import records
from egd_optax import diagnostics, matching, polar, scale_by_egd
from egd_optax.models import TwoLayerMLP

LEARNING_RATE, WEIGHT_DECAY = 0.7, 1e-4


class State(NamedTuple):
    """Parameters, the optimizer's state, and the key of the next epoch's order."""

    params: Any
    optimizer: Any
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Addition:
    """Addition modulo `p` of two one-hot numbers by a two-layer network.

    Args:
        p: modulus; half of the p^2 sums are for training, the others for the test.
        width: hidden units; the first matrix is 2p x width.
        batch_size: examples of a step; an epoch's last partial batch is dropped.
    """

    p: int = 97
    width: int = 512
    batch_size: int = 512

    @property
    def train_size(self) -> int:
        return self.p**2 // 2

    def data(self) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        """Return inputs and labels for training, and those for the test."""
        left, right = jnp.divmod(jax.random.permutation(jax.random.key(0), self.p**2), self.p)
        one_hots = [jax.nn.one_hot(number, self.p, dtype=jnp.float32) for number in (left, right)]
        inputs, labels = jnp.concatenate(one_hots, axis=1), (left + right) % self.p
        cut = self.train_size
        return (inputs[:cut], labels[:cut]), (inputs[cut:], labels[cut:])

    def network(self) -> tuple[nnx.GraphDef, dict]:
        """Return the network and its initial parameters."""
        model = TwoLayerMLP(2 * self.p, self.width, self.p, rngs=nnx.Rngs(1))
        graph, variables = nnx.split(model, nnx.Param)
        return graph, nnx.to_pure_dict(variables)


def loss(graph: nnx.GraphDef, params: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy."""
    logits = nnx.merge(graph, params)(inputs)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def sgd(change: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return gradient descent with coupled decay, with the first matrix's gradient changed."""
    return optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY),
        optax.masked(change, matching("hidden/kernel")),
        optax.scale_by_learning_rate(LEARNING_RATE),
    )


def start(task: Addition, optimizer: optax.GradientTransformation) -> State:
    """Return the state before the first epoch."""
    params = task.network()[1]
    return State(params, optimizer.init(params), jax.random.key(2))


def epoch(
    task: Addition, optimizer: optax.GradientTransformation, state: State, data: tuple
) -> tuple:
    """Train on every full batch once; return the next state and the losses of both sets."""
    graph, _ = task.network()
    train, test = data
    order, key = jax.random.split(state.key)
    batches = task.train_size // task.batch_size
    chosen = jax.random.permutation(key, task.train_size)[: batches * task.batch_size]
    chosen = chosen.reshape(batches, task.batch_size)

    def step(carry, rows):
        params, optimizer_state = carry
        gradients = jax.grad(lambda params: loss(graph, params, train[0][rows], train[1][rows]))(
            params
        )
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), None

    (params, optimizer_state), _ = jax.lax.scan(step, state[:2], chosen)
    losses = [loss(graph, params, *examples) for examples in (train, test)]
    return State(params, optimizer_state, order), losses


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
            task = Addition(prime)
            if task.train_size < task.batch_size:
                raise ValueError(
                    f"primes: {prime} gives {task.train_size} training examples, fewer than a "
                    f"batch of {task.batch_size}; take 33 or more."
                )


def rows(training: Training, prime: int) -> dict[str, Callable[[], float]]:
    """Return functions that train for an epoch and return its seconds, by name."""
    task = Addition(prime)
    monitor = diagnostics.spectrum_monitor(training.every)
    found = {"no whitening": epochs(task, sgd(optax.identity()))}
    for name, method in (("SVD", polar.SVD()), ("Halley", polar.Halley())):
        optimizer = sgd(scale_by_egd(method))
        found[name] = epochs(task, optimizer)
        found[f"{name}, monitor"] = epochs(task, optax.chain(monitor, optimizer))
    return found


def epochs(task: Addition, optimizer: optax.GradientTransformation) -> Callable[[], float]:
    """Return a function that trains for one more epoch and returns its seconds."""
    held, data = [start(task, optimizer)], task.data()
    step = jax.jit(functools.partial(epoch, task, optimizer)).lower(held[0], data).compile()

    def run() -> float:
        started = time.perf_counter()
        held[0], _ = jax.block_until_ready(step(held[0], data))
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
