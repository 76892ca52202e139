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
from grokking.spectra import Spectra, Spectrum
from grokking.tasks import Examples, Split


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


class State(NamedTuple):
    """What one measurement hands to the next: its buffers are donated."""

    params: Any
    optimizer: Any
    order: jax.Array
    test_accuracy: jax.Array


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

    Raises:
        TrainingDiverged: a loss is not finite; the epochs before it have been handed to `on_epoch`.

    Examples:
        >>> from grokking.tasks import ModularArithmetic
        >>> tiny = Config(task=ModularArithmetic(p=7), width=16, batch_size=8, epochs=3)
        >>> train(tiny).epochs
        3
    """
    program = Program(config)
    state, split = program.start()
    spectra = Spectra(config, program.loss, state.params, split.train, on_spectrum)
    started = time.perf_counter()
    compiled = jax.jit(program.advance, donate_argnums=0).lower(state, split).compile()
    compile_seconds = time.perf_counter() - started
    reached: Epoch | None = None
    seconds = 0.0
    for number in range(config.measure_every, config.epochs + 1, config.measure_every):
        data = config.task.at(number, split, program.split_key)
        started = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled(state, data))
        seconds += time.perf_counter() - started
        epoch = Epoch(number, round(seconds, 4), **jax.tree.map(_shortest, metrics))
        _check_finite(epoch)
        on_epoch(epoch)
        spectra.measure(number, state.params)
        reached = reached or first_at_target([epoch], config.target)
        if reached and number >= reached.epoch + config.epochs_after_target:
            break
    return Result(
        epochs_to_target=None if reached is None else reached.epoch,
        seconds_to_target=None if reached is None else reached.seconds,
        epochs=epoch.epoch,
        seconds=epoch.seconds,
        compile_seconds=compile_seconds,
        train_accuracy=epoch.train_accuracy,
        test_accuracy=epoch.test_accuracy,
    )


def check_fit(config: Config) -> None:
    """Raise ValueError if optimizer or spectra do not fit the network; nothing is computed."""

    def start() -> Any:
        network = config.task.network(config.width, nnx.Rngs(params=0))
        params = nnx.to_pure_dict(nnx.state(network, nnx.Param))
        if config.spectra_at and "hidden" not in params:
            raise ValueError(
                "spectra_at needs the two-layer network's hidden/kernel, and the network of the "
                f"task {config.task.kind} has {', '.join(params)}; drop it"
            )
        return config.optimizer.build().init(params)

    jax.eval_shape(start)


def first_at_target(history: Iterable[Epoch], target: float | None) -> Epoch | None:
    """Return the first epoch whose test accuracy is at least `target`; None without a target."""
    if target is None:
        return None
    return next((epoch for epoch in history if epoch.test_accuracy >= target), None)


class Program:
    """The pure functions of a run: `start`, `advance` to the next measurement, one `epoch`."""

    def __init__(self, config: Config):
        self.config, self.task = config, config.task
        self.optimizer = config.optimizer.build()
        self.split_key, model_key, self._order_key = jax.random.split(
            jax.random.key(config.seed), 3
        )
        network = config.task.network(config.width, nnx.Rngs(params=model_key))
        self._graph, variables = nnx.split(network, nnx.Param)
        params = nnx.to_pure_dict(variables)
        scale = config.init_scale
        self._params = params if scale == 1 else jax.tree.map(lambda leaf: scale * leaf, params)

    def start(self) -> tuple[State, Split]:
        """Return the state before the first epoch, and the data."""
        params = jax.tree.map(jnp.copy, self._params)  # the state's buffers will be donated
        accuracy = jnp.zeros((), jnp.float32)
        state = State(params, self.optimizer.init(params), self._order_key, accuracy)
        return state, self.task.split(self.split_key)

    def advance(self, state: State, split: Split) -> tuple[State, dict[str, jax.Array]]:
        """Train for `measure_every` epochs; return scalar float32 metrics, named as in `Epoch`."""
        state = jax.lax.fori_loop(
            0, self.config.measure_every, lambda _, state: self.epoch(state, split), state
        )
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
        batches = shuffled_batches(key, split.train, self.config.batch_size)
        (params, optimizer_state), _ = jax.lax.scan(step, (state.params, state.optimizer), batches)
        return State(params, optimizer_state, order, state.test_accuracy)

    def loss(self, params: Any, examples: Examples) -> jax.Array:
        """Return the task's loss of the model with these parameters."""
        return self.measure(params, examples)[0]

    def measure(self, params: Any, examples: Examples) -> tuple[jax.Array, jax.Array]:
        """Return the task's loss and accuracy, two float32 scalars."""
        outputs = nnx.merge(self._graph, params)(examples.inputs)
        return (
            self.task.loss(outputs, examples.labels),
            self.task.accuracy(outputs, examples.labels),
        )


def shuffled_batches(key: jax.Array, examples: Examples, batch_size: int) -> Examples:
    """Return shuffled examples as (batches, batch_size, ...), without the last partial batch."""
    count = len(examples.labels)
    batches = count // batch_size
    chosen = jax.random.permutation(key, count)[: batches * batch_size].reshape(batches, batch_size)
    return Examples(*(array[chosen] for array in examples))


def _shortest(value: jax.Array) -> float:
    """Return a float32 scalar as the float with the fewest digits that stands for it."""
    return float(str(np.float32(value)))


def _check_finite(epoch: Epoch) -> None:
    if not (math.isfinite(epoch.train_loss) and math.isfinite(epoch.test_loss)):
        raise TrainingDiverged(
            f"the loss must stay finite, got train loss {epoch.train_loss} and test loss "
            f"{epoch.test_loss} at epoch {epoch.epoch}; lower the learning rate"
        )
