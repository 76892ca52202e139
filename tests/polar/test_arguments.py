"""Arguments that are refused, with the rule and the value."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egd_optax import polar


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: polar.SVD(rtol=-1e-3), "rtol .* got -0.001"),
        (lambda: polar.SVD(rtol="x"), "rtol .* got 'x'"),
        (lambda: polar.Randomized(2, seed=2**32), "below 2"),
        (lambda: polar.NewtonSchulz(dtype=jnp.int32), "floating-point"),
        (lambda: polar.Auto(rtol=1.0), "rtol .* got 1.0"),
        (lambda: polar.Halley(rtol=float("nan")), "rtol"),
        (
            lambda: polar.NewtonSchulz("muon"),
            "polar_express, standard, dion, jordan, you, got 'muon'",
        ),
        (lambda: polar.NewtonSchulz(steps=0), "steps .* at least 1, got 0"),
        (lambda: polar.NewtonSchulz(((1.0, 2.0),)), "rows"),
        (lambda: polar.NewtonSchulz(5), "rows .* got 5"),
        (lambda: polar.NewtonSchulz(np.zeros((0, 3))), "rows"),
        (lambda: polar.NewtonSchulz(((1.0, 2.0, np.nan),)), "finite rows"),
        (lambda: polar.NewtonSchulz(dtype="bf16"), "floating-point type .* got 'bf16'"),
        (lambda: polar.NewtonSchulz(dtype=jnp.float8_e5m2), "at least 16 bits"),
        (lambda: polar.Randomized(4, rtol=0.5), "rtol .* got 0.5"),
        (lambda: polar.SubspaceIteration(4, rtol=-1), "rtol .* got -1"),
        (lambda: polar.Randomized(0), "rank .* at least 1, got 0"),
        (lambda: polar.Randomized(4, residual="none"), "residual must be one of drop, keep"),
        (lambda: polar.polar_factor(jnp.ones(3)), r"\(\*batch, m, n\), got .*\(3,\)"),
        (lambda: polar.polar_express_coefficients(0), "steps .* at least 1, got 0"),
        (lambda: polar.polar_express_coefficients(2.5), "steps .* integer"),
        (lambda: polar.polar_express_coefficients(2, safety=np.inf), "safety \\[1, 2"),
    ],
)
def test_bad_values_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (polar.Halley, "rtol"),
        (polar.Randomized, "rank"),
        (lambda n: polar.NewtonSchulz(steps=n), "steps"),
    ],
)
def test_an_array_in_place_of_a_number_is_told_of_static_args(make, name):
    """So they arrive under optax.inject_hyperparams, traced or not."""
    for call in (make, jax.jit(lambda value: make(value) and value)):
        with pytest.raises(TypeError, match=f'{name} must be a Python value.*"{name}" to static'):
            call(jnp.asarray(4))
