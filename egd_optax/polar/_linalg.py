"""Products, Gram matrices and inverses of the short side: what the exact methods are made of.

Matrices are single ones, real or complex; products run in full precision on every backend.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

# CPU: up to this size XLA gives both cores to a product only if it reads the first one transposed.
_TRANSPOSED = 208
# CPU: up to these sizes blocks stop paying, and a library's product or Cholesky factor takes over.
_GRAM_LEAF = 128
_INVERSE_LEAF = 50
_INVERSE_LEAF_LARGE = 96  # for matrices above 600, where fewer blocks compile faster
# Right-hand sides of fewer entries are solved on one thread by OpenBLAS (measured: 1024).
_UNTHREADED = 960

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


def hermitian_product(
    a: jax.Array, b: jax.Array, precision: jax.lax.PrecisionLike = "highest"
) -> jax.Array:
    """Return a b for Hermitian `a` (m, m) and any `b` (m, m)."""
    first = adjoint(a) if a.shape[0] <= _TRANSPOSED else a
    return jnp.matmul(first, b, precision=precision)


def square(a: jax.Array, precision: jax.lax.PrecisionLike = "highest") -> jax.Array:
    """Return a a for Hermitian `a` (m, m)."""
    if a.shape[0] <= _TRANSPOSED:
        return hermitian_product(a, a, precision)
    return gram(a, precision)


def inverse(s: jax.Array) -> jax.Array:
    """Return the inverse of the Hermitian positive definite `s` (m, m), as stable as Cholesky's."""
    leaf = _INVERSE_LEAF if s.shape[0] <= 600 else _INVERSE_LEAF_LARGE
    return jax.lax.platform_dependent(
        s,
        cpu=lambda s: _root_and_inverse(s, leaf)[1],
        default=_inverse_by_library,
    )


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
    return _hermitian(first, corner, last)


def _root_and_inverse(s: jax.Array, leaf: int) -> tuple[jax.Array, jax.Array]:
    """Return L^-1 and S^-1 for S = L L^H, by blocks down to size `leaf`.

    Nearly all of it is products, which XLA runs faster than triangular solves. As stable as the
    Cholesky factorisation, because the Schur complement is a difference of Gram matrices.
    """
    m, half = s.shape[0], s.shape[0] // 2
    if m <= leaf:
        root = _inverse_of_factor(s)
        return root, product(adjoint(root), root)
    root, first = _root_and_inverse(s[:half, :half], leaf)
    side = product(root, s[:half, half:])
    schur_root, last = _root_and_inverse(s[half:, half:] - product(adjoint(side), side), leaf)
    side = product(adjoint(root), side)
    corner = product(side, last)
    below = -product(schur_root, adjoint(side))
    whole = jnp.block([[root, jnp.zeros_like(side)], [below, schur_root]])
    return whole, _hermitian(first + product(corner, adjoint(side)), -corner, last)


def _inverse_by_library(s: jax.Array) -> jax.Array:
    factor = jax.lax.linalg.cholesky(s, symmetrize_input=False)
    identity = jnp.eye(s.shape[0], dtype=s.dtype)
    root = jax.lax.linalg.triangular_solve(factor, identity, left_side=True, lower=True)
    return product(adjoint(root), root)


def _inverse_of_factor(s: jax.Array) -> jax.Array:
    """Return L^-1 for S = L L^H, in solves too small for LAPACK to start threads for.

    Its idle threads spin for tens of milliseconds, and the products that follow on the same cores
    take twice as long: on CPU that costs more than everything else here.
    """
    m = s.shape[0]
    width = max(1, _UNTHREADED // m)
    identity = jnp.eye(m, dtype=s.dtype)
    factor = jax.lax.linalg.cholesky(s, symmetrize_input=False)
    solve = functools.partial(jax.lax.linalg.triangular_solve, factor, left_side=True, lower=True)
    return jnp.concatenate(
        [solve(identity[:, start : start + width]) for start in range(0, m, width)], axis=1
    )


def _hermitian(first: jax.Array, corner: jax.Array, last: jax.Array) -> jax.Array:
    return jnp.block([[first, corner], [adjoint(corner), last]])
