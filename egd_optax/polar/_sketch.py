"""Sketched polar factor: whiten the leading directions only."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from egd_optax.polar._gram import Gram
from egd_optax.polar._method import PolarMethod, check_at_least, check_choice
from egd_optax.polar._oriented import adjoint, default_rtol, oriented


class RandomizedState(NamedTuple):
    """Seed and number of sketches drawn so far; together the key of the next one."""

    seed: jax.Array
    step: jax.Array


@dataclasses.dataclass(frozen=True)
class Randomized:
    """Polar factor of the leading `rank` directions, found by a random projection.

    Q = orth(G Omega) with Omega Gaussian, refined by power iterations; then the polar
    factor of the small Q^H G. No SVD: thin QR, products and one small eigh.
    Accuracy class: sketch.

    Args:
        rank: number of directions to whiten; min(m, n) where a matrix has fewer.
        oversample: extra sketch directions, dropped before whitening.
        power_iterations: passes over G that sharpen the sketch.
        tail: what becomes of the rest. "drop" (the paper): zeros. "keep": divided by the
            smallest whitened singular value, so that it continues the spectrum below 1.
        seed: of the sketches; every step draws a fresh one.

    Raises:
        ValueError: rank below 1, negative counts, or an unknown tail.

    References:
        Halko, Martinsson, Tropp, SIAM Review 53, 2011. Pasand, Dohmatob 2025,
        arXiv 2510.04930, Algorithm 3.
    """

    rank: int
    oversample: int = 8
    power_iterations: int = 2
    tail: str = "drop"
    seed: int = 0

    def __post_init__(self) -> None:
        check_at_least("rank", self.rank, 1)
        check_at_least("oversample", self.oversample, 0)
        check_at_least("power_iterations", self.power_iterations, 0)
        check_at_least("seed", self.seed, 0)
        check_choice("tail", self.tail, ("drop", "keep"))

    def init(self, matrix: jax.ShapeDtypeStruct) -> RandomizedState:
        del matrix
        return RandomizedState(jnp.uint32(self.seed), jnp.int32(0))

    def update(
        self, matrix: jax.Array, state: RandomizedState
    ) -> tuple[jax.Array, RandomizedState]:
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        factor = oriented(lambda x: self._kernel(x, key), matrix)
        return factor, state._replace(step=state.step + 1)

    def _kernel(self, x: jax.Array, key: jax.Array) -> jax.Array:
        m, n = x.shape
        width = min(self.rank + self.oversample, m)
        basis = _orth(x @ jax.random.normal(key, (n, width), x.dtype))
        for _ in range(self.power_iterations):
            basis = _orth(x @ _orth(adjoint(x) @ basis))
        return whiten_within(x, basis, min(self.rank, m), keep_tail=self.tail == "keep")


def whiten_within(
    x: jax.Array, basis: jax.Array, rank: int, *, keep_tail: bool, method: PolarMethod | None = None
) -> jax.Array:
    """Whiten the `rank` leading directions of `x` (m, n) that `basis` (m, k) spans."""
    small = adjoint(basis) @ x
    squares, vectors = jnp.linalg.eigh(small @ adjoint(small))
    leading = vectors[:, basis.shape[1] - rank :]
    basis, small = basis @ leading, adjoint(leading) @ small
    whitened, _ = (method or Gram()).update(small, ())
    factor = basis @ whitened
    if not keep_tail:
        return factor
    return factor + _tail_scale(squares, rank).astype(x.dtype) * (x - basis @ small)


def _tail_scale(squares: jax.Array, rank: int) -> jax.Array:
    """Return 1 / sigma_rank, or 0 where sigma_rank is itself round-off."""
    least, largest = squares[-rank], squares[-1]
    resolved = least > default_rtol(squares.dtype) * largest
    return jnp.where(resolved, 1 / jnp.sqrt(jnp.where(resolved, least, 1)), 0)


def _orth(x: jax.Array) -> jax.Array:
    return jnp.linalg.qr(x)[0]
