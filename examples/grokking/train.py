"""Training of one Config: one compiled call a measurement, equal data and batches for all."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from grokking.config import Config
from grokking.examples import Examples, Split
from grokking.images import relabel
from grokking.networks import build_network
from grokking.optimizers import build_optimizer
from grokking.spectra import Spectra, Spectrum
from grokking.tasks import Task


class TrainingDiverged(RuntimeError):
    """The loss became infinite or not a number."""


@dataclasses.dataclass(frozen=True)
class Epoch:
    """Measurements at the end of an epoch; `seconds` since the start, without compilation."""

    epoch: int
    seconds: float
    train_loss: float
    test_loss: float
    train_accuracy: float
    test_accuracy: float


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run came to; times in seconds without compilation, None if short of the target."""

    epochs_to_target: int | None
    seconds_to_target: float | None
    epochs: int
    seconds: float
    compile_seconds: float
    train_accuracy: float
    test_accuracy: float
    history: tuple[Epoch, ...] = dataclasses.field(repr=False)


class State(NamedTuple):
    """What one measurement hands to the next: its buffers are donated."""

    params: Any
    optimizer: Any
    order: jax.Array
    test_accuracy: jax.Array


def first_at_target(history: Iterable[Epoch], target: float | None) -> Epoch | None:
    """Return the first epoch whose test accuracy is at least `target`; None without a target."""
    if target is None:
        return None
    return next((epoch for epoch in history if epoch.test_accuracy >= target), None)


def train(
    config: Config,
    on_epoch: Callable[[Epoch], None] = lambda epoch: None,
    on_spectrum: Callable[[Spectrum], None] = lambda spectrum: None,
) -> Result:
    """Run `config` until its target (and the epochs after it) or its last epoch.

    Args:
        config: the run.
        on_epoch: called with every Epoch as soon as it is measured.
        on_spectrum: called with the Spectrum of each of the epochs in `spectra_at`.

    Returns:
        The Result, with the whole history.

    Raises:
        TrainingDiverged: a loss is not finite; the epochs before it have been handed to `on_epoch`.

    Examples:
        >>> from grokking.config import Config
        >>> from grokking.tasks import ModularArithmetic
        >>> from grokking.train import train
        >>> tiny = Config(task=ModularArithmetic(p=7), width=16, batch_size=8, epochs=3)
        >>> len(train(tiny).history)
        3
    """
    state, split, run = prepare(config)
    spectra = Spectra(config, run.loss, state.params, split.train, on_spectrum)
    started = time.perf_counter()
    compiled = jax.jit(run, donate_argnums=0).lower(state, split).compile()
    compile_seconds = time.perf_counter() - started
    history: list[Epoch] = []
    reached: Epoch | None = None
    seconds = 0.0
    for number in range(config.measure_every, config.epochs + 1, config.measure_every):
        phase_split = phase(config, split, number)
        started = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled(state, phase_split))
        seconds += time.perf_counter() - started
        epoch = Epoch(number, round(seconds, 4), **jax.tree.map(shortest, metrics))
        _check_finite(epoch, config)
        history.append(epoch)
        on_epoch(epoch)
        spectra.measure(number, state.params)
        reached = reached or first_at_target([epoch], config.target)
        if reached and number >= reached.epoch + config.epochs_after_target:
            break
    return _result(tuple(history), reached, compile_seconds)


@dataclasses.dataclass(frozen=True)
class Run:
    """The epochs from one measurement to the next as a pure function, every full batch a step."""

    task: Task
    model: nnx.GraphDef
    optimizer: optax.GradientTransformationExtraArgs
    batch_size: int
    epochs: int

    def __call__(self, state: State, split: Split) -> tuple[State, dict[str, jax.Array]]:
        """Return the next state and the scalar float32 metrics, named as in `Epoch`."""
        state = jax.lax.fori_loop(0, self.epochs, lambda _, state: self.epoch(state, split), state)
        train_loss, train_accuracy = self.measure(state.params, split.train)
        test_loss, test_accuracy = self.measure(state.params, split.test)
        metrics = {
            "train_loss": train_loss,
            "test_loss": test_loss,
            "train_accuracy": train_accuracy,
            "test_accuracy": test_accuracy,
        }
        return state._replace(test_accuracy=test_accuracy), metrics

    def epoch(self, state: State, split: Split) -> State:
        """Train on every full batch once."""

        def step(carry: tuple, batch: Examples) -> tuple[tuple, None]:
            params, optimizer_state = carry
            gradients = jax.grad(self.loss)(params, batch)
            updates, optimizer_state = self.optimizer.update(
                gradients, optimizer_state, params, metric=state.test_accuracy
            )
            return (optax.apply_updates(params, updates), optimizer_state), None

        order, key = jax.random.split(state.order)
        batches = shuffled_batches(key, split.train, self.batch_size)
        (params, optimizer_state), _ = jax.lax.scan(step, (state.params, state.optimizer), batches)
        return State(params, optimizer_state, order, state.test_accuracy)

    def loss(self, params: Any, examples: Examples) -> jax.Array:
        """Return the task's loss of the model with these parameters."""
        return self.measure(params, examples)[0]

    def measure(self, params: Any, examples: Examples) -> tuple[jax.Array, jax.Array]:
        """Return the task's loss and accuracy, two float32 scalars."""
        outputs = nnx.merge(self.model, params)(examples.inputs)
        return (
            self.task.loss(outputs, examples.labels),
            self.task.accuracy(outputs, examples.labels),
        )


def prepare(config: Config) -> tuple[State, Split, Run]:
    """Return the state before the first epoch, the data, and the function of the epochs."""
    split_key, model_key, order_key = keys(config)
    graph, variables = nnx.split(build_network(config, nnx.Rngs(params=model_key)), nnx.Param)
    params = nnx.to_pure_dict(variables)
    if config.init_scale != 1.0:
        params = jax.tree.map(lambda leaf: config.init_scale * leaf, params)
    optimizer = build_optimizer(config)
    state = State(params, optimizer.init(params), order_key, jnp.zeros((), jnp.float32))
    run = Run(config.task, graph, optimizer, config.batch_size, config.measure_every)
    return state, config.task.split(split_key), run


def keys(config: Config) -> jax.Array:
    """Return the keys of the split, the initial values and the order of the batches."""
    return jax.random.split(jax.random.key(config.seed), 3)


def phase(config: Config, split: Split, epoch: int) -> Split:
    """Return the data of the phase that ends with or holds `epoch`, counted from 1."""
    number = (epoch - 1) // (config.epochs // config.phases)
    if number == 0:
        return split
    return relabel(jax.random.fold_in(keys(config)[0], number), split, config.relabel)


def shuffled_batches(key: jax.Array, examples: Examples, batch_size: int) -> Examples:
    """Return shuffled examples as (batches, batch_size, ...), without the last partial batch."""
    count = len(examples.labels)
    batches = count // batch_size
    chosen = jax.random.permutation(key, count)[: batches * batch_size].reshape(batches, batch_size)
    return Examples(*(array[chosen] for array in examples))


def shortest(value: jax.Array) -> float:
    """Return a float32 scalar as the float with the fewest digits that stands for it."""
    return float(str(np.float32(value)))


def _check_finite(epoch: Epoch, config: Config) -> None:
    if not (math.isfinite(epoch.train_loss) and math.isfinite(epoch.test_loss)):
        raise TrainingDiverged(
            f"the loss must stay finite, got train loss {epoch.train_loss} and test loss "
            f"{epoch.test_loss} at epoch {epoch.epoch}; lower learning_rate, now "
            f"{config.learning_rate}"
        )


def _result(history: tuple[Epoch, ...], reached: Epoch | None, compile_seconds: float) -> Result:
    last = history[-1]
    return Result(
        epochs_to_target=None if reached is None else reached.epoch,
        seconds_to_target=None if reached is None else reached.seconds,
        epochs=last.epoch,
        seconds=last.seconds,
        compile_seconds=compile_seconds,
        train_accuracy=last.train_accuracy,
        test_accuracy=last.test_accuracy,
        history=history,
    )
