"""Dtypes and tolerances, products, Gram matrices and norms of matrices, real or complex."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

# A product formed in floating point leaves round-off up to about 10 eps sigma_1, and the exact
# methods resolve directions from 2 rtol on; tests/polar/test_accuracy.py holds both.
_RTOL_IN_EPS = 84.0
# CPU: up to this size a library's product takes over from blocks.
_LEAF = 128
# CPU: up to this size a product is spread over the cores only where its first matrix is transposed.
_TRANSPOSED = 208

product = functools.partial(jnp.matmul, precision="highest")


def working_dtype(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """Return the dtype to compute in: `dtype` itself, or float32 for shorter ones."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def resolve_rtol(rtol: float | None, dtype: jax.typing.DTypeLike) -> float:
    """Return `rtol`, or for None the default rank tolerance of a matrix stored in `dtype`.

    84 eps from 32 bits on: 1e-5 in float32, 1.9e-14 in float64. eps for shorter dtypes, where only
    the rounding of the entries counts, eps / 2 each: it moves singular values by at most about
    .85 eps / 2 sigma_1, the norm of the rounding of a matrix with a flat spectrum.
    """
    eps = float(jnp.finfo(dtype).eps)
    default = _RTOL_IN_EPS * eps if jnp.finfo(dtype).bits >= 32 else eps
    return default if rtol is None else rtol


def adjoint(matrix: jax.Array) -> jax.Array:
    """Return the conjugate transpose."""
    return jnp.conj(matrix.mT)


def gram(x: jax.Array, precision: jax.lax.PrecisionLike = "highest") -> jax.Array:
    """Return x x^H for `x` (m, n); on CPU in blocks, the mirrored ones computed once."""
    return jax.lax.platform_dependent(
        x,
        cpu=lambda x: _by_blocks(x, lambda rows: adjoint(x[rows]), precision),
        default=lambda x: jnp.matmul(x, adjoint(x), precision=precision),
    )


@functools.partial(jax.jit, static_argnames="precision")  # traced once for each size
def commuting_product(
    a: jax.Array, b: jax.Array, precision: jax.lax.PrecisionLike = "highest"
) -> jax.Array:
    """Return a b, which is Hermitian, for Hermitian `a` and `b` (m, m) that commute.

    Functions of one matrix do. On CPU in blocks, the mirrored ones computed once.
    """

    def on_cpu(a: jax.Array, b: jax.Array) -> jax.Array:
        if a.shape[0] <= _TRANSPOSED:
            return jnp.matmul(adjoint(a), b, precision=precision)
        return _by_blocks(a, lambda rows: b[:, rows], precision)

    return jax.lax.platform_dependent(
        a, b, cpu=on_cpu, default=lambda a, b: jnp.matmul(a, b, precision=precision)
    )


def hermitian_blocks(first: jax.Array, corner: jax.Array, last: jax.Array) -> jax.Array:
    """Return the Hermitian matrix of two diagonal blocks and the one right of the first."""
    return jnp.block([[first, corner], [adjoint(corner), last]])


def largest_eigenvalue(s: jax.Array, steps: int = 12) -> jax.Array:
    """Estimate the largest eigenvalue of the positive semidefinite `s` (m, m) from below.

    A power iteration on four fixed random vectors: within a fifth, and mostly a few percent.
    """
    start = np.random.default_rng(0).standard_normal((4, s.shape[0]))
    vectors = jnp.asarray(start, s.dtype)
    for _ in range(steps):
        vectors = product(vectors, s)  # rows: CPUs read them faster
        lengths = jnp.linalg.norm(vectors, axis=1, keepdims=True)
        vectors = vectors / lengths.astype(s.dtype)
    return jnp.max(lengths)


def _by_blocks(
    x: jax.Array,
    columns: Callable,
    precision: jax.lax.PrecisionLike,
    start: int = 0,
    depth: int = 2,
) -> jax.Array:
    """Return x times the columns from `start` on of another factor, known to be Hermitian.

    `columns` gives slices of them; the result is (m, m) for `x` (m, n).
    """
    m = x.shape[0]
    half = m // 2
    if depth == 0 or half <= _LEAF:
        return jnp.matmul(x, columns(slice(start, start + m)), precision=precision)
    corner = jnp.matmul(x[:half], columns(slice(start + half, start + m)), precision=precision)
    first = _by_blocks(x[:half], columns, precision, start, depth - 1)
    last = _by_blocks(x[half:], columns, precision, start + half, depth - 1)
    return hermitian_blocks(first, corner, last)
