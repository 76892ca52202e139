"""Sketched polar factors: whiten the leading directions only, without an SVD."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from egd_optax._checks import check_at_least, check_choice, check_rtol
from egd_optax.polar._halley import Halley
from egd_optax.polar._lapack import eigh, orthonormal, reciprocal
from egd_optax.polar._linalg import adjoint, product, resolve_rtol, working_dtype
from egd_optax.polar._method import PolarMethod, State
from egd_optax.polar._oriented import orient


@dataclasses.dataclass(frozen=True)
class _Sketch(PolarMethod):
    """The fields that the sketches share, and the factor within a basis."""

    rank: int
    oversample: int = 8
    residual: str = "drop"
    seed: int = 0
    rtol: float | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        for name, least in (("rank", 1), ("oversample", 0), ("seed", 0)):
            check_at_least(name, getattr(self, name), least)
        if self.seed >= 2**32:
            raise ValueError(f"seed must be below 2**32, got {self.seed!r}.")
        check_choice("residual", self.residual, ("drop", "keep"))
        check_rtol(self.rtol)

    def _whiten(self, x: jax.Array, basis: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Whiten the leading directions of `x` (m, n) within `basis` (m, k).

        Returns the factor, and the basis turned to the singular directions, leading ones last.
        """
        small = product(adjoint(basis), x)
        whitened = Halley(self.rtol).factor(small)
        # The Hermitian factor has the singular values themselves, so eigh resolves them to eps
        # sigma_1; the small Gram matrix has their squares and would lose half of the digits.
        hermitian = product(small, adjoint(whitened))
        s, turn = eigh((hermitian + adjoint(hermitian)) / 2)
        rank = min(self.rank, basis.shape[1])
        turned = product(basis, turn)
        leading = turned[:, -rank:]
        factor = product(leading, product(adjoint(turn[:, -rank:]), whitened))
        if self.residual == "keep":
            rest = x - product(leading, product(adjoint(leading), x))
            resolved = s[-rank] > resolve_rtol(self.rtol, s.dtype) * s[-1]
            factor = factor + jnp.where(resolved, reciprocal(s[-rank]), 0).astype(x.dtype) * rest
        return factor, turned


class SketchState(NamedTuple):
    """Parts of a key; and the orthonormal `(min(m, n), k)` basis that is followed, if one is."""

    seed: jax.Array
    step: jax.Array
    basis: Any = ()


@dataclasses.dataclass(frozen=True)
class Randomized(_Sketch):
    """Polar factor of the leading `rank` directions, found by a random projection.

    Q = orth(G Omega) with Omega Gaussian, refined by power iterations; then the polar factor of the
    small Q^H G. No SVD: thin QR, products and one small eigh. Accuracy class: sketch.

    Args:
        rank: number of directions to whiten; min(m, n) where a matrix has fewer.
        oversample: extra sketch directions, dropped before whitening.
        residual: what becomes of the rest. "drop" (the paper): zeros. "keep": divided by the
            smallest whitened singular value, so that it continues the spectrum below 1.
        seed: of the sketches; every step draws a fresh one, the same for all matrices.
        power_iterations: passes over G that sharpen the sketch.
        rtol: rank tolerance as `Halley`'s; what lies below is neither whitened nor divided by.

    Raises:
        ValueError: a number out of range, or an unknown `residual`.

    References:
        Halko, Martinsson, Tropp, SIAM Review 53, 2011. arXiv 2510.04930, Algorithm 3.
    """

    power_iterations: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_at_least("power_iterations", self.power_iterations, 0)

    def init(self, matrix: jax.ShapeDtypeStruct) -> SketchState:
        return SketchState(jnp.uint32(self.seed), jnp.int32(0))

    def update(self, matrix: jax.Array, state: State) -> tuple[jax.Array, State]:
        oriented = orient(matrix)
        x = oriented.x
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        width = min(self.rank + self.oversample, x.shape[0])
        probe = jax.random.normal(key, (x.shape[1], width), x.dtype)
        basis = orthonormal(product(x, probe))
        for _ in range(self.power_iterations):
            basis = orthonormal(product(x, orthonormal(product(adjoint(x), basis))))
        factor, _ = self._whiten(x, basis)
        return oriented.restore(factor), state._replace(step=state.step + 1)


@dataclasses.dataclass(frozen=True)
class SubspaceIteration(_Sketch):
    """Polar factor of the leading `rank` directions, followed from step to step.

    Each step takes one power iteration, Q <- orth(G normalize(G^H Q)), from the last one's basis.
    Random columns in place of the extra directions, and of any that the gradient has left, find new
    ones. Accuracy class: sketch, after the first few steps.

    Args:
        rank: number of directions to whiten; min(m, n) where a matrix has fewer.
        oversample: random columns beside the followed ones, which find new directions.
        residual: what becomes of the rest; see `Randomized`.
        seed: of the random basis to begin with.
        rtol: rank tolerance as `Halley`'s; what lies below is not followed either.

    Raises:
        ValueError: see `Randomized`.

    References:
        Oja, Karhunen, J. Math. Anal. Appl. 106, 1985. Ahn et al., Dion, 2025, arXiv 2504.05295.
    """

    def init(self, matrix: jax.ShapeDtypeStruct) -> SketchState:
        shape = min(matrix.shape), min(self.rank + self.oversample, *matrix.shape)
        draw = jax.random.normal(jax.random.key(self.seed), shape, working_dtype(matrix.dtype))
        return SketchState(jnp.uint32(self.seed), jnp.int32(0), orthonormal(draw))

    def update(self, matrix: jax.Array, state: State) -> tuple[jax.Array, State]:
        oriented = orient(matrix)
        x = oriented.x
        basis = orthonormal(product(x, self._probe(x, state)))
        factor, turned = self._whiten(x, basis)
        kept = jnp.where(oriented.usable, turned, state.basis)
        return oriented.restore(factor), state._replace(basis=kept, step=state.step + 1)

    def _probe(self, x: jax.Array, state: SketchState) -> jax.Array:
        """Return unit columns (n, k): where the basis points to in `x`, and random ones."""
        width = state.basis.shape[1]
        key = jax.random.fold_in(jax.random.key(state.seed), state.step)
        fresh = jax.random.normal(key, (x.shape[1], width), x.dtype) / x.shape[1] ** 0.5
        followed = product(adjoint(x), state.basis)
        lengths = jnp.linalg.norm(followed, axis=0, keepdims=True)
        alive = lengths > resolve_rtol(self.rtol, lengths.dtype) * jnp.linalg.norm(x)
        extra = jnp.arange(width)[None, :] < width - self.rank
        unit = followed / jnp.where(alive, lengths, jnp.ones_like(lengths)).astype(x.dtype)
        return jnp.where(alive & ~extra, unit, fresh)
