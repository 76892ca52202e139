"""What accelerators run: the other branches, on CPU; and programs for them, which are read."""

import re

import helpers
import jax
import jax.numpy as jnp
import matrices
import numpy as np
import pytest
from helpers import DISTINCT
from jax import export

from egd_optax import polar
from egd_optax.polar._stacks import init_stack, update_stack


def elsewhere(*args, default, **platforms):
    """Take the branch that no platform has for itself."""
    return default(*args)


@pytest.mark.parametrize(
    ("method", "bound"),
    [
        (polar.SVD(), 2e-5),
        (polar.Auto(), 2e-5),
        (polar.NewtonSchulz("polar_express"), 1e-4),
        (polar.NewtonSchulz("three_steps"), 3e-3),
    ],
    ids=repr,
)
def test_factors_of_the_other_branches(method, bound, monkeypatch):
    """Off by eps times the condition of 100, a few times for polynomials, more for long steps."""
    monkeypatch.setattr(jax.lax, "platform_dependent", elsewhere)
    shape = (3, 43, 71)  # of no other test: what is compiled here has these branches
    spectrum = np.logspace(0, -2, 43)
    stack = np.stack([matrices.with_spectrum(shape[1:], spectrum, seed) for seed in range(3)])
    factors = polar.polar_factor(jnp.asarray(stack, jnp.float32), method)
    rows = getattr(method, "rows", None)
    gains = helpers.composed(rows, spectrum / np.linalg.norm(spectrum)) if rows else np.ones(43)
    for matrix, factor in zip(stack, factors, strict=True):
        u, _, vh = np.linalg.svd(np.float64(matrix), full_matrices=False)
        assert np.linalg.norm(factor - (u * gains) @ vh, 2) <= bound


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
@pytest.mark.parametrize(
    "method", [polar.SVD(), polar.Halley(), polar.Randomized(8), polar.SubspaceIteration(8)]
)
def test_products_have_full_precision(method, platform):
    """By default an H100 has 10 bits of a float32, a TPU 8: an exact factor would be none."""
    step = jax.jit(lambda stack: polar.polar_factor(stack, method))
    traced = step.trace(jax.ShapeDtypeStruct((2, 40, 56), jnp.float32))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert products
    assert all("HIGHEST" in line for line in products)


def program(method, platform, shape):
    """StableHLO of one step on a stack."""
    stack = jax.ShapeDtypeStruct(shape, jnp.float32)
    state = init_stack(method, stack)
    step = jax.jit(lambda stack: update_stack(method, stack, state)[0])
    return export.export(step, platforms=[platform])(stack).mlir_module()


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
@pytest.mark.parametrize("method", DISTINCT, ids=repr)
def test_lowers_for_accelerators(method, platform):
    program(method, platform, (2, 40, 56))


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_the_default_takes_no_svd_on_accelerators(platform):
    """Nor eigenvalues; and stacks go through at once, without a loop over the matrices."""
    for shape in ((2, 8, 8), (2, 80, 120)):
        text = program(polar.Auto(), platform, shape)
        calls = re.findall(r"custom_call @(\w+)", text)
        assert not [call for call in calls if re.search("svd|gesdd|eigh|syev|qr", call, re.I)]
        assert "stablehlo.while" not in text


@pytest.mark.parametrize("platform", ["cuda", "rocm", "tpu"])
def test_polynomial_steps_are_taken_one_by_one_on_accelerators(platform):
    """Where products are less precise than their dtype, longer runs on one Gram matrix diverge."""
    text = program(polar.NewtonSchulz(steps=5), platform, (2, 40, 160))
    products = len(re.findall("stablehlo.dot_general", text))
    squares = len(re.findall("call @commuting_product", text))
    assert products - 1 + squares == 5 * 3  # the square is a function's, which each step calls
