"""Inverses of Hermitian positive definite matrices, as stable as Cholesky's."""

import jax
import jax.numpy as jnp

from egd_optax.polar._lapack import inverse_root
from egd_optax.polar._linalg import adjoint, hermitian_blocks, product

# CPU: up to this size a Cholesky factor takes over from blocks.
_LEAF = 96


@jax.custom_jvp
def inverse(s: jax.Array) -> jax.Array:
    """Return the inverse of the Hermitian positive definite `s` (m, m)."""
    return jax.lax.platform_dependent(
        s, cpu=lambda s: _root_and_inverse(s, _LEAF)[1], default=_from_root
    )


@inverse.defjvp
def _inverse_jvp(primals, tangents):
    result = inverse(*primals)
    return result, -product(result, product(tangents[0], result))


def _from_root(s: jax.Array) -> jax.Array:
    root = inverse_root(s)
    return product(adjoint(root), root)


def _root_and_inverse(s: jax.Array, leaf: int) -> tuple[jax.Array, jax.Array]:
    """Return L^-1 and S^-1 for S = L L^H, by blocks down to size `leaf`.

    Nearly all of it is products, which XLA runs faster than triangular solves. As stable as the
    Cholesky factorization, because the Schur complement is a difference of Gram matrices.
    """
    m, half = s.shape[0], s.shape[0] // 2
    if m <= leaf:
        root = inverse_root(s)
        return root, product(adjoint(root), root)
    root, first = _root_and_inverse(s[:half, :half], leaf)
    side = product(root, s[:half, half:])
    schur_root, last = _root_and_inverse(s[half:, half:] - product(adjoint(side), side), leaf)
    side = product(adjoint(root), side)
    corner = product(side, last)
    below = -product(schur_root, adjoint(side))
    whole = jnp.block([[root, jnp.zeros_like(side)], [below, schur_root]])
    return whole, hermitian_blocks(first + product(corner, adjoint(side)), -corner, last)
