"""Exact polar factor at the price of matrix products."""

import dataclasses

import jax
import jax.numpy as jnp

from egd_optax.polar._method import Stateless, check_rtol
from egd_optax.polar._oriented import oriented, resolve_rtol


@dataclasses.dataclass(frozen=True)
class Gram(Stateless):
    """Exact polar factor (interim)."""

    rtol: float | None = None

    def __post_init__(self) -> None:
        check_rtol(self.rtol)

    def factor(self, matrix: jax.Array) -> jax.Array:
        return oriented(self._kernel, matrix)

    def _kernel(self, x: jax.Array) -> jax.Array:
        u, s, vh = jnp.linalg.svd(x, full_matrices=False)
        kept = s > resolve_rtol(self.rtol, x.dtype) * s[0]
        return jnp.where(kept[None, :], u, 0) @ vh
