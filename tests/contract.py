"""The table of the Optax contract: every public transformation and alias, and how to run one."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import diagnostics, egd, polar, scale_by_egd, switch_off


def every_second_step(method=None):
    """The recipe of docs/guides/switch-off.md."""
    return optax.chain(
        optax.conditionally_transform(scale_by_egd(method), lambda step: step % 2 == 0),
        optax.conditionally_transform(optax.scale(0.1), lambda step: step % 2 != 0),
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """A transformation, what its `update` wants, and what is to be found in its state."""

    factory: Callable[..., optax.GradientTransformation]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    static: tuple[str, ...] = ()  # arguments that are no numbers, for `inject_hyperparams`
    injected: tuple[str, ...] = ()  # those that are
    copies: int = 0  # of the parameters, in the state
    counter: str = ""  # name of the count of updates in the state
    control_flow: bool = False  # which would be compiled at every eager call
    skips: Mapping[str, str] = dataclasses.field(default_factory=dict)  # promise -> why not

    def make(self, **changes) -> optax.GradientTransformationExtraArgs:
        return self.support(self.factory(**{**self.arguments, **changes}))

    def support(self, transformation) -> optax.GradientTransformationExtraArgs:
        """Hand the extra arguments to every update."""
        inner = optax.with_extra_args_support(transformation)

        def update(updates, state, params=None):
            return inner.update(updates, state, params, **self.extra)

        return optax.GradientTransformationExtraArgs(inner.init, update)


RATE = 0.1
NO_INTEGERS = {"integers": "SGD multiplies integers by its rate"}
WRAPPERS = ("extra_arguments", "inject_hyperparams", "multi_steps", "masked", "partition")
WRAPPERS += ("apply_if_finite", "lookahead", "replication")
PROMISES = {*WRAPPERS, "learning_rate_schedule", "tree_utilities", "dtypes", "complex", "integers"}
PROMISES |= {"loop", "donation", "vmap", "abstract_init", "sharding_in_types", "host_arrays"}
RATES = {"injected": ("learning_rate", "weight_decay"), "skips": NO_INTEGERS}
# Sketches as wide as the matrices: whatever is drawn, the leading directions are exact.
TABLE = {
    "auto": Case(scale_by_egd),
    "halley": Case(scale_by_egd, {"method": polar.Halley(), "scale": "muon"}),
    "newton_schulz": Case(scale_by_egd, {"method": polar.NewtonSchulz()}),
    "randomized": Case(scale_by_egd, {"method": polar.Randomized(2)}, counter="step"),
    "subspace": Case(scale_by_egd, {"method": polar.SubspaceIteration(2)}, counter="step"),
    "egd": Case(egd, {"learning_rate": RATE}, **RATES),
    "egd_momentum": Case(
        egd,
        {"learning_rate": RATE, "momentum": 0.5, "nesterov": True, "weight_decay": 0.01},
        static=("nesterov",),
        injected=("learning_rate", "weight_decay", "momentum"),
        copies=1,
        counter="count",
        skips=NO_INTEGERS,
    ),
    "egd_decoupled": Case(
        egd, {"learning_rate": RATE, "weight_decay": 0.01, "decay": "decoupled"}, **RATES
    ),
    "switch_off": Case(
        switch_off,
        {"inner": optax.ema(0.5, debias=False), "after": scale_by_egd(), "threshold": 0.5},
        extra={"metric": 0.4},
        injected=("threshold",),
        copies=1,
        counter="count",
        control_flow=True,
        skips={
            "lookahead": "optax.lookahead hands no extra arguments on",
            "integers": "optax.ema multiplies integers by its decay",
        },
    ),
    "spectrum_monitor": Case(
        diagnostics.spectrum_monitor,
        {"every": 2},
        static=("every",),
        counter="step",
        control_flow=True,
    ),
    "every_second_step": Case(
        every_second_step,
        counter="step",
        control_flow=True,
        skips={"integers": "optax.scale multiplies integers by a float"},
    ),
}
STEPS = 4
assert all(set(case.skips) <= PROMISES for case in TABLE.values())


def draw(seed, leading=()):
    rng = np.random.default_rng(seed)
    # One shape of matrix: a bucket of two to take apart, and half of the compilation.
    shapes = {"first": (4, 6), "second": (4, 6), "bias": (6,), "scalar": ()}
    return {
        name: jnp.asarray(rng.standard_normal((*leading, *shape)), jnp.float32)
        for name, shape in shapes.items()
    }


PARAMS, GRADS = draw(0), draw(1, (STEPS,))


def at(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def scan(transformation):
    """Function from the gradients of all steps and parameters to the last state and all updates."""

    def all_steps(grads, params):
        def step(state, gradient):
            updates, state = transformation.update(gradient, state, params)
            return state, updates

        return jax.lax.scan(step, transformation.init(params), grads)

    return jax.jit(all_steps)


def loop(update, init, grads, params):
    """The same by a loop."""
    state, all_updates = init(params), []
    for index in range(len(jax.tree.leaves(grads)[0])):
        updates, state = update(at(grads, index), state, params)
        all_updates.append(updates)
    return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *all_updates)


def run(name, transformation, grads=GRADS, params=PARAMS):
    """The same the quicker way: eager steps find the polar methods compiled."""
    if TABLE[name].control_flow:
        return scan(transformation)(grads, params)
    return loop(transformation.update, transformation.init, grads, params)


@functools.cache
def scanned(name):
    return scan(TABLE[name].make())


@functools.cache
def plain(name):
    """The last state and all updates, for comparison."""
    return scanned(name)(GRADS, PARAMS)


@functools.cache
def jitted(name):
    """The update, traced once at most; it takes the buffers of the gradients and the state."""
    chex.clear_trace_counter()  # it counts by the line of the definition, which all cases share
    update = chex.assert_max_traces(TABLE[name].make().update, n=1)
    return jax.jit(update, donate_argnums=(0, 1))


# Cases that take the way of another one: they are slow.
ALIKE = {
    "auto": "egd",
    "halley": "egd",
    "newton_schulz": "egd",
    "randomized": "subspace",
    "egd_decoupled": "egd",
    "every_second_step": "switch_off",
}
# The dearest promises, of which one case of each kind of state is quick.
DEAR = {"multi_steps", "apply_if_finite", "lookahead"}
KINDS = {"subspace", "egd_momentum", "switch_off"}


def rows(label="", among=TABLE):
    """Names of the cases that do not skip a promise."""
    quick = KINDS if label in DEAR else TABLE.keys() - ALIKE
    return [
        pytest.param(name, marks=() if name in quick else pytest.mark.slow)
        for name in among
        if label not in TABLE[name].skips
    ]


def promise(function):
    """Run a test for every case of the table but those that skip it."""
    label = function.__name__.removeprefix("test_")
    assert label in PROMISES
    return pytest.mark.parametrize("name", rows(label))(function)


close = functools.partial(chex.assert_trees_all_close, atol=2e-5)
