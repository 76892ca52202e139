"""The Optax contract: every transformation inside what Optax wraps around it."""

import dataclasses
import functools
import inspect
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from contract import (
    GRADS,
    PARAMS,
    RATE,
    STEPS,
    TABLE,
    at,
    close,
    draw,
    plain,
    promise,
    rows,
    run,
    scan,
)

import egd_optax
from egd_optax import diagnostics, egd, switch_off

pytestmark = pytest.mark.usefixtures("quick_compilation")


def test_the_table_is_complete():
    """Every public function that returns a transformation has a case."""
    kinds = (optax.GradientTransformation, optax.GradientTransformationExtraArgs)
    public = [
        function
        for module in (egd_optax, diagnostics)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_") and inspect.signature(function).return_annotation in kinds
    ]
    assert len(public) == 4
    assert set(public) <= {case.factory for case in TABLE.values()}


@promise
def test_extra_arguments(name):
    """Those that a transformation does not know are ignored, alone (aliases) and in a chain."""
    case = TABLE[name]
    bare = case.factory(**case.arguments)
    alias = case.factory is egd
    assert not alias or isinstance(bare, optax.GradientTransformationExtraArgs)
    chained = bare if alias else optax.chain(bare, optax.identity())
    extra = {**case.extra, "value": 1.0, "unexpected": "anything"}
    updates, _ = chained.update(at(GRADS, 0), chained.init(PARAMS), PARAMS, **extra)
    close(updates, at(plain(name)[1], 0))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: switch_off(inner, optax.identity(), threshold=0.5),
        lambda inner: switch_off(optax.identity(), inner, threshold=-0.5),
    ],
)
def test_wrappers_hand_extra_arguments_on(wrap):
    def update(updates, state, params=None, *, value, **extra_args):
        return jax.tree.map(lambda leaf: value * leaf, updates), state

    wrapped = wrap(optax.GradientTransformationExtraArgs(lambda params: (), update))
    updates, _ = wrapped.update(PARAMS, wrapped.init(PARAMS), PARAMS, value=3.0, metric=0.0)
    close(updates, jax.tree.map(lambda leaf: 3 * leaf, PARAMS))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """A tree that can be called, like Equinox's modules."""

    first: Any
    second: Any
    bias: Any
    scalar: Any

    def __call__(self, x):
        raise AssertionError("a tree was taken for a function")


@promise
@pytest.mark.usefixtures("optax_promotes")
def test_inject_hyperparams(name):
    """Numbers become traced arrays in the state; parameters may be a tree that can be called."""
    case = TABLE[name]
    factory = optax.inject_hyperparams(case.factory, static_args=case.static)
    injected = case.support(factory(**case.arguments))
    ours = scan(injected) if case.injected else functools.partial(run, name, injected)
    state, updates = ours(Module(**GRADS), Module(**PARAMS))
    close(vars(updates), plain(name)[1])
    assert set(state.hyperparams) == set(case.injected)


@pytest.mark.usefixtures("optax_promotes")
def test_injected_numbers_can_be_set_and_trees_that_can_be_called_are_no_functions():
    chosen = Module(first=True, second=False, bias=False, scalar=False)
    optimizer = optax.inject_hyperparams(egd, static_args="matrices")(RATE, matrices=chosen)
    grads, params = Module(**at(GRADS, 0)), Module(**PARAMS)
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    updates, _ = update(grads, state, params)
    state.hyperparams["learning_rate"] = jnp.float32(3 * RATE)
    tripled, _ = update(grads, state, params)
    close(tripled, jax.tree.map(lambda leaf: 3 * leaf, updates))
    close(updates.first, plain("egd")[1]["first"][0])
    close(updates.second, -RATE * grads.second)


@promise
@pytest.mark.usefixtures("optax_promotes")
def test_multi_steps(name):
    """The mean of two gradients is what is transformed; between, nothing moves."""
    accumulated = optax.MultiSteps(TABLE[name].make(), 2).gradient_transformation()
    noise = draw(2, (STEPS,))
    halves = jax.tree.map(lambda g, d: jnp.stack([g - d, g + d], 1), GRADS, noise)
    halves = jax.tree.map(lambda leaf: leaf.reshape(2 * STEPS, *leaf.shape[2:]), halves)
    state, updates = scan(accumulated)(halves, PARAMS)
    expected_state, expected = plain(name)
    chex.assert_trees_all_equal(at(updates, slice(0, None, 2)), optax.tree.zeros_like(expected))
    close(at(updates, slice(1, None, 2)), expected, atol=1e-4)
    close(state.inner_opt_state, expected_state, atol=1e-3)


@promise
def test_masked(name):
    mask = {"first": True, "second": False, "bias": True, "scalar": False}
    _, updates = run(name, optax.masked(TABLE[name].make(), mask))
    for leaf, chosen in mask.items():
        if chosen:
            close(updates[leaf], plain(name)[1][leaf])
        else:
            np.testing.assert_array_equal(updates[leaf], GRADS[leaf])


@promise
def test_partition(name):
    """Two groups with a state each, and a frozen one."""
    make = TABLE[name].make
    labels = {"first": "a", "second": "b", "bias": "b", "scalar": "frozen"}
    groups = {"a": make(), "b": make(), "frozen": optax.set_to_zero()}
    _, updates = run(name, optax.partition(groups, labels))
    expected = plain(name)[1]
    close(updates, expected | {"scalar": jnp.zeros(STEPS)})


@promise
def test_apply_if_finite(name):
    """A NaN in one gradient: no update, and the steps after it are as if it had not been."""
    bad = jax.tree.map(lambda leaf: jnp.insert(leaf, 1, 1.0, axis=0), GRADS)
    bad["first"] = bad["first"].at[1, 2, 3].set(jnp.nan)
    state, updates = scan(optax.apply_if_finite(TABLE[name].make(), 2))(bad, PARAMS)
    expected_state, expected = plain(name)
    chex.assert_trees_all_equal(at(updates, 1), optax.tree.zeros_like(PARAMS))
    close(jax.tree.map(lambda leaf: jnp.delete(leaf, 1, axis=0), updates), expected)
    close(state.inner_state, expected_state)
    assert state.total_notfinite == 1


@promise
@pytest.mark.usefixtures("optax_promotes")
def test_lookahead(name):
    """Every second step, halfway to the slow parameters and a fresh state; against a loop."""
    transformation = TABLE[name].make()
    ahead = optax.lookahead(transformation, 2, 0.5, reset_state=True)

    update = jax.jit(ahead.update) if TABLE[name].control_flow else ahead.update
    actual = optax.LookaheadParams.init_synced(PARAMS)
    ahead_state = ahead.init(actual)
    for index in range(STEPS):
        updates, ahead_state = update(at(GRADS, index), ahead_state, actual)
        actual = optax.apply_updates(actual, updates)
    fast = slow = PARAMS
    for period in range(STEPS // 2):
        state = transformation.init(fast)
        for index in (2 * period, 2 * period + 1):
            updates, state = transformation.update(at(GRADS, index), state, fast)
            fast = optax.apply_updates(fast, updates)
        fast = slow = jax.tree.map(lambda a, b: (a + b) / 2, slow, fast)
    close(actual, optax.LookaheadParams(fast=fast, slow=slow), atol=1e-4)


SCHEDULE = optax.linear_schedule(1.0, 0.0, STEPS)
WITH_A_RATE = [name for name, case in TABLE.items() if "learning_rate" in case.arguments]


@pytest.mark.parametrize("inject", [False, True], ids=["plain", "injected"])
@pytest.mark.parametrize("name", rows(among=WITH_A_RATE))
@pytest.mark.usefixtures("optax_promotes")
def test_learning_rate_schedule(name, inject):
    """At each step the update that a constant rate of that size would give."""
    case = TABLE[name]
    factory = optax.inject_hyperparams(egd) if inject else egd
    optimizer = factory(**{**case.arguments, "learning_rate": SCHEDULE})
    _, updates = scan(optimizer)(GRADS, PARAMS)
    for index in range(STEPS):
        factor = SCHEDULE(index) / RATE
        expected = jax.tree.map(lambda leaf, i=index, f=factor: f * leaf[i], plain(name)[1])
        close(at(updates, index), expected, atol=1e-4)


@promise
def test_tree_utilities(name):
    """optax.tree finds the parameters in the state, and the counts, and sets them."""
    case, (state, _) = TABLE[name], plain(name)
    transformation = case.make()
    chex.assert_trees_all_equal(
        optax.tree.map_params(transformation, lambda leaf: leaf, state), state
    )

    def is_masked(node):
        return isinstance(node, optax.MaskedNode)

    names = optax.tree.map_params(
        transformation,
        lambda leaf, name: None if is_masked(leaf) else name,
        state,
        {name: name for name in PARAMS},
        transform_non_params=lambda _: None,
        is_leaf=is_masked,
    )
    assert sorted(jax.tree.leaves(names)) == sorted(case.copies * list(PARAMS))
    if case.counter:
        counts = [value for _, value in optax.tree.get_all_with_path(state, case.counter)]
        assert counts
        np.testing.assert_array_equal(np.concatenate([np.ravel(c) for c in counts]), STEPS)
        again = optax.tree.set(state, **{case.counter: jnp.int32(7)})
        assert all(value == 7 for _, value in optax.tree.get_all_with_path(again, case.counter))
    zeros = optax.tree.zeros_like(state)
    chex.assert_trees_all_equal(optax.tree.where(True, state, zeros), state)
