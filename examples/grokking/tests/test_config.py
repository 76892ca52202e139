"""The settings of a run: what they refuse, and the optimizer that they ask for."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from egd_optax.grokking.config import Config
from egd_optax.grokking.optimizers import build_optimizer, spectral
from egd_optax.grokking.recipes import RECIPES
from egd_optax.grokking.tasks import ModularArithmetic

from egd_optax import grokfast_ema

TINY = Config(task=ModularArithmetic(p=7), width=16, batch_size=8, epochs=3)


def change(config=TINY, **fields):
    return dataclasses.replace(config, **fields)


@pytest.mark.parametrize("name", RECIPES)
def test_config_survives_json(name):
    config = RECIPES[name]
    assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gradient": "sgd"}, "gradient must be one of raw, egd, column_norm, .*; got 'sgd'"),
        ({"optimizer": "egd"}, "optimizer must be one of sgd, adam, .*; got 'egd'"),
        ({"matrices": "some"}, "matrices must be one of first, all, feed_forward"),
        ({"method": "qr"}, "method must be one of auto, svd, gram, newton_schulz, randomized"),
        ({"decay": "none"}, "decay must be one of coupled, between, decoupled"),
        ({"method": "randomized", "rank": 0}, "rank must be at least 1, got 0"),
        ({"method": "randomized"}, "needs a rank, got None"),
        (
            {"method": "svd", "rank": 4},
            "rank belongs to the randomized and streaming methods, got rank=4",
        ),
        ({"learning_rate": 0.0}, "learning_rate must be positive and finite, got 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate must be positive and finite, got nan"),
        ({"weight_decay": -1.0}, "weight_decay must be finite and not negative"),
        ({"batch_size": 25}, "batch_size=25 with 24 training examples"),
        ({"width": 0}, "width must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"target": 0.0}, r"target is an accuracy and must lie in \(0, 1\], got 0.0"),
        ({"switch_off": 95.0}, r"switch_off is an accuracy and must lie in \(0, 1\], got 95.0"),
        ({"seed": -1}, "seed must be at least 0, got -1"),
        ({"power": 0.5}, "power and floor belong to the svd method, got power=0.5"),
        ({"method": "svd", "floor": 0.0}, "floor must be positive and finite, got 0.0"),
        ({"gradient": "raw", "every": 2}, "every belong to the whitening, got gradient 'raw'"),
        ({"method": "svd", "power": 0.5, "floor": 1.0}, "power and floor are two ways"),
        ({"momentum": 1.0}, r"momentum must lie in \[0, 1\), got 1.0"),
        ({"measure_every": 2}, "epochs must be a multiple of measure_every, got 3"),
        ({"phases": 2, "target": None}, "phases must divide the epochs, got 2 with 3"),
        ({"phases": 3}, "a run with phases has no target to end at, got target=0.95"),
        (
            {"task": ModularArithmetic(p=7, encoding="tokens"), "spectra_at": (0,)},
            "another network",
        ),
        ({"spectra_at": (4,)}, "spectra_at must be multiples of measure_every up to epochs, got 4"),
    ],
)
def test_config_refuses_impossible_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        change(**fields)


@pytest.mark.parametrize("task", [{}, {"kind": "sorting"}, {"kind": "sparse_parity", "m": 3}])
def test_config_refuses_unknown_tasks_and_fields(task):
    with pytest.raises(ValueError, match=r"kind must be one of|do not make a Config"):
        Config.from_dict({"task": task})


def test_config_reads_the_logs_of_the_first_version():
    values = change(gradient="raw").to_dict()
    del values["gradient"]
    assert Config.from_dict({**values, "optimizer": "sgd"}) == change(gradient="raw")
    assert Config.from_dict({**values, "optimizer": "column_norm"}).gradient == "column_norm"


# The optimizer


def adam_peer(**settings):
    return optax.adam(optax.linear_schedule(0.05, 0.1, 1), b2=0.98, **settings)


@pytest.mark.parametrize(
    ("fields", "peer"),
    [
        (
            {"decay": "decoupled"},
            lambda: optax.adamw(optax.linear_schedule(0.05, 0.1, 1), b2=0.98, weight_decay=0.3),
        ),
        (
            {"decay": "between", "gradient": "grokfast_ema"},
            lambda: optax.chain(grokfast_ema(), optax.add_decayed_weights(0.3), adam_peer()),
        ),
        (
            {"decay": "coupled", "gradient": "grokfast_ema"},
            lambda: optax.chain(optax.add_decayed_weights(0.3), grokfast_ema(), adam_peer()),
        ),
    ],
)
def test_decay_joins_where_the_config_says(fields, peer, optax_promotes):
    """Three steps: the warm-up of two steps is over, the averages have a past."""
    settings = {"optimizer": "adam", "b2": 0.98, "learning_rate": 0.1, "warmup_steps": 2}
    config = change(
        **{"gradient": "raw", "switch_off": None, "weight_decay": 0.3, **settings, **fields}
    )
    params = {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]]), "bias": jnp.array([1.0, 2.0])}
    own, other = build_optimizer(config), optax.with_extra_args_support(peer())
    states = own.init(params), other.init(params)
    for step in range(3):
        gradients = jax.tree.map(lambda leaf: jnp.cos(leaf + step), params)  # noqa: B023
        updates, mine = own.update(gradients, states[0], params, metric=0.0)
        expected, theirs = other.update(gradients, states[1], params)
        states = mine, theirs
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), updates, expected)


@pytest.mark.parametrize(("power", "floor"), [(0.5, None), (-0.5, None), (1.0, None), (0.0, 0.5)])
def test_fractional_and_floored_whitening(power, floor):
    u, v = (np.linalg.qr(np.random.default_rng(i).normal(size=(5, 4)))[0] for i in (0, 1))
    s = np.array([2.0, 1.0, 0.25, 0.0])
    gains = (
        np.where(s > 0, np.maximum(s, 1e-9) ** power, 0)
        if floor is None
        else s / np.maximum(s, floor)
    )
    found = spectral(power, floor)(jnp.asarray(u * s @ v.T, jnp.float32))
    np.testing.assert_allclose(found, u * gains @ v.T, atol=1e-5)
