"""Orientation, working dtype, scale, zero and non-finite matrices: the one place."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Kernel = Callable[[jax.Array], jax.Array]

# A product formed in floating point leaves round-off near 10 eps sigma_1, and LAPACK's SVD
# resolves directions well above that; docs/epsilon-rank-noise.md has the measurements.
_RTOL_IN_EPS = 84.0


def adjoint(matrix: jax.Array) -> jax.Array:
    """Return the conjugate transpose over the last two axes."""
    return jnp.conj(matrix.mT)


def working_dtype(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """Return the dtype to compute in: `dtype` itself, or float32 for shorter ones."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def default_rtol(dtype: jax.typing.DTypeLike) -> float:
    """Return the default rank tolerance: 84 eps, 1e-5 in float32 and 1.9e-14 in float64."""
    return _RTOL_IN_EPS * float(jnp.finfo(dtype).eps)


def resolve_rtol(rtol: float | None, dtype: jax.typing.DTypeLike) -> float:
    """Return `rtol`, or the default of `dtype` for None."""
    return default_rtol(dtype) if rtol is None else rtol


def oriented(
    kernel: Kernel, matrix: jax.Array, dtype: jax.typing.DTypeLike | None = None
) -> jax.Array:
    """Apply `kernel` to the canonical form of `matrix` and undo the form.

    The kernel sees a wide `(m, n)`, m <= n, matrix of finite numbers in `dtype`
    (default: the matrix's own, at least float32) whose largest entry lies in [1, 2).
    Scaling is by a power of two, hence exact. Zero matrices become zeros and
    non-finite ones NaN, whatever the kernel returns.
    """
    working = working_dtype(matrix.dtype) if dtype is None else dtype
    wide = matrix.shape[-2] <= matrix.shape[-1]
    x = (matrix if wide else matrix.mT).astype(working)
    largest = jnp.max(jnp.abs(x))
    usable = jnp.isfinite(largest) & (largest > 0)
    unit = _power_of_two(jnp.where(usable, largest, 1).astype(largest.dtype))
    factor = kernel(jnp.where(usable, x / unit.astype(working), _harmless(x)))
    factor = jnp.where(usable, factor, jnp.where(largest == 0, 0.0, jnp.nan).astype(working))
    return (factor if wide else factor.mT).astype(matrix.dtype)


def _power_of_two(value: jax.Array) -> jax.Array:
    """Return the largest power of two that is at most the positive `value`."""
    mantissa, _ = jnp.frexp(value)
    return value / (2 * mantissa)


def _harmless(x: jax.Array) -> jax.Array:
    """Return a constant matrix for the kernel to chew on where `x` has no polar factor."""
    return jnp.eye(x.shape[0], x.shape[1], dtype=x.dtype)
