"""Products, Gram matrices and norms of single matrices, real or complex, in full precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# CPU: up to this size a library's product takes over from blocks.
_GRAM_LEAF = 128

product = functools.partial(jnp.matmul, precision="highest")


def adjoint(matrix: jax.Array) -> jax.Array:
    """Return the conjugate transpose."""
    return jnp.conj(matrix.mT)


def gram(x: jax.Array, precision: jax.lax.PrecisionLike = "highest") -> jax.Array:
    """Return x x^H for `x` (m, n); on CPU in blocks, the mirrored ones computed once."""
    return jax.lax.platform_dependent(
        x,
        cpu=functools.partial(_gram_by_blocks, precision=precision, depth=2),
        default=lambda x: jnp.matmul(x, adjoint(x), precision=precision),
    )


def hermitian_blocks(first: jax.Array, corner: jax.Array, last: jax.Array) -> jax.Array:
    """Return the Hermitian matrix of two diagonal blocks and the one right of the first."""
    return jnp.block([[first, corner], [adjoint(corner), last]])


def largest_eigenvalue(s: jax.Array, steps: int = 12) -> jax.Array:
    """Estimate the largest eigenvalue of the positive semidefinite `s` (m, m) from below.

    A power iteration on four fixed random vectors: within a fifth, and mostly a few per cent.
    """
    start = np.random.default_rng(0).standard_normal((s.shape[0], 4))
    vectors = jnp.asarray(start, s.dtype)
    for _ in range(steps):
        vectors = product(s, vectors)
        lengths = jnp.linalg.norm(vectors, axis=0, keepdims=True)
        vectors = vectors / lengths.astype(s.dtype)
    return jnp.max(lengths)


def _gram_by_blocks(x: jax.Array, precision: jax.lax.PrecisionLike, depth: int) -> jax.Array:
    half = x.shape[0] // 2
    if depth == 0 or half <= _GRAM_LEAF:
        return jnp.matmul(x, adjoint(x), precision=precision)
    top, bottom = x[:half], x[half:]
    corner = jnp.matmul(top, adjoint(bottom), precision=precision)
    first, last = (_gram_by_blocks(part, precision, depth - 1) for part in (top, bottom))
    return hermitian_blocks(first, corner, last)
