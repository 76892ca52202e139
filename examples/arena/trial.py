"""One training run: compiled once for an optimizer and a batch size, whatever its settings.

The knobs are arguments of the compiled function, and so is the number of steps after which a run
that is not at its target is given up.
"""

import functools
import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from arena.contract import Batch, Optimizer, Params, Task
from arena.space import EMA, Settings, traced

JUMP = 8  # looks to the next one as long as the target is far


class State(NamedTuple):
    """What a step hands to the next one; the `average` of the weights is what looks are at."""

    params: Params
    average: Params  # in float32 at least
    optimizer: Any
    order: jax.Array
    step: jax.Array
    finite: jax.Array


class Watch(NamedTuple):
    """What the looks found: first look of the present run at the target, its length, scores.

    Looks cost as much as steps, or more. So most are left out as long as the target is far: the
    next one is several looks away. If it is at the target, the run goes back to the one before and
    looks `closely`, `until` it is there again and as long as the target is held. The result is that
    of all looks, as a run of looks that is held has one of those that are not left out.
    """

    first: jax.Array
    held: jax.Array
    score: jax.Array
    best: jax.Array
    closely: jax.Array
    until: jax.Array


class Program:
    """An optimizer with a batch size on a task; compiled when it is first used."""

    def __init__(self, task: Task, optimizer: Optimizer, batch: int):
        self.task, self.optimizer, self.batch = task, optimizer, batch
        self._compile_seconds = 0.0

    def run(self, settings: Settings, seed: int, limit: int | None = None) -> dict[str, Any]:
        """Train until the target is held, a number is not finite, or the budget is used.

        A run that is at the target at the end of the budget goes on for as long as that is held.

        Args:
            settings: the knobs' values.
            seed: decides data, initial values and order of the batches.
            limit: steps after which a run that is not at the target ends; None: the budget.

        Returns:
            For a log: seed; steps to the target, None if missed; steps that were run; score at the
            end, None if the training diverged; best score; seconds.
        """
        task = self.task
        start = task_start(task, seed)
        values = traced(self.optimizer.knobs, settings)
        arguments = (values, *start, np.int32(min(limit or task.steps, task.steps)))
        compiled = self._compiled(arguments)
        started = time.perf_counter()
        state, watch = jax.block_until_ready(compiled(*arguments))
        seconds = time.perf_counter() - started
        step, held = int(state.step), int(watch.held)
        return {
            "seed": seed,
            "steps": int(watch.first) if held >= task.hold else None,
            "ran": step,
            "score": _plain(watch.score) if bool(state.finite) else None,
            "best": _plain(watch.best),
            "seconds": round(seconds, 4),
        }

    def take_compile_seconds(self) -> float:
        """Return the seconds of compilation since this was last asked."""
        seconds, self._compile_seconds = self._compile_seconds, 0.0
        return round(seconds, 2)

    def _compiled(self, arguments: tuple) -> Any:
        if not hasattr(self, "_executable"):
            started = time.perf_counter()
            self._executable = jax.jit(self._train).lower(*arguments).compile()
            self._compile_seconds = time.perf_counter() - started
        return self._executable

    def _train(
        self, values: Any, params: Params, key: jax.Array, train: Batch, test: Batch, limit: Any
    ) -> tuple[State, Watch]:
        task, sign = self.task, -1.0 if self.task.lower else 1.0
        transform = self.optimizer.make(values, task, params)
        step = functools.partial(self.step, transform, share(values), key, train)

        def look(carry: tuple[State, State, Watch]) -> tuple[State, State, Watch]:
            before, _, watch = carry
            left = -((before.step - jnp.minimum(limit, last_step(task))) // task.every)
            looks = jnp.where(watch.closely, 1, jnp.clip(left, 1, jumps(task)))
            closely = watch.closely | (looks == 1)
            after = jax.lax.fori_loop(0, looks * task.every, lambda _, state: step(state), before)
            score = task.score(averaged(after), test).astype(jnp.float32)
            at_target = (sign * score >= sign * task.target) & after.finite
            back = at_target & ~closely
            state = jax.tree.map(lambda old, new: jnp.where(back, old, new), before, after)
            until = jnp.where(back, after.step, watch.until)
            held = jnp.where(at_target & closely, watch.held + 1, 0)
            first = jnp.where(held == 1, after.step, watch.first)
            closely = (state.step < until) | (held > 0)
            best = sign * jnp.fmax(sign * score, sign * watch.best)
            return state, after, Watch(first, held, score, best, closely, until)

        def goes_on(carry: tuple[State, State, Watch]) -> jax.Array:
            state, after, watch = carry
            within = (state.step < limit) | watch.closely
            within &= (state.step < last_step(task)) | (watch.held > 0)  # held beyond the budget
            within &= watch.held < task.hold
            return within & after.finite

        state = self.start(transform, params, train)
        none, number = jnp.int32(0), jnp.float32(jnp.nan)
        nothing = Watch(none, none, number, number, jnp.bool_(False), none)
        _, state, watch = jax.lax.while_loop(goes_on, look, (state, state, nothing))
        return state, watch

    def steps_alone(
        self, values: Any, params: Params, key: jax.Array, train: Batch, steps: Any
    ) -> Params:
        """Return the average of the weights after so many steps without a look, to be timed."""
        transform = self.optimizer.make(values, self.task, params)
        step = functools.partial(self.step, transform, share(values), key, train)
        state = self.start(transform, params, train)
        return averaged(jax.lax.fori_loop(0, steps, lambda _, state: step(state), state))

    def start(self, transform: optax.GradientTransformation, params: Params, train: Batch) -> Any:
        order = jnp.arange(size(train), dtype=jnp.int32)
        return State(
            params, _precise(params), transform.init(params), order, jnp.int32(0), jnp.bool_(True)
        )

    def step(
        self,
        transform: optax.GradientTransformation,
        share: Any,
        key: jax.Array,
        train: Batch,
        state: State,
    ) -> State:
        """Take a step; `share` is that of the new weights in their average."""
        order, batch = self._next_batch(key, train, state)
        loss, gradients = jax.value_and_grad(self.task.loss)(state.params, batch)
        updates, optimizer = transform.update(gradients, state.optimizer, state.params)
        params = optax.apply_updates(state.params, updates)
        average = optax.incremental_update(_precise(params), state.average, share)
        finite = state.finite & jnp.isfinite(loss)
        return State(params, average, optimizer, order, state.step + 1, finite)

    def _next_batch(self, key: jax.Array, train: Batch, state: State) -> tuple[jax.Array, Batch]:
        """Return a fresh shuffle at the start of an epoch, and the batch; the whole set as it is.

        An epoch's last partial batch is dropped.
        """
        count = size(train)
        if self.batch == count:
            return state.order, train
        epoch, place = jnp.divmod(state.step, count // self.batch)
        order = jax.lax.cond(
            place == 0,
            lambda: jax.random.permutation(jax.random.fold_in(key, epoch), count).astype(jnp.int32),
            lambda: state.order,
        )
        chosen = jax.lax.dynamic_slice(order, (place * self.batch,), (self.batch,))
        return order, jax.tree.map(lambda leaf: leaf[chosen], train)


@functools.lru_cache(maxsize=32)
def task_start(task: Task, seed: int) -> tuple[Params, jax.Array, Batch, Batch]:
    """Return initial parameters, the key of the batches' order, training and test data."""
    init_key, order_key = jax.random.split(jax.random.key(seed))
    train, test = jax.tree.map(jnp.asarray, task.data(seed))
    return task.init(init_key), order_key, train, test


def averaged(state: State) -> Params:
    """Return the average of the weights, in their dtypes."""
    return jax.tree.map(lambda mean, leaf: mean.astype(leaf.dtype), state.average, state.params)


def _precise(params: Params) -> Params:
    """Return the weights as an average needs them: small changes are lost in 16 bits."""
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)), params
    )


def share(values: Mapping[str, Any]) -> Any:
    """Return the share of the newest weights in their average; 1, without one, if it is no knob."""
    return 1 / values.get(EMA.name, 1.0)


def size(batch: Batch) -> int:
    """Return the number of examples."""
    return len(jax.tree.leaves(batch)[0])


def jumps(task: Task) -> int:
    """Return how many looks ahead the next one is while the target is far."""
    return min(task.hold, JUMP)


def last_step(task: Task) -> int:
    """Return the step of the last look."""
    return task.steps // task.every * task.every


def _plain(value: jax.Array) -> float | None:
    """Return a number as JSON has it: six digits, None if not finite."""
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None
