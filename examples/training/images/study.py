"""The comparison as a value: network, data, training, and one run of it.

The language model's comparison does the tuning. What is tuned is the error at the end on 1,000
digits that the trial did not train on; the other 1,000, the test set, are for the fresh seeds.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from arena.field import FIRST_FRESH_SEED, Field
from arena.record import Line
from arena.space import Settings
from common.checks import check_choice, check_least
from flax import nnx
from grokking.digits import DIGITS, mnist
from language.compare import planned, told, values_of
from language.course import State
from language.optimizers import OPTIMIZERS, Recipe, Values

from egd_optax import infer_axes
from images.networks import NETWORKS, SIDE, TITLES

NAMES = ("adamw", "sgd", "muon", "egd")
HELD_OUT = 1_000  # digits to tune by, and as many again to test on


@dataclasses.dataclass(frozen=True)
class Config:
    """A network and its training, whatever the optimizer.

    Args:
        network: "cnn" or "vit".
        steps: updates; learning rates warm up in a twentieth of them and fall as a cosine.
        batch: digits in one.
        every: steps from one look at the held-out digits to the next.

    Raises:
        ValueError: an unknown network, or a number that cannot be.
    """

    network: str = "cnn"
    steps: int = 300
    batch: int = 100
    every: int = 10

    def __post_init__(self) -> None:
        check_choice("network", self.network, NETWORKS)
        for name in ("steps", "batch", "every"):
            check_least(name, getattr(self, name), 1)
        if self.steps % self.every:
            raise ValueError(
                f"steps must be a multiple of every, got {self.steps} and {self.every}; change one"
            )
        if self.batch > DIGITS - 2 * HELD_OUT:
            raise ValueError(
                f"a batch must fit into the {DIGITS - 2 * HELD_OUT} training digits, got "
                f"{self.batch}; lower batch"
            )

    def schedule(self) -> optax.Schedule:
        """Return the factor of every learning rate: warm-up to 1, then a cosine to a tenth."""
        up = max(1, self.steps // 20)
        return optax.warmup_cosine_decay_schedule(1 / up, 1.0, up, self.steps + 1, end_value=0.1)


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared: a network's training, and how often each optimizer is tried.

    Args:
        config: the network and its training.
        trials: of each optimizer.
        seeds: fresh ones, for the best of each.
    """

    config: Config
    trials: int = 16
    seeds: int = 3

    def __post_init__(self) -> None:
        for name in ("trials", "seeds"):
            check_least(name, getattr(self, name), 1)

    @property
    def field(self) -> Field:
        """The study in the arena's words: no target is reached, the lowest error is the best.

        The factor by shape is Muon's throughout.
        """
        chosen = {
            name: entry._replace(knobs=entry.numbers)
            for name, entry in OPTIMIZERS.items()
            if name in NAMES
        }
        network = self.config.network
        return planned(self, f"images-{network}", TITLES[network], chosen)

    def told(self, header: Line) -> Line:
        """Return a log's config with the network and its training, which must not change."""
        own = {"model": dataclasses.asdict(self.config), "matrices": whitened(self.config.network)}
        return told(header, own)

    def trained(self, name: str, settings: Settings, seed: int) -> Line:
        """Train once, and return the run's line: its course, and the error at the end.

        The error is that on the test set if the seed is a fresh one. Without a finite loss at the
        end there is no score.
        """
        return _program(self.config, name).run(values_of(name, settings), seed)

    def steps(self, name: str, settings: Settings) -> tuple["Program", Values]:
        """Return a program that is not compiled yet, and its numbers."""
        return Program(self.config, name), values_of(name, settings)


class Data(NamedTuple):
    """Numbers of digits: of each batch (looks, every, batch), and of those that are looked at."""

    batches: np.ndarray
    held_out: np.ndarray


@functools.lru_cache(maxsize=4)
def data(config: Config, seed: int) -> Data:
    """Return what a seed trains on and is judged by.

    A fixed thousand is the test set, of the fresh seeds alone, which train on all other 4,000. The
    tuning seeds train on 3,000 of these and are judged by the other 1,000. An epoch's last partial
    batch is dropped.
    """
    order = np.random.default_rng(0).permutation(DIGITS)
    test, validation, rest = np.split(order, (HELD_OUT, 2 * HELD_OUT))
    fresh = seed >= FIRST_FRESH_SEED
    train = np.concatenate([validation, rest]) if fresh else rest
    random = np.random.default_rng(seed)
    whole = len(train) // config.batch
    epochs = -(-config.steps // whole)
    batches = [
        random.permutation(train)[: whole * config.batch].reshape(whole, config.batch)
        for _ in range(epochs)
    ]
    chosen = np.concatenate(batches)[: config.steps]
    return Data(chosen.reshape(-1, config.every, config.batch), test if fresh else validation)


class Program:
    """A network with an optimizer; compiled when it is first used, for all settings and seeds.

    `run` compiles the whole training. `compile` compiles a step of it by itself, for timing.
    """

    step: Callable[..., tuple[State, jax.Array]]

    def __init__(self, config: Config, name: str):
        self.config, self.network = config, NETWORKS[config.network]
        self._entry = OPTIMIZERS[name]
        self._graph, shapes = nnx.split(nnx.eval_shape(lambda: self.network(nnx.Rngs(0))))
        images = jax.ShapeDtypeStruct((config.batch, SIDE, SIDE, 1), np.float32)
        labels = jax.ShapeDtypeStruct((config.batch,), np.int32)
        self.axes = infer_axes(nnx.to_pure_dict(shapes), self._loss, images, labels)
        self._compiled: Any = None

    def start(self, values: Values, seed: int) -> State:
        """Return the state before the first step."""
        params = self._params(seed)
        return State(params, self._transform(values).init(params))

    def compile(self, values: Values, state: State) -> float:
        """Compile the step, and return the seconds that took."""
        images, labels = map(jnp.asarray, _digits())
        started = time.perf_counter()
        arguments = values, state, self.batch(0, 0)
        compiled = jax.jit(self._step).lower(images, labels, *arguments).compile()
        self.step = functools.partial(compiled, images, labels)
        return time.perf_counter() - started

    def batch(self, seed: int, step: int) -> np.ndarray:
        """Return the numbers of a step's digits."""
        return data(self.config, seed).batches.reshape(-1, self.config.batch)[step]

    def run(self, values: Values, seed: int) -> Line:
        """Train, and return the line of a log."""
        arguments = values, self._params(seed), *_digits(), data(self.config, seed)
        started = time.perf_counter()
        if self._compiled is None:
            self._compiled = jax.jit(self._train).lower(*arguments).compile()
        compilation = time.perf_counter() - started
        started = time.perf_counter()
        losses, errors = map(np.asarray, jax.block_until_ready(self._compiled(*arguments)))
        seconds = time.perf_counter() - started
        finite = bool(np.isfinite(losses).all())
        looks = range(self.config.every, self.config.steps + 1, self.config.every)
        course: dict[str, list] = {
            "step": list(looks),
            "loss": [float(f"{loss:.5g}") if np.isfinite(loss) else None for loss in losses],
            "validation": [round(float(error), 4) for error in errors],
        }
        return {
            "seed": seed,
            "steps": None,  # there is no target
            "score": course["validation"][-1] if finite else None,
            "seconds": round(seconds, 3),
            "compile": round(compilation, 2),
            "course": course,
        }

    def _train(
        self, values: Values, params: Any, images: jax.Array, labels: jax.Array, chosen: Data
    ) -> tuple[jax.Array, jax.Array]:
        """Return the mean loss of the steps before each look, and the error there."""
        step = functools.partial(self._step, images, labels, values)

        def look(state: State, batches: jax.Array) -> tuple[State, tuple]:
            state, losses = jax.lax.scan(step, state, batches)
            wrong = self._outputs(state.params, images[chosen.held_out]).argmax(-1)
            error = jnp.mean(wrong != labels[chosen.held_out], dtype=jnp.float32)
            return state, (losses.mean(), error)

        state = State(params, self._transform(values).init(params))
        return jax.lax.scan(look, state, jnp.asarray(chosen.batches))[1]

    def _step(
        self,
        images: jax.Array,
        labels: jax.Array,
        values: Values,
        state: State,
        batch: jax.Array,
    ) -> tuple[State, jax.Array]:
        """Return the state after an update, and the loss before it."""
        loss, gradients = jax.value_and_grad(self._loss)(state.params, images[batch], labels[batch])
        transform = self._transform(values)
        updates, optimizer = transform.update(gradients, state.optimizer, state.params)
        return State(optax.apply_updates(state.params, updates), optimizer), loss

    def _transform(self, values: Values) -> optax.GradientTransformation:
        return self._entry.make(values, Recipe(self.axes, self.config.schedule()))

    def _params(self, seed: int) -> Any:
        return nnx.to_pure_dict(nnx.state(self.network(nnx.Rngs(seed))))

    def _loss(self, params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = self._outputs(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def _outputs(self, params: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(self._graph, params)(images)


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Return images (5000, 28, 28, 1) and labels."""
    images, labels = mnist()
    return images.reshape(-1, SIDE, SIDE, 1), labels


def whitened(network: str) -> list[str]:
    """Return the paths of the matrices that Muon and EGD whiten; the rest is AdamW's."""
    axes = Program(Config(network), "egd").axes
    return [path for path, found in axes.items() if found]


@functools.lru_cache(maxsize=1)  # it is used until its optimizer is done
def _program(config: Config, name: str) -> Program:
    return Program(config, name)
