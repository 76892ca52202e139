"""switch_off: when it switches, that the other side rests, and that dtypes stay."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from egd_optax import scale_by_egd, switch_off

GRADS = np.random.default_rng(0).standard_normal((9, 4, 6)).astype(np.float32)


@pytest.mark.parametrize(
    ("metrics", "used"),
    [((np.float32(0.95), 0.96, 0.5, 0.99), "iaaa"), ((np.nan, np.inf, np.nan, 0.1), "iaaa")],
    ids=["crossed once, latched", "NaN exceeds nothing"],
)
def test_switch_off_follows_the_metric(metrics, used):
    optimizer = switch_off(optax.scale(2.0), optax.scale(3.0), threshold=np.float32(0.95))
    update = jax.jit(optimizer.update)
    state, seen = optimizer.init(jnp.ones(())), ""
    for metric in metrics:
        updates, state = update(jnp.ones(()), state, metric=metric)
        seen += {2.0: "i", 3.0: "a"}[float(updates)]
    assert seen == used


def test_switch_off_skips_the_idle_side():
    """Its callback never runs, and its state stands still."""
    calls = []

    def spy(matrix):
        jax.debug.callback(lambda: calls.append(1))
        return matrix

    inner = optax.chain(scale_by_egd(spy), optax.trace(0.9))
    optimizer = switch_off(inner, optax.trace(0.9), threshold=0.5)
    update = jax.jit(optimizer.update)
    state = optimizer.init(jnp.ones((2, 2)))
    for metric, expected in [(0.1, 1), (0.9, 1), (0.1, 1)]:
        old = state
        _, state = update(jnp.ones((2, 2)), old, metric=metric)
        jax.effects_barrier()
        assert len(calls) == expected
        idle = "inner" if state.switched else "after"
        chex.assert_trees_all_equal(getattr(state, idle), getattr(old, idle))


METRICS = np.float32([0.1, 0.3, 0.96, 0.2, 0.99])


def fit_by_scan(optimizer, target):
    def step(carry, metric):
        params, state = carry
        updates, state = optimizer.update(params - target, state, params, metric=metric)
        return (optax.apply_updates(params, updates), state), None

    params = jnp.zeros_like(target)
    carry, _ = jax.lax.scan(step, (params, optimizer.init(params)), jnp.asarray(METRICS))
    return carry[0]


def fit_by_nnx(optimizer, target):
    zeros = nnx.initializers.zeros
    model = nnx.Linear(*target.shape, use_bias=False, kernel_init=zeros, rngs=nnx.Rngs(0))
    trainer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)

    @nnx.jit
    def step(model, trainer, metric):
        grads = nnx.grad(lambda model: 0.5 * jnp.sum((model.kernel[...] - target) ** 2))(model)
        trainer.update(model, grads, metric=metric)

    for metric in METRICS:
        step(model, trainer, metric)
    return model.kernel[...]


@pytest.mark.parametrize("fit", [fit_by_scan, fit_by_nnx])
def test_switch_off_works_in_any_training_loop(fit):
    """Momentum until the metric passes 0.95, then plain steps, with the rate behind both."""
    optimizer = optax.chain(
        switch_off(optax.trace(0.5), optax.identity(), threshold=0.95), optax.sgd(0.1)
    )
    target, w, memory = GRADS[0], np.zeros((4, 6), np.float32), 0.0
    for metric in np.maximum.accumulate(METRICS):
        memory = (w - target) + 0.5 * memory
        w = w - np.float32(0.1) * ((w - target) if metric > 0.95 else memory)
    np.testing.assert_allclose(fit(optimizer, target), w, rtol=0, atol=1e-6)


@pytest.mark.usefixtures("optax_promotes")
def test_updates_have_the_dtype_of_the_gradients_on_both_sides():
    params, adam = jnp.ones((2, 2)), optax.scale_by_adam()
    for sides in [(optax.identity(), adam), (adam, scale_by_egd())]:
        optimizer = switch_off(*sides, threshold=0.5)
        state = optimizer.init(params)
        for metric in (0.1, 0.9):
            updates, state = optimizer.update(params.astype("bfloat16"), state, metric=metric)
            assert updates.dtype == jnp.bfloat16


@pytest.mark.usefixtures("optax_promotes")
def test_gradients_may_be_longer_than_the_parameters_whose_dtype_the_state_has():
    params, grads = jnp.ones((2, 2), "bfloat16"), jnp.ones((2, 2))
    optimizer = switch_off(optax.trace(0.9), optax.adam(1e-3), threshold=0.5)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for metric in (0.1, 0.9):
        updates, after = update(grads, state, params, metric=metric)
        assert updates.dtype == grads.dtype
        chex.assert_trees_all_equal_dtypes(after, state)
        state = after
    assert state.switched


IDENTITY = optax.identity()


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: switch_off(IDENTITY, IDENTITY, threshold=None), TypeError, "a number .* got None"),
        (lambda: switch_off(IDENTITY, IDENTITY, threshold="x"), TypeError, "a number .* got 'x'"),
        (lambda: switch_off(IDENTITY, IDENTITY, threshold=np.nan), TypeError, "got nan"),
        (lambda: switch_off(0.5, IDENTITY, threshold=0.5), TypeError, "inner must be .* got 0.5"),
        (lambda: switch_off(IDENTITY, scale_by_egd, threshold=0.5), TypeError, "after must be"),
        (lambda: switch_off(IDENTITY, IDENTITY), TypeError, "threshold"),
        (
            lambda: switch_off(IDENTITY, IDENTITY, threshold=0.5).update(
                GRADS, switch_off(IDENTITY, IDENTITY, threshold=0.5).init(GRADS)
            ),
            ValueError,
            "metric=",
        ),
        (
            lambda: switch_off(IDENTITY, IDENTITY, threshold=0.5).update(
                GRADS, switch_off(IDENTITY, IDENTITY, threshold=0.5).init(GRADS), metric=np.ones(3)
            ),
            ValueError,
            r"one number as metric, got shape \(3,\)",
        ),
    ],
)
def test_bad_arguments_are_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()
