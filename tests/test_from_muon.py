"""Muon's setting of egd takes the steps of optax.contrib.muon, and goes on from its state."""

import functools
import inspect
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from helpers import normal

from egd_optax import MatrixAxes, egd, from_muon, polar

pytestmark = pytest.mark.usefixtures("quick_compilation", "optax_promotes")
if not hasattr(optax.contrib, "muon"):
    pytest.skip("this Optax has no Muon", allow_module_level=True)

# A network with all kinds of leaves: matrices, a stack of layers, heads of attention, vectors.
SHAPES = {
    "tokens": (11, 8),
    "query": {"kernel": (8, 2, 4), "bias": (2, 4)},
    "layers": {"kernel": (3, 8, 8), "bias": (3, 8)},
    "wide": {"kernel": (8, 20), "bias": (20,)},
    "head": {"kernel": (20, 11)},
}
PARAMS = jax.tree.map(lambda leaf: leaf / 3, normal(SHAPES))
BATCHES = jax.random.randint(jax.random.key(0), (50, 6, 5), 0, 11)
STEP = (1.5, -0.5, 0.0)
ROWS = polar.polar_express_coefficients(5, lower=1e-3)
SCHEDULE = optax.linear_schedule(0.04, 0.01, 50)


def loss(params, tokens):
    """Predict the next token."""
    x = params["tokens"][tokens]
    query = jnp.einsum("btd,dhk->bthk", x, params["query"]["kernel"]) + params["query"]["bias"]
    keys = x.reshape(query.shape)
    weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", query, keys))
    x = x + jnp.einsum("bhts,bshk->bthk", weights, keys).reshape(x.shape)
    for kernel, bias in zip(*params["layers"].values(), strict=True):
        kernel, bias = (kernel, bias) if kernel.ndim == 2 else (bias, kernel)
        x = x + jnp.tanh(x @ kernel + bias)
    x = jnp.tanh(x @ params["wide"]["kernel"] + params["wide"]["bias"])
    logits = (x @ params["head"]["kernel"])[:, :-1]
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def two_axes(params):
    """Muon's own choice: leaves of two axes, whatever they are."""
    return jax.tree.map(lambda leaf: MatrixAxes(0, 1) if leaf.ndim == 2 else None, params)


def numbers(params):
    """Stacked layers, attention's heads as one matrix, and a head of the network for Adam."""
    make, none = optax.contrib.MuonDimensionNumbers, jax.tree.map(lambda leaf: None, params)
    return none | {
        "query": {"kernel": make(0, (1, 2)), "bias": None},
        "layers": {"kernel": make(-2, -1), "bias": None},
        "wide": {"kernel": make(0, 1), "bias": None},
    }


def muons(rate=0.02, **changed):
    """Muon's setting, as in docs/guides/from-muon.md."""
    setting = {
        "method": polar.NewtonSchulz("standard"),
        "momentum": 0.95,
        "nesterov": True,
        "decay": "decoupled",
        "axes": two_axes,
        "scale": "muon",
        "others": optax.adamw(rate, weight_decay=0.0, nesterov=True),
    }
    return egd(rate, **setting | changed)


def newton_schulz(*arguments):
    return {"method": polar.NewtonSchulz(*arguments)}


CASES = {
    "defaults": ({}, {}),
    "standard": ({"ns_coeffs": "standard", "ns_steps": 3}, newton_schulz("standard", 3)),
    "dion": ({"ns_coeffs": "dion"}, newton_schulz("dion")),
    "a triple": ({"ns_coeffs": STEP, "ns_steps": 4}, newton_schulz([STEP], 4)),
    "a row each": ({"ns_coeffs": ROWS}, newton_schulz(ROWS)),
    "no look-ahead": (
        {"nesterov": False, "beta": 0.8},
        {"nesterov": False, "momentum": 0.8, "others": optax.adamw(0.02, weight_decay=0.0)},
    ),
    "consistent_rms=.2": ({"consistent_rms": 0.2}, {"scale": "consistent_rms"}),
    "consistent_rms=.5": (
        {"consistent_rms": 0.5},
        {"scale": lambda m, n: 0.5 * max(m, n) ** 0.5},
    ),
    "decay": ({"weight_decay": 0.1}, {"weight_decay": 0.1}),
    "Adam's own": (
        {"adam_learning_rate": 0.003, "adam_b1": 0.8, "adam_b2": 0.99, "adam_weight_decay": 0.2},
        {"others": optax.adamw(0.003, 0.8, 0.99, weight_decay=0.2, nesterov=True)},
    ),
    "dimensions": ({"muon_weight_dimension_numbers": numbers}, {"axes": numbers}),
    "schedule": ({"learning_rate": SCHEDULE}, {"rate": SCHEDULE}),
}


def muon(**arguments):
    """Optax's, or skip where this version lacks an argument or a name."""
    known = inspect.signature(optax.contrib.muon).parameters
    preset = isinstance(arguments.get("ns_coeffs"), str)
    if {*arguments} - {*known} or (preset and not hasattr(optax.contrib, "MuonDimensionNumbers")):
        pytest.skip("this Optax has no such setting")
    return optax.contrib.muon(**{"learning_rate": 0.02} | arguments)


def runner(optimizer):
    """A function from parameters, state and batches to the next parameters and state."""

    def step(carry, batch):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda *carry, batches: jax.lax.scan(step, carry, batches)[0])


@pytest.mark.parametrize("name", CASES)
def test_the_same_steps_and_a_run_that_is_switched(name):
    """50 steps: Optax's, ours, and Optax's for 25 and ours from there on."""
    arguments, changed = CASES[name]
    theirs, ours = muon(**arguments), muons(**changed)
    run_theirs, run_ours = runner(theirs), runner(ours)
    half, rest = BATCHES[:25], BATCHES[25:]
    with jax.numpy_rank_promotion("allow"):
        middle = run_theirs(PARAMS, theirs.init(PARAMS), batches=half)
        expected, _ = run_theirs(*middle, batches=rest)
        whole, state = run_ours(*run_ours(PARAMS, ours.init(PARAMS), batches=half), batches=rest)
        taken = from_muon(middle[1], ours.init(PARAMS))
        switched, other_state = run_ours(middle[0], taken, batches=rest)
    assert np.abs(expected["wide"]["kernel"] - PARAMS["wide"]["kernel"]).max() > 0.1
    chex.assert_trees_all_close(whole, expected, atol=1e-4)
    chex.assert_trees_all_close(switched, expected, atol=1e-4)
    chex.assert_trees_all_equal_shapes_and_dtypes(other_state, state)
