"""Training itself: a program, compiled once, and its course from one validation to the next."""

import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from egd_optax import infer_axes
from language import optimizers
from language.config import CHUNK, Config
from language.corpus import Corpus
from language.model import Network, Params
from language.optimizers import Choices, Entry, Recipe, Values


class State(NamedTuple):
    """All that training changes."""

    params: Params
    optimizer: Any


class Point(NamedTuple):
    """What is known after some steps: seconds and training loss are of those since the last."""

    step: int
    loss: float
    validation: float
    seconds: float
    state: State


class Program:
    """An optimizer on a model and a text; compiled once, whatever the settings' numbers.

    Args:
        config: the model and its training.
        entry: the optimizer.
        text: what is read.
        choices: what of EGD is no number.

    Raises:
        ValueError: a window does not fit into the text.
    """

    def __init__(
        self, config: Config, entry: Entry, text: Corpus, choices: Choices = optimizers.EXACT
    ):
        text.check_context(config.context)
        self.config, self.text, self._entry = config, text, entry
        self.network = Network(config)
        window = jax.ShapeDtypeStruct((config.batch, config.context + 1), np.int32)
        axes = infer_axes(self.network.shapes, self.network.loss, window)
        self.recipe = Recipe(axes, config.schedule(), choices)
        self._begin = jax.jit(self._start)
        self._held_out = _chunks(text.held_out(config.windows, config.context))

    def start(self, values: Values, seed: int) -> State:
        """Return the state before the first step."""
        return self._begin(values, seed)

    def compile(self, values: Values, state: State) -> float:
        """Compile the step and the validation, unless they are; return the seconds that took."""
        if hasattr(self, "step"):
            return 0.0
        started = time.perf_counter()
        tokens = self.batch(0, 1)
        self.step = jax.jit(self._step).lower(values, state, tokens).compile()
        self.validate = jax.jit(self._validate).lower(state.params, self._held_out).compile()
        return time.perf_counter() - started

    def batch(self, seed: int, step: int) -> np.ndarray:
        """Return the windows of a step."""
        return self.text.batch(seed, step, self.config.batch, self.config.context)

    def course(
        self,
        values: Values,
        state: State,
        seed: int,
        after: int = 0,
        tick: Callable[[], object] = lambda: None,
    ) -> Iterator[Point]:
        """Train from a state, and yield at each validation and at the end.

        Args:
            values: the settings' numbers.
            state: after so many steps, which is kept.
            seed: decides the batches.
            after: number of the last step before.
            tick: called after each step.
        """
        self.compile(values, state)
        losses, started = list[jax.Array](), time.perf_counter()
        for step in range(after + 1, self.config.steps + 1):
            state, loss = self.step(values, state, self.batch(seed, step))
            losses.append(loss)
            tick()
            if step % self.config.every == 0 or step == self.config.steps:
                train = float(np.mean(jax.device_get(losses)))
                jax.block_until_ready(state)
                seconds = time.perf_counter() - started
                validation = float(self.validate(state.params, self._held_out))
                yield Point(step, train, validation, seconds, state)
                losses, started = [], time.perf_counter()

    def _start(self, values: Values, seed: jax.Array) -> State:
        params = self.network.init(seed)
        return State(params, self._entry.make(values, self.recipe).init(params))

    def _step(self, values: Values, state: State, tokens: jax.Array) -> tuple[State, jax.Array]:
        loss, gradients = jax.value_and_grad(self.network.loss)(state.params, tokens)
        transform = self._entry.make(values, self.recipe)
        updates, optimizer = transform.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        return State(params, optimizer), loss

    def _validate(self, params: Params, chunks: jax.Array) -> jax.Array:
        return jax.lax.map(lambda chunk: self.network.loss(params, chunk), chunks).mean()


def _chunks(windows: np.ndarray) -> np.ndarray:
    """Return the windows in equal chunks, as large as is allowed."""
    size = max(n for n in range(1, CHUNK + 1) if len(windows) % n == 0)
    return windows.reshape(-1, size, windows.shape[-1])
