"""The derivative of the polar factor by an SVD."""

import jax
import jax.numpy as jnp
import matrices
import numpy as np
import pytest
import reference

from egd_optax import polar

RTOL = 1e-2
SPECTRA = {
    "distinct": np.linspace(1, 0.5, 12),
    "equal": np.ones(12),
    "pairs": np.repeat(np.linspace(1, 0.5, 6), 2),
    "some cut": np.r_[np.linspace(1, 0.5, 8), np.full(4, 1e-3)],
    "of low rank": np.r_[np.ones(8), np.zeros(4)],
}


def polar_with_cut(matrix):
    """U V^H over the singular values above RTOL, complex or not, in double precision."""
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return u[:, s > RTOL] @ vh[s > RTOL]


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("name", SPECTRA)
def test_derivative(name, dtype):
    """Along a random direction, against central differences in float64; 1e-3 of the largest slope.

    Rounding of the entries moves slopes by some eps times the inverse of the least gap, 2 at worst.
    """
    matrix = matrices.with_spectrum((12, 20), SPECTRA[name], 0, dtype)
    direction = matrices.with_spectrum((12, 20), np.ones(12), 1, dtype)
    _, actual = jax.jvp(
        lambda x: polar.polar_factor(x, polar.SVD(RTOL)),
        (jnp.asarray(matrix),),
        (jnp.asarray(direction),),
    )
    double = np.complex128 if dtype == np.complex64 else np.float64
    step = 1e-6 * direction.astype(double)
    plus, minus = (polar_with_cut(matrix.astype(double) + s) for s in (step, -step))
    expected = (plus - minus) / 2e-6
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_reverse_mode_is_the_adjoint_of_forward_mode():
    matrix, direction, weights = (
        jnp.asarray(matrices.with_spectrum((12, 20), np.ones(12), seed)) for seed in range(3)
    )
    _, forward = jax.jvp(lambda x: polar.polar_factor(x, polar.SVD()), (matrix,), (direction,))
    reverse = jax.grad(lambda x: jnp.vdot(weights, polar.polar_factor(x, polar.SVD())))(matrix)
    np.testing.assert_allclose(jnp.vdot(weights, forward), jnp.vdot(reverse, direction), rtol=1e-4)


def test_second_derivative():
    """Of distinct singular values, against differences of the first one; float32 leaves 1e-3."""
    matrix = jnp.asarray(matrices.with_spectrum((6, 9), np.linspace(2, 1, 6)))
    direction, weights = (
        jnp.asarray(matrices.with_spectrum((6, 9), np.ones(6), seed)) for seed in (1, 2)
    )
    slope = jax.jit(jax.grad(lambda x: jnp.vdot(weights, polar.polar_factor(x, polar.SVD()))))
    _, actual = jax.jvp(slope, (matrix,), (direction,))
    expected = (slope(matrix + 1e-2 * direction) - slope(matrix - 1e-2 * direction)) / 2e-2
    np.testing.assert_allclose(actual, expected, rtol=0, atol=5e-3)


def test_reference_agrees():
    """The ruler of this module and that of the others."""
    matrix = matrices.with_spectrum((12, 20), SPECTRA["some cut"])
    np.testing.assert_allclose(
        polar_with_cut(matrix.astype(np.float64)), reference.polar64(matrix, RTOL), atol=1e-12
    )
