"""Exact polar factor by a singular value decomposition: the reference method."""

import dataclasses

import jax
import jax.numpy as jnp

from egd_optax.polar._linalg import product
from egd_optax.polar._method import Stateless, check_rtol
from egd_optax.polar._oriented import orient, resolve_rtol


@dataclasses.dataclass(frozen=True)
class SVD(Stateless):
    """Exact polar factor U V^T over the singular values above `rtol * sigma_1`.

    Accuracy class: exact. LAPACK on CPU. On TPU it compiles for seconds to minutes (JAX issues
    10052, 28315).

    Args:
        rtol: rank tolerance relative to the largest singular value, in [0, 0.5).
            None: 84 eps of the working dtype, 1e-5 in float32.

    Raises:
        ValueError: `rtol` outside [0, 0.5).

    References:
        Golub, Van Loan, Matrix Computations, 4th ed. 2013, sections 2.4 and 9.4.
    """

    rtol: float | None = None

    def __post_init__(self) -> None:
        check_rtol(self.rtol)

    def factor(self, matrix: jax.Array) -> jax.Array:
        oriented = orient(matrix)
        u, s, vh = jnp.linalg.svd(oriented.x, full_matrices=False)
        kept = s > resolve_rtol(self.rtol, s.dtype) * s[0]
        return oriented.restore(product(jnp.where(kept[None, :], u, 0), vh))
