"""Products, Gram matrices and inverses of the short side: what the exact methods are made of.

Matrices are single ones, real or complex; products run in full precision on every backend.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# Below these sizes blocks stop paying, and a library's product or Cholesky factor takes over.
_GRAM_LEAF = 128
_INVERSE_LEAF = 96
# Right-hand sides of fewer entries are solved on one thread by OpenBLAS (measured: 1024).
_UNTHREADED = 960

product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


def adjoint(matrix: jax.Array) -> jax.Array:
    """Return the conjugate transpose."""
    return jnp.conj(matrix.mT)


def gram(x: jax.Array, depth: int = 2) -> jax.Array:
    """Return x x^H for `x` (m, n), computing mirrored blocks once."""
    half = x.shape[0] // 2
    if depth == 0 or half < _GRAM_LEAF:
        return product(x, adjoint(x))
    top, bottom = x[:half], x[half:]
    corner = product(top, adjoint(bottom))
    return _hermitian(gram(top, depth - 1), corner, gram(bottom, depth - 1))


def inverse(s: jax.Array) -> jax.Array:
    """Return the inverse of the Hermitian positive definite `s` (m, m)."""
    return _root_and_inverse(s)[1]


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


def _root_and_inverse(s: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return L^-1 and S^-1 for S = L L^H, by blocks.

    Nearly all of it is products, which XLA runs faster than triangular solves. As stable as the
    Cholesky factorisation, because the Schur complement is a difference of Gram matrices.
    """
    m, half = s.shape[0], s.shape[0] // 2
    if m <= _INVERSE_LEAF:
        root = _inverse_of_factor(s)
        return root, product(adjoint(root), root)
    root, first = _root_and_inverse(s[:half, :half])
    side = product(root, s[:half, half:])
    schur_root, last = _root_and_inverse(s[half:, half:] - product(adjoint(side), side))
    side = product(adjoint(root), side)
    corner = product(side, last)
    below = -product(schur_root, adjoint(side))
    whole = jnp.block([[root, jnp.zeros_like(side)], [below, schur_root]])
    return whole, _hermitian(first + product(corner, adjoint(side)), -corner, last)


def _inverse_of_factor(s: jax.Array) -> jax.Array:
    """Return L^-1 for S = L L^H, in solves too small for LAPACK to start threads for.

    Its idle threads spin for tens of milliseconds, and the products that follow on the same cores
    take twice as long: on CPU that costs more than everything else here.
    """
    m = s.shape[0]
    width = max(1, _UNTHREADED // m)
    count = -(-m // width)
    columns = jnp.eye(m, count * width, dtype=s.dtype).reshape(m, count, width).swapaxes(0, 1)
    factor = jax.lax.linalg.cholesky(s, symmetrize_input=False)
    stack = jnp.broadcast_to(factor, (count, m, m))
    solved = jax.lax.linalg.triangular_solve(stack, columns, left_side=True, lower=True)
    return solved.swapaxes(0, 1).reshape(m, count * width)[:, :m]


def _hermitian(first: jax.Array, corner: jax.Array, last: jax.Array) -> jax.Array:
    return jnp.block([[first, corner], [adjoint(corner), last]])
