"""Training of one Config: one compiled call an epoch, equal data and batches for all optimizers."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from egd_optax.grokking.config import Config
from egd_optax.grokking.optimizers import build_optimizer
from egd_optax.grokking.tasks import Examples, Split, Task
from egd_optax.models import TwoLayerMLP


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
    """What an epoch turns into the next: its buffers are donated."""

    params: Any
    optimizer: Any
    order: jax.Array
    test_accuracy: jax.Array


def first_at_target(history: Iterable[Epoch], target: float) -> Epoch | None:
    """Return the first epoch whose test accuracy is at least `target`."""
    return next((epoch for epoch in history if epoch.test_accuracy >= target), None)


def train(config: Config, on_epoch: Callable[[Epoch], None] = lambda epoch: None) -> Result:
    """Run `config` until its target (and the epochs after it) or its last epoch.

    Args:
        config: the run.
        on_epoch: called with every Epoch as soon as it is measured.

    Returns:
        The Result, with the whole history.

    Raises:
        TrainingDiverged: a loss is not finite; the epochs before it have been handed to `on_epoch`.

    Examples:
        >>> from egd_optax.grokking import Config, ModularArithmetic, train
        >>> tiny = Config(task=ModularArithmetic(p=7), width=16, batch_size=8, epochs=3)
        >>> len(train(tiny).history)
        3
    """
    state, split, run_epoch = prepare(config)
    started = time.perf_counter()
    compiled = jax.jit(run_epoch, donate_argnums=0).lower(state, split).compile()
    compile_seconds = time.perf_counter() - started
    history: list[Epoch] = []
    reached: Epoch | None = None
    seconds = 0.0
    for number in range(1, config.epochs + 1):
        started = time.perf_counter()
        state, metrics = jax.block_until_ready(compiled(state, split))
        seconds += time.perf_counter() - started
        epoch = Epoch(number, seconds, **{name: float(value) for name, value in metrics.items()})
        _check_finite(epoch, config)
        history.append(epoch)
        on_epoch(epoch)
        reached = reached or first_at_target([epoch], config.target)
        if reached and number >= reached.epoch + config.epochs_after_target:
            break
    return _result(tuple(history), reached, compile_seconds)


@dataclasses.dataclass(frozen=True)
class RunEpoch:
    """One epoch as a pure function: train on every full batch, then measure on the full sets."""

    task: Task
    model: nnx.GraphDef
    optimizer: optax.GradientTransformationExtraArgs
    batch_size: int

    def __call__(self, state: State, split: Split) -> tuple[State, dict[str, jax.Array]]:
        """Return the next state and the scalar float32 metrics, named as in `Epoch`."""

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
        train_loss, train_accuracy = self.measure(params, split.train)
        test_loss, test_accuracy = self.measure(params, split.test)
        metrics = {
            "train_loss": train_loss,
            "test_loss": test_loss,
            "train_accuracy": train_accuracy,
            "test_accuracy": test_accuracy,
        }
        return State(params, optimizer_state, order, test_accuracy), metrics

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


def prepare(config: Config) -> tuple[State, Split, RunEpoch]:
    """Return the state before the first epoch, the data, and the function of an epoch."""
    split_key, model_key, order_key = jax.random.split(jax.random.key(config.seed), 3)
    task = config.task
    rngs = nnx.Rngs(params=model_key)
    model = TwoLayerMLP(
        task.in_features, config.width, task.out_features, bias_scale=task.bias_scale, rngs=rngs
    )
    graph, variables = nnx.split(model, nnx.Param)
    params = nnx.to_pure_dict(variables)
    optimizer = build_optimizer(config)
    state = State(params, optimizer.init(params), order_key, jnp.zeros((), jnp.float32))
    return state, task.split(split_key), RunEpoch(task, graph, optimizer, config.batch_size)


def shuffled_batches(key: jax.Array, examples: Examples, batch_size: int) -> Examples:
    """Return shuffled examples as (batches, batch_size, ...), without the last partial batch."""
    count = len(examples.labels)
    batches = count // batch_size
    chosen = jax.random.permutation(key, count)[: batches * batch_size].reshape(batches, batch_size)
    return Examples(*(array[chosen] for array in examples))


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
