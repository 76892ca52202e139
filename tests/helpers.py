"""Trees of gradients, the methods under test, and naive float64 NumPy to measure them against."""

import jax
import jax.numpy as jnp
import matrices
import numpy as np
from jax import experimental

from egd_optax import polar
from egd_optax._selection import leaves_with_path

# The latter before JAX 0.8.
enable_x64 = jax.enable_x64 if hasattr(jax, "enable_x64") else experimental.enable_x64


def gradient(shape=(24, 40), seed=0, decades=2.0):
    """A float32 matrix with singular values from 1 down to 10^-decades."""
    return jnp.asarray(matrices.with_spectrum(shape, np.logspace(0, -decades, min(shape)), seed))


def normal(tree, seed=0):
    """N(0, 1) entries: a float32 array for every shape in the tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32),
        tree,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def updates_of(optimizer, params, grads=None):
    """The updates of the first step; by default the parameters are the gradients, too."""
    grads = params if grads is None else grads
    return optimizer.update(grads, optimizer.init(params), params)[0]


def moved(optimizer, params):
    """Paths of the leaves that an optimizer updates."""
    return {path for path, leaf in leaves_with_path(updates_of(optimizer, params)) if np.any(leaf)}


EXACT = [polar.SVD(), polar.Halley(), polar.Auto()]
POLYNOMIAL = [polar.NewtonSchulz()]
SKETCHES = [polar.Randomized(8, residual="keep"), polar.SubspaceIteration(8)]
METHODS = [*EXACT, *POLYNOMIAL, *SKETCHES]
# Auto is one of the others, and every method compiles anew for each shape.
DISTINCT = [method for method in METHODS if method != polar.Auto()]

_factor = jax.jit(polar.polar_factor, static_argnums=1)


def factor(matrix, method):
    """The polar factor, compiled once a method and shape for all tests of a process."""
    return _factor(jnp.asarray(matrix), method)


def polar64(matrix, rtol=1e-5):
    """U V^H over the singular values above rtol * sigma_1, straight from the definition."""
    u, s, vh = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    keep = s > rtol * s.max(initial=0)
    return u[:, keep] @ vh[keep]


def gain_matrix(matrix, factor):
    """U^T P V and the relative singular values, with U, s, V of `matrix` in float64."""
    u, s, vh = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return u.T @ np.asarray(factor, np.float64) @ vh.T, s / s.max()


def composed(rows, x):
    """The composed polynomial at `x`: gain times x of exact arithmetic."""
    for row in rows:
        x = sum(number * x ** (2 * k + 1) for k, number in enumerate(row))
    return x


def relative_error(actual, expected):
    return np.linalg.norm(np.asarray(actual, np.float64) - expected) / np.linalg.norm(expected)
