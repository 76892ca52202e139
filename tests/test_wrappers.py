"""switch_off, blend_in, Grokfast's filters, and Optax's way to act at every k-th step."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from egd_optax import blend_in, grokfast_ema, grokfast_ma, scale_by_egd, switch_off

RNG = np.random.default_rng(0)
GRADS = RNG.standard_normal((9, 4, 6)).astype(np.float32)
RAMP = optax.linear_schedule(0.0, 1.0, 4)


def run(transformation, grads=GRADS):
    """Updates of all steps, under jit and scan."""
    start = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), grads)

    def step(state, gradient):
        updates, state = transformation.update(gradient, state, start)
        return state, updates

    return jax.jit(lambda: jax.lax.scan(step, transformation.init(start), grads)[1])()


@pytest.mark.parametrize(("latch", "used"), [(True, "iaaa"), (False, "iaia")])
def test_switch_off_follows_the_metric(latch, used):
    inner, after = optax.scale(2.0), optax.scale(3.0)
    optimizer = switch_off(inner, after, threshold=0.95, latch=latch)
    update = jax.jit(optimizer.update)
    state, seen = optimizer.init(jnp.ones(())), ""
    for metric in (0.95, 0.96, 0.5, 0.99):
        updates, state = update(jnp.ones(()), state, metric=metric)
        seen += {2.0: "i", 3.0: "a"}[float(updates)]
    assert seen == used


def test_switch_off_skips_the_inner_work():
    """The idle side's callback never runs, and its state stands still."""
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


def fit_by_loop(optimizer, target):
    params = jnp.zeros_like(target)
    state = optimizer.init(params)
    for metric in METRICS.tolist():
        updates, state = jax.jit(optimizer.update)(params - target, state, params, metric=metric)
        params = optax.apply_updates(params, updates)
    return params


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


@pytest.mark.parametrize("fit", [fit_by_loop, fit_by_scan, fit_by_nnx])
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


def test_blend_in_equals_a_numpy_loop():
    expected, memory = [], 0.0
    for step, gradient in enumerate(GRADS):
        share, memory = min(step / 4, 1.0), gradient + 0.5 * memory
        expected.append((1 - share) * gradient + share * memory)
    actual = run(blend_in(optax.trace(0.5), RAMP))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(actual[0], GRADS[0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_blend_in_is_inner_bit_for_bit_after_the_ramp(dtype):
    """Also where the gradient is not finite and inner repairs it."""
    inner = optax.chain(optax.clip(1.0), scale_by_egd(), optax.trace(0.9))
    grads = jnp.asarray(GRADS, dtype).at[-1, 0, 0].set(jnp.inf)
    actual, expected = run(blend_in(inner, RAMP), grads), run(inner, grads)
    np.testing.assert_array_equal(actual[4:], expected[4:])
    assert np.isfinite(np.float32(actual)).all()


@pytest.mark.parametrize("weight", [0.25, jnp.float32(0.25), lambda count: 0.25])
def test_blend_in_takes_numbers_and_schedules(weight):
    np.testing.assert_allclose(run(blend_in(optax.scale(5.0), weight)), 2 * GRADS, rtol=1e-6)


def test_every_third_step_by_conditionally_transform():
    """The recipe of docs/guides/switch-off.md against a loop: work is skipped, states stay."""
    calls = []

    def inner_update(updates, state, params=None):
        jax.debug.callback(lambda: calls.append(1))
        return updates + state, updates + state

    inner = optax.GradientTransformation(jnp.zeros_like, inner_update)
    optimizer = optax.chain(
        optax.conditionally_transform(inner, lambda step: step % 3 == 0),
        optax.conditionally_transform(optax.trace(0.5), lambda step: step % 3 != 0),
    )
    expected, total, memory = [], 0.0, 0.0
    for step, gradient in enumerate(GRADS):
        total, memory = (
            (total + gradient, memory) if step % 3 == 0 else (total, gradient + 0.5 * memory)
        )
        expected.append(memory if step % 3 else total)
    np.testing.assert_allclose(run(optimizer), expected, rtol=0, atol=1e-6)
    jax.effects_barrier()
    assert len(calls) == 3


def grokfast_by_hand(slow, strength):
    return [g + strength * slow(GRADS[: t + 1].astype(np.float64)) for t, g in enumerate(GRADS)]


def test_grokfast_ema_equals_a_numpy_loop():
    def average(grads):
        return functools.reduce(lambda slow, g: 0.9 * slow + (1 - 0.9) * g, grads[1:], grads[0])

    actual = run(grokfast_ema(decay=0.9, strength=2.0))
    np.testing.assert_allclose(actual, grokfast_by_hand(average, 2.0), rtol=0, atol=1e-5)
    np.testing.assert_allclose(actual[0], 3 * GRADS[0], rtol=1e-6)


@pytest.mark.parametrize("warmup", [True, False])
def test_grokfast_ma_equals_a_numpy_loop(warmup):
    def mean(grads):
        return 0.0 if warmup and len(grads) < 4 else np.mean(grads[-4:], axis=0)

    actual = run(grokfast_ma(window=4, strength=5.0, warmup=warmup))
    np.testing.assert_allclose(actual, grokfast_by_hand(mean, 5.0), rtol=0, atol=1e-5)


def test_grokfast_defaults_are_the_published_ones():
    grads = np.ones((101, 1), np.float32)
    ema, ma = run(grokfast_ema(), grads), run(grokfast_ma(), grads)
    np.testing.assert_allclose(ema, 3.0, rtol=1e-6)
    np.testing.assert_allclose(ma[:, 0], [1.0] * 99 + [6.0] * 2, rtol=1e-6)


@pytest.mark.parametrize(
    "transformation", [blend_in(grokfast_ema(), 0.5), grokfast_ema(), grokfast_ma(window=2)]
)
def test_a_gradient_may_be_missing(transformation):
    """None in place of a leaf's gradient: no update, and the state keeps its shape."""
    tree = {"there": jnp.ones((2, 3)), "missing": jnp.ones(3)}
    start = transformation.init(tree)
    updates, state = jax.jit(transformation.update)(tree | {"missing": None}, start)
    assert updates["missing"] is None
    chex.assert_trees_all_equal_shapes_and_dtypes(state, start)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: run(switch_off(optax.identity(), optax.identity(), threshold=0.5)), "metric="),
        (lambda: blend_in(optax.identity(), 100), r"\[0, 1\], got 100.*linear_schedule"),
        (lambda: grokfast_ema(decay=1.0), r"\[0, 1\), got 1.0"),
        (lambda: grokfast_ema(strength=-1.0), "negative, got -1.0"),
        (lambda: grokfast_ma(strength=-1), "negative, got -1"),
        (lambda: grokfast_ma(window=0), "at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
