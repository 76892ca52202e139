"""Exact polar factor at the price of matrix products."""

import dataclasses

import jax
import jax.numpy as jnp

from egd_optax.polar._method import Stateless, check_rtol
from egd_optax.polar._oriented import orient, resolve_rtol


@dataclasses.dataclass(frozen=True)
class Gram(Stateless):
    """Exact polar factor (interim)."""

    rtol: float | None = None

    def __post_init__(self) -> None:
        check_rtol(self.rtol)

    def factor(self, matrix: jax.Array) -> jax.Array:
        oriented = orient(matrix)
        u, s, vh = jnp.linalg.svd(oriented.x, full_matrices=False)
        kept = s > resolve_rtol(self.rtol, s.dtype) * s[0]
        return oriented.restore(jnp.where(kept[None, :], u, 0) @ vh)
