"""The methods under test, and their factors; a new method belongs into one of these lists."""

import jax
import jax.numpy as jnp

from egd_optax import polar

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
