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
    "head": {"kernel": (8, 11)},
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
    for layer in range(3):
        x = x + jnp.tanh(x @ params["layers"]["kernel"][layer] + params["layers"]["bias"][layer])
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
    "three steps, a schedule": (
        {"ns_coeffs": "standard", "ns_steps": 3, "learning_rate": SCHEDULE},
        newton_schulz("standard", 3) | {"rate": SCHEDULE},
    ),
    "dion, consistent_rms=.2": (
        {"ns_coeffs": "dion", "consistent_rms": 0.2},
        newton_schulz("dion") | {"scale": "consistent_rms"},
    ),
    "a triple, consistent_rms=.5": (
        {"ns_coeffs": STEP, "ns_steps": 4, "consistent_rms": 0.5},
        newton_schulz([STEP], 4) | {"scale": lambda m, n: 0.5 * max(m, n) ** 0.5},
    ),
    "a row for each step": ({"ns_coeffs": ROWS}, newton_schulz(ROWS)),
    "no look-ahead": (
        {"nesterov": False, "beta": 0.8},
        {"nesterov": False, "momentum": 0.8, "others": optax.adamw(0.02, weight_decay=0.0)},
    ),
    "decay": ({"weight_decay": 0.1}, {"weight_decay": 0.1}),
    "Adam's own": (
        {"adam_learning_rate": 0.003, "adam_b1": 0.8, "adam_b2": 0.99, "adam_weight_decay": 0.2},
        {"others": optax.adamw(0.003, 0.8, 0.99, weight_decay=0.2, nesterov=True)},
    ),
    "dimension numbers": ({"muon_weight_dimension_numbers": numbers}, {"axes": numbers}),
}


def muon(**arguments):
    """Optax's, or skip where this version lacks an argument or a name."""
    known = inspect.signature(optax.contrib.muon).parameters
    preset = isinstance(arguments.get("ns_coeffs"), str)
    if {*arguments} - {*known} or (preset and not hasattr(optax.contrib, "MuonDimensionNumbers")):
        pytest.skip("this Optax has no such setting")
    return optax.contrib.muon(**{"learning_rate": 0.02} | arguments)


gradients = jax.jit(jax.grad(loss))


def stepper(optimizer):
    """A function from parameters, state and batches to the next parameters and state."""

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def run(params, state, batches):
        for batch in batches:
            params, state = step(params, state, gradients(params, batch))
        return params, state

    return run


@pytest.mark.parametrize("name", CASES)
def test_the_same_steps_and_a_run_that_is_switched(name):
    """50 steps: Optax's, ours, and Optax's for 25 and ours from there on."""
    arguments, changed = CASES[name]
    theirs, ours = muon(**arguments), muons(**changed)
    run_theirs, run_ours = stepper(theirs), stepper(ours)
    with jax.numpy_rank_promotion("allow"):
        middle = run_theirs(PARAMS, theirs.init(PARAMS), BATCHES[:25])
        expected, _ = run_theirs(*middle, BATCHES[25:])
        whole, state = run_ours(PARAMS, ours.init(PARAMS), BATCHES)
        taken = from_muon(middle[1], ours.init(PARAMS))
        switched, last = run_ours(middle[0], taken, BATCHES[25:])
    assert np.abs(expected["tokens"] - PARAMS["tokens"]).max() > 0.1
    chex.assert_trees_all_close(whole, expected, atol=1e-4)
    chex.assert_trees_all_close(switched, expected, atol=1e-4)
    chex.assert_trees_all_equal_shapes_and_dtypes(last, state)
