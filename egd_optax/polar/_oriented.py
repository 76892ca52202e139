"""Orientation, scale, zero and non-finite matrices: the one place."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from egd_optax.polar._linalg import working_dtype


class Oriented(NamedTuple):
    """A matrix in canonical form, and the way back.

    `x` is wide, m <= n, and finite; its largest entry lies in [1, 2), scaled by a power of two,
    hence exactly. Where `usable` is False, for zero and non-finite matrices, `x` is a constant, and
    `restore` gives `instead`, 0 or NaN.
    """

    x: jax.Array
    usable: jax.Array
    instead: jax.Array
    original: jax.Array

    def restore(self, factor: jax.Array) -> jax.Array:
        """Return the wide `(m, n)` factor in the original's orientation and dtype."""
        turned = factor if factor.shape == self.original.shape else factor.mT
        return jnp.where(self.usable, turned, self.instead).astype(self.original.dtype)


def orient(matrix: jax.Array, dtype: jax.typing.DTypeLike | None = None) -> Oriented:
    """Return the canonical form of `matrix` in `dtype`, by default its own, at least float32."""
    wide = matrix.shape[0] <= matrix.shape[1]
    x = (matrix if wide else matrix.mT).astype(working_dtype(matrix.dtype))
    largest = jnp.max(jnp.abs(x))
    usable = jnp.isfinite(largest) & (largest > 0)
    # Factors do not depend on the scale, so neither do derivatives; 1 / unit^2 would overflow.
    unit = jax.lax.stop_gradient(_power_of_two(jnp.where(usable, largest, jnp.ones_like(largest))))
    harmless = jnp.eye(x.shape[0], x.shape[1], dtype=x.dtype)
    x = jnp.where(usable, x / unit.astype(x.dtype), harmless)
    x = x if dtype is None else x.astype(dtype)  # after scaling: short dtypes have a short range
    return Oriented(x, usable, jnp.where(largest == 0, 0, jnp.nan).astype(x.dtype), matrix)


def _power_of_two(value: jax.Array) -> jax.Array:
    """Return the largest power of two at most `value` > 0 whose reciprocal is not denormal."""
    mantissa, _ = jnp.frexp(value)
    return jnp.minimum(value / (2 * mantissa), 1 / jnp.finfo(value.dtype).tiny)
