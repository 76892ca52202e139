"""Rank tolerances of dtypes."""

import jax.numpy as jnp
import matrices
import numpy as np
import pytest

from egd_optax import polar
from egd_optax.polar._linalg import resolve_rtol, working_dtype


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(jnp.float32, 1e-5), (jnp.complex64, 1e-5), (jnp.float64, 1.9e-14), (jnp.bfloat16, 2**-7)],
)
def test_default_tolerance(dtype, rtol):
    np.testing.assert_allclose(resolve_rtol(None, dtype), rtol, rtol=0.02)
    assert resolve_rtol(0.25, dtype) == 0.25


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_rounding_to_a_short_dtype_stays_below_its_tolerance(dtype):
    """Singular values move by at most its norm: .85 eps / 2 sigma_1 for flat spectra, the worst."""
    for shape in ((64, 64), (48, 160), (256, 256)):
        flat = matrices.with_spectrum(shape, np.ones(min(shape)))
        rounding = np.float64(np.asarray(jnp.asarray(flat, dtype), np.float32)) - flat
        assert np.linalg.norm(rounding, 2) <= 0.9 * resolve_rtol(None, dtype) / 2


def test_methods_compute_short_dtypes_by_the_tolerance_of_float32():
    """A direction at 1e-3 sigma_1 is below bfloat16's own tolerance, and still whitened."""
    assert working_dtype(jnp.bfloat16) == jnp.float32
    diagonal = jnp.diag(jnp.asarray([1.0, 2.0**-10, 0.0], jnp.bfloat16))
    for method in (polar.SVD(), polar.Halley()):
        factor = np.asarray(polar.polar_factor(diagonal, method), np.float32)
        np.testing.assert_array_equal(factor, np.diag([1.0, 1.0, 0.0]))
