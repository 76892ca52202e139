"""Decompositions of one matrix that LAPACK never gets as a batch on CPU.

XLA's CPU backend hands the matrices of a batched LAPACK call to the threads that its operations run
on, and waits: two such calls can wait for each other for ever. Under `vmap` these functions take
the matrices in turn on CPU, and so do their derivatives: products, and these functions again.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from egd_optax.polar._linalg import adjoint, hermitian_blocks, product

# CPU: right-hand sides of fewer entries are solved on one thread by OpenBLAS (measured: 1024).
_UNTHREADED = 960
# CPU: up to this size a Cholesky factor takes over from blocks.
_LEAF = 96
# CPU: above this size it does so at an eighth.
_LARGE = 1024


def by_platform(cpu: Callable, default: Callable) -> Callable:
    """Return a function of arrays without a batch; on CPU, a `vmap` of it is a loop."""
    in_turn = one_by_one(cpu)
    return lambda *arrays: jax.lax.platform_dependent(*arrays, cpu=in_turn, default=default)


def one_by_one(function: Callable) -> Callable:
    """Return a function of arrays, of which a `vmap` is a loop; on a mesh each device runs it."""
    result = jax.custom_batching.custom_vmap(function)

    @result.def_vmap
    def rule(_: int, batched: Any, *arrays: Any) -> Any:
        leaves, tree = jax.tree.flatten(arrays)
        flags = jax.tree.leaves(batched)
        stacks = [x for x, is_batched in zip(leaves, flags, strict=True) if is_batched]

        def one(matrices: Sequence[jax.Array]) -> Any:
            rest = iter(matrices)
            picked = [next(rest) if flag else x for x, flag in zip(leaves, flags, strict=True)]
            return result(*jax.tree.unflatten(tree, picked))

        cut = jax.typeof(stacks[0]).sharding.spec[0]
        found = jax.lax.map(one, [_cut_first(stack, None) for stack in stacks])
        found = jax.tree.map(lambda stack: _cut_first(stack, cut), found)
        return found, jax.tree.map(lambda _: True, found)

    return result


def _cut_first(stack: jax.Array, names: Any) -> jax.Array:
    """Return the stack with its first axis cut by these axes of an explicit mesh."""
    sharding = jax.typeof(stack).sharding
    if sharding.spec[0] == names:
        return stack
    spec = jax.sharding.PartitionSpec(names, *sharding.spec[1:])
    return jax.sharding.reshard(stack, sharding.update(spec=spec))


def _in_turn(function: Callable) -> jax.custom_jvp:
    return jax.custom_jvp(functools.wraps(function)(by_platform(function, function)))


@_in_turn
def svd(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return u (m, m), s (m,), vh (m, n) of a wide `x` (m, n), m <= n."""
    u, s, vh = jnp.linalg.svd(x, full_matrices=False)
    return u, s, vh


@_in_turn
def eigh(h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the ascending eigenvalues (m,) and the vectors (m, m) of a Hermitian `h` (m, m)."""
    values, vectors = jnp.linalg.eigh(h)
    return values, vectors


@_in_turn
def orthonormal(x: jax.Array) -> jax.Array:
    """Return the orthonormal factor q (n, k) of a tall `x` (n, k), n >= k."""
    return jnp.linalg.qr(x)[0]


@_in_turn
def inverse_of_lower(factor: jax.Array) -> jax.Array:
    """Return the inverse of a lower triangular matrix (m, m)."""
    return _solve(factor, jnp.eye(factor.shape[0], dtype=factor.dtype))


def eigvalsh(h: jax.Array) -> jax.Array:
    """Return the ascending eigenvalues (m,) of a Hermitian matrix (m, m); no derivatives."""
    one: Callable = lambda h: jnp.linalg.eigvalsh(h)  # noqa: E731 (of one argument)
    return by_platform(cpu=one, default=one)(jax.lax.stop_gradient(h))


def reciprocal(x: jax.Array) -> jax.Array:
    """Return 1 / x, and 0 for 0."""
    return jnp.where(x == 0, 0, 1 / jnp.where(x == 0, jnp.ones_like(x), x))


@svd.defjvp
def _svd_jvp(primals, tangents):
    """Equal singular values share their directions: there, the part that turns them is left out."""
    (x,), (dx,) = primals, tangents
    u, s, vh = svd(x)
    rows = product(adjoint(u), dx)
    inner = product(rows, adjoint(vh))
    gaps = reciprocal((s[None] - s[:, None]) * (s[None] + s[:, None])).astype(x.dtype)
    weights = s.astype(x.dtype)
    right, left = inner * weights[None], inner * weights[:, None]
    turn = gaps * (right + adjoint(right))
    turn += jnp.diag((jnp.diag(inner) - jnp.conj(jnp.diag(inner))) / 2 * reciprocal(weights))
    outside = reciprocal(weights)[:, None] * (rows - product(inner, vh))
    dvh = outside - product(gaps * (left + adjoint(left)), vh)
    return (u, s, vh), (product(u, turn), jnp.real(jnp.diag(inner)), dvh)


@eigh.defjvp
def _eigh_jvp(primals, tangents):
    """As for `svd`."""
    (h,), (dh,) = primals, tangents
    values, vectors = eigh(h)
    inner = product(adjoint(vectors), product((dh + adjoint(dh)) / 2, vectors))
    gaps = reciprocal(values[None] - values[:, None]).astype(h.dtype)
    return (values, vectors), (jnp.real(jnp.diag(inner)), product(vectors, gaps * inner))


@orthonormal.defjvp
def _orthonormal_jvp(primals, tangents):
    """With M = dX R^-1 and N = Q^H M: dQ = M - Q (N - K), K skew with N's strictly lower part."""
    (x,), (dx,) = primals, tangents
    q = orthonormal(x)
    factor = jnp.tril(product(adjoint(x), q))  # R^H
    m = product(dx, adjoint(inverse_of_lower(factor)))
    n = product(adjoint(q), m)
    lower = jnp.tril(n, -1)
    diagonal = jnp.diag((jnp.diag(n) - jnp.conj(jnp.diag(n))) / 2)
    return q, m - product(q, n - (lower - adjoint(lower) + diagonal))


@inverse_of_lower.defjvp
def _inverse_of_lower_jvp(primals, tangents):
    inverse = inverse_of_lower(*primals)
    return inverse, -product(inverse, product(jnp.tril(tangents[0]), inverse))


@jax.custom_jvp
def inverse(s: jax.Array) -> jax.Array:
    """Return the inverse of the Hermitian positive definite `s` (m, m)."""
    return jax.lax.platform_dependent(s, cpu=_inverse_by_blocks, default=inverse_by_library)


@inverse.defjvp
def _inverse_jvp(primals, tangents):
    result = inverse(*primals)
    return result, -product(result, product(tangents[0], result))


def inverse_by_library(s: jax.Array) -> jax.Array:
    """Return S^-1 from one Cholesky factor."""
    factor = jax.lax.linalg.cholesky(s, symmetrize_input=False)
    root = _solve(factor, jnp.eye(s.shape[0], dtype=s.dtype))
    return product(adjoint(root), root)


def _inverse_by_blocks(s: jax.Array) -> jax.Array:
    m = s.shape[0]
    return root_and_inverse(s, _LEAF if m <= _LARGE else m // 8)[1]


@functools.partial(jax.jit, static_argnums=1)  # traced once for each size
def root_and_inverse(s: jax.Array, leaf: int) -> tuple[jax.Array, jax.Array]:
    """Return L^-1 and S^-1 for S = L L^H, by blocks down to size `leaf`: mostly products.

    As stable as Cholesky's, because the Schur complement is a difference of Gram matrices.
    """
    m, half = s.shape[0], s.shape[0] // 2
    if m <= leaf:
        root = _root(s)
        return root, product(adjoint(root), root)
    root, first = root_and_inverse(s[:half, :half], leaf)
    side = product(root, s[:half, half:])
    schur_root, last = root_and_inverse(s[half:, half:] - product(adjoint(side), side), leaf)
    side = product(adjoint(root), side)
    corner = product(side, last)
    below = -product(schur_root, adjoint(side))
    whole = jnp.block([[root, jnp.zeros_like(side)], [below, schur_root]])
    return whole, hermitian_blocks(first + product(corner, adjoint(side)), -corner, last)


@jax.jit
@one_by_one
def _root(s: jax.Array) -> jax.Array:
    """Return L^-1 for S = L L^H, in solves too small for LAPACK to start threads for.

    Its idle threads spin for tens of milliseconds, and slow down the products that follow. A large
    matrix is solved at once: there the products take longer, and many solves long to compile.
    """
    m = s.shape[0]
    width = max(1, _UNTHREADED // m) if m <= _LEAF else m
    factor, identity = jax.lax.linalg.cholesky(s, symmetrize_input=False), jnp.eye(m, dtype=s.dtype)
    starts = range(0, m, width)
    return jnp.concatenate([_solve(factor, identity[:, a : a + width]) for a in starts], axis=1)


def _solve(factor: jax.Array, right: jax.Array) -> jax.Array:
    """Return L^-1 times `right`."""
    return jax.lax.linalg.triangular_solve(factor, right, left_side=True, lower=True)
