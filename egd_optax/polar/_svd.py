"""Exact polar factor by a singular value decomposition: the reference method."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from egd_optax.polar._lapack import reciprocal, svd
from egd_optax.polar._linalg import adjoint, product, resolve_rtol
from egd_optax.polar._method import Exact
from egd_optax.polar._oriented import orient


@dataclasses.dataclass(frozen=True)
class SVD(Exact):
    """Exact polar factor U V^T over the singular values above `rtol * sigma_1`.

    Accuracy class: exact. On TPU it compiles for seconds to minutes (JAX issues 10052, 28315).
    Second derivatives need distinct singular values.

    Args:
        rtol: rank tolerance relative to the largest singular value, in [0, 0.5).
            None: 84 eps of the working dtype, 1e-5 in float32.

    Raises:
        ValueError: `rtol` outside [0, 0.5).

    References:
        Golub, Van Loan, Matrix Computations, 4th ed. 2013, section 9.4.
    """

    def factor(self, matrix: jax.Array) -> jax.Array:
        oriented = orient(matrix)
        return oriented.restore(_polar(oriented.x, resolve_rtol(self.rtol, oriented.x.dtype)))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _polar(x: jax.Array, rtol: float) -> jax.Array:
    """Return U f(S) V^H of a wide `x`: f is 1 above `rtol * sigma_1` and 0 below."""
    u, s, vh = svd(x)
    return product(jnp.where(_kept(s, rtol)[None], u, 0), vh)


@_polar.defjvp
def _polar_jvp(rtol, primals, tangents):
    """Weigh the parts of U^H dX V by divided differences of f, finite for equal singular values.

    (f_i - f_j) / (s_i - s_j) for the Hermitian part, (f_i + f_j) / (s_i + s_j) for the skew one,
    f_i / s_i for rows off the range of V.
    """
    (x,), (dx,) = primals, tangents
    u, s, vh = svd(x)
    f = _kept(s, rtol).astype(s.dtype)
    rows = product(adjoint(u), dx)
    inner = product(rows, adjoint(vh))
    hermitian, skew = (inner + adjoint(inner)) / 2, (inner - adjoint(inner)) / 2
    differences = (f[:, None] - f[None]) * reciprocal(s[:, None] - s[None])
    sums = (f[:, None] + f[None]) * reciprocal(s[:, None] + s[None])
    within = differences.astype(x.dtype) * hermitian + sums.astype(x.dtype) * skew
    outside = (f * reciprocal(s)).astype(x.dtype)[:, None] * (rows - product(inner, vh))
    factor = product(jnp.where(_kept(s, rtol)[None], u, 0), vh)
    return factor, product(u, product(within, vh) + outside)


def _kept(s: jax.Array, rtol: float) -> jax.Array:
    return s > rtol * s[0]
