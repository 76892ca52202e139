"""Configs and optimizers: what they refuse, the chains they name, the controls by hand."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from egd_optax import scale_by_egd
from grokking import controls
from grokking.config import Config
from grokking.experiments import PAPER
from grokking.optimizers import Optimizer
from grokking.tasks import Mnist, ModularArithmetic

RANDOM = np.random.default_rng(0)
GRADIENTS = RANDOM.standard_normal((9, 4, 6)).astype(np.float32)
KERNEL = {"hidden": {"kernel": jnp.asarray(RANDOM.standard_normal((4, 6)), jnp.float32)}}


def run(transformation, gradients=GRADIENTS, metrics=None):
    """Return the updates of all steps, under jit and scan."""
    transformation = optax.with_extra_args_support(transformation)
    metrics = jnp.zeros(len(gradients)) if metrics is None else jnp.float32(metrics)

    def step(state, given):
        gradient, metric = given
        tree = {"hidden": {"kernel": gradient}}
        updates, state = transformation.update(tree, state, KERNEL, metric=metric)
        return state, updates["hidden"]["kernel"]

    given = jnp.asarray(gradients), metrics
    return np.asarray(jax.jit(lambda: jax.lax.scan(step, transformation.init(KERNEL), given)[1])())


def by_name(name, **settings):
    return Optimizer(name, {"learning_rate": 1.0, **settings}).build()


@pytest.mark.parametrize("name", PAPER)
def test_a_config_survives_json(name):
    config = PAPER[name]
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "adamw"}, "optimizer must be one of plain, egd, .*; got 'adamw'"),
        ({"rang": 3}, "egd takes learning_rate, method, .*; got rang"),
        ({"optimizer": "scaled"}, "scaled needs rank, got none"),
        ({"method": "qr"}, "method must be one of auto, svd, .*; got 'qr'"),
        ({"method": "randomized"}, "randomized needs exactly these .*: rank; got none"),
        ({"method": "svd", "rank": 4}, "svd needs exactly these .*: none; got rank"),
        ({"method": "floored", "floor": 0.0}, "floor must be positive, got 0.0"),
        ({"optimizer": "scaled", "rank": 0}, "rank must be at least 1, got 0"),
        ({"every": 0}, "every must be at least 1, got 0"),
        ({"blend_steps": -1}, "blend_steps must be at least 0, got -1"),
        ({"warmup_steps": -1}, "warmup_steps must be at least 0, got -1"),
        ({"switch_off": 95.0}, r"switch_off must lie in \[0, 1\], got 95.0; 95 % is 0.95"),
        ({"average": 1.0}, r"average is a decay rate and must lie in \[0, 1\), got 1.0"),
        ({"b2": 1.0}, r"b2 is a decay rate and must lie in \[0, 1\), got 1.0"),
        ({"matrices": "some"}, "matrices must be one of first, all, feed_forward"),
        ({"base": "lion"}, "base must be one of sgd, adam"),
        ({"decay": "none"}, "decay must be one of coupled, between, decoupled"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive .*, got nan"),
        ({"weight_decay": -1.0}, "weight_decay not negative, got 0.7 and -1.0"),
        ({"batch_size": 25}, "batch_size=25 with 24 training examples; lower"),
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"seed": -1}, "seed must be at least 0 and below .*, got -1"),
        ({"seed": 2**32}, "below 2.*32, got 4294967296"),  # JAX would take it for seed 0
        ({"spectra_at": (0, 4)}, r"spectra_at must lie in \[0, epochs\], got .* with epochs=3"),
        ({"spectra_at": (-1,)}, r"spectra_at must lie in \[0, epochs\]"),
        ({"target": 95.0}, r"target is an accuracy and must lie in \(0, 1\], got 95.0"),
        ({"measure_every": 2}, "must be multiples of measure_every, got 3"),
        (
            {"measure_every": 3, "task": Mnist(50, shuffle_every=20)},
            "shuffle_every must be a multiple of measure_every, .*; got 20 .*=3; change one",
        ),
    ],
)
def test_impossible_settings_are_refused(tiny, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny.changed(**changes)


@pytest.mark.parametrize("values", [{}, {"task": {"kind": "sorting"}, "optimizer": {}}])
def test_what_is_no_config_is_refused(values):
    with pytest.raises(ValueError, match="do not make a Config"):
        Config.from_dict(values)


def test_another_optimizer_keeps_the_settings_that_it_takes(tiny):
    plain = tiny.changed(optimizer="plain", learning_rate=0.1)
    settings = plain.optimizer.settings
    assert (settings["learning_rate"], settings["weight_decay"]) == (0.1, 1e-4)
    assert "switch_off" not in settings
    assert plain.changed(task=ModularArithmetic(p=11)).task.p == 11


# Chains


def adam_peer():
    return optax.adam(optax.linear_schedule(0.05, 0.1, 1), b2=0.98)


@pytest.mark.parametrize(
    ("name", "decay", "peer"),
    [
        (
            "plain",
            "decoupled",
            lambda: optax.adamw(optax.linear_schedule(0.05, 0.1, 1), b2=0.98, weight_decay=0.3),
        ),
        (
            "grokfast_ema",
            "between",
            lambda: optax.chain(
                controls.grokfast_ema(), optax.add_decayed_weights(0.3), adam_peer()
            ),
        ),
        (
            "egd",
            "coupled",
            lambda: optax.chain(optax.add_decayed_weights(0.3), scale_by_egd(), adam_peer()),
        ),
    ],
)
def test_decay_joins_where_it_says(name, decay, peer, optax_promotes):
    """Three steps: the warm-up of two is over, the averages have a past."""
    settings = {"base": "adam", "b2": 0.98, "learning_rate": 0.1, "warmup_steps": 2}
    own = Optimizer(name, settings | {"weight_decay": 0.3, "decay": decay}).build()
    np.testing.assert_allclose(run(own, GRADIENTS[:3]), run(peer(), GRADIENTS[:3]), rtol=1e-5)


@pytest.mark.parametrize(("latched", "used"), [(True, "wggg"), (False, "wgwg")])
def test_switch_off_follows_the_metric(latched, used):
    """Up to the threshold whitened (w), above it the gradient (g), for good if latched."""
    switched = run(
        by_name("egd", switch_off=0.95, latched=latched), GRADIENTS[:4], [0.95, 0.96, 0.5, 0.99]
    )
    whitened = run(by_name("egd"), GRADIENTS[:4])
    expected = [whitened[i] if kind == "w" else -GRADIENTS[i] for i, kind in enumerate(used)]
    np.testing.assert_allclose(switched, expected, atol=1e-6)


def test_other_ways_to_whiten():
    whitened = -run(by_name("egd"))
    every = np.where(np.arange(9)[:, None, None] % 3 == 0, whitened, GRADIENTS)
    np.testing.assert_allclose(-run(by_name("egd", every=3)), every, atol=1e-6)
    share = np.minimum(np.arange(9) / 4, 1.0)[:, None, None]
    blended = (1 - share) * GRADIENTS + share * whitened
    np.testing.assert_allclose(-run(by_name("egd", blend_steps=4)), blended, atol=1e-6)
    weights = [0.1 * 0.9 ** np.arange(step, -1, -1) for step in range(9)]
    averages = [np.tensordot(w, GRADIENTS[: len(w)], 1) for w in weights]
    factors = [u @ vh for u, _, vh in (np.linalg.svd(m, full_matrices=False) for m in averages)]
    np.testing.assert_allclose(-run(by_name("egd", average=0.9)), factors, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "gain"),
    [
        (controls.fractional(0.5), lambda s: np.where(s > 0, s, 1) ** 0.5 * (s > 0)),
        (controls.fractional(-0.5), lambda s: np.where(s > 0, s, 1) ** -0.5 * (s > 0)),
        (controls.floored(0.5), lambda s: s / np.maximum(s, 0.5)),
    ],
)
def test_fractional_and_floored_whitening(method, gain):
    u, v = (np.linalg.qr(np.random.default_rng(i).normal(size=(5, 4)))[0] for i in (0, 1))
    s = np.array([2.0, 1.0, 0.25, 0.0])
    found = method(jnp.asarray(u * s @ v.T, jnp.float32))
    np.testing.assert_allclose(found, u * gain(s) @ v.T, atol=1e-5)


# Controls


def test_columns_are_normalized_down_to_the_floor():
    gradient = np.zeros((1, 4, 6), np.float32)
    gradient[0, :2, :2] = [[3.0, 0.003], [4.0, 0.004]]
    found = -run(by_name("column_norm"), gradient)
    np.testing.assert_allclose(found[0, :2, :2], [[0.6, 0.3], [0.8, 0.4]], rtol=1e-6)


def test_a_scaled_gradient_has_the_length_of_a_whitened_one():
    found = -run(by_name("scaled", rank=4))
    np.testing.assert_allclose(np.linalg.norm(found, axis=(1, 2)), 2.0, rtol=1e-5)
    factors = found / GRADIENTS
    np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1, :1], found.shape), rtol=1e-5)


def test_grokfast_equals_a_numpy_loop():
    def ema(seen):
        return functools.reduce(lambda slow, g: 0.9 * slow + 0.1 * g, seen[1:], seen[0])

    def ma(seen):
        return 0.0 if len(seen) < 4 else np.mean(seen[-4:], axis=0)

    for transformation, slow, strength in (
        (controls.grokfast_ema(0.9, 2.0), ema, 2.0),
        (controls.grokfast_ma(4, 5.0), ma, 5.0),
    ):
        seen = GRADIENTS.astype(np.float64)
        expected = [g + strength * slow(seen[: t + 1]) for t, g in enumerate(seen)]
        np.testing.assert_allclose(run(transformation), expected, atol=1e-5)


def test_grokfast_defaults_are_the_published_ones():
    ones = np.ones((101, 4, 6), np.float32)
    np.testing.assert_allclose(run(controls.grokfast_ema(), ones), 3.0, rtol=1e-6)
    windowed = run(controls.grokfast_ma(), ones)[:, 0, 0]
    np.testing.assert_allclose(windowed, [1.0] * 99 + [6.0] * 2, rtol=1e-6)
