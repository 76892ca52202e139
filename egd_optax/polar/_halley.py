"""Exact polar factor at the price of matrix products."""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from egd_optax.polar._lapack import inverse
from egd_optax.polar._linalg import (
    commuting_product,
    gram,
    largest_eigenvalue,
    product,
    resolve_rtol,
)
from egd_optax.polar._method import Exact
from egd_optax.polar._oriented import orient


@dataclasses.dataclass(frozen=True)
class Halley(Exact):
    """Exact polar factor by Halley's iteration on Gram matrices, and a filter.

    Each pass maps the singular values by the dynamically weighted Halley function,
    X <- (beta I + gamma (I + c A)^-1) X with A = X X^H, which sends [2 rtol sigma_1, sigma_1] to
    [1 - delta, 1] in a few passes and amplifies whatever is smaller by a bounded factor. The filter
    x^5 (1 - x^2)^(-5/2), as a series in 1 - x^2, finishes the one and removes the other. Only
    products and inverses of the short side. Accuracy class: exact, though forming A squares the
    condition: every pass but the last computes A afresh, and c is bounded, because small directions
    turn by about c eps.

    Args:
        rtol: rank tolerance relative to the largest singular value, in [0, 0.5). Directions
            above 2 rtol are kept, those below rtol / 10 become 0; between the two the gain
            rolls off. None: 84 eps of the working dtype, 1e-5 in float32.

    Raises:
        ValueError: `rtol` outside [0, 0.5).

    References:
        Nakatsukasa, Bai, Gygi, SIAM J. Matrix Anal. Appl. 31, 2010. Nakatsukasa, Higham, SIAM J.
        Sci. Comput. 35, 2013.
    """

    batches: ClassVar[bool] = True  # its inverses take LAPACK's part one by one

    def factor(self, matrix: jax.Array) -> jax.Array:
        oriented = orient(matrix)
        x = oriented.x
        identity = jnp.eye(x.shape[0], dtype=x.dtype)
        least = 2 * max(resolve_rtol(self.rtol, x.dtype), float(jnp.finfo(x.dtype).tiny))
        *passes, last = halley_weights(least / _SAFETY, float(jnp.finfo(x.dtype).eps))
        square = gram(x)
        scale = 1 / (_SAFETY * jnp.sqrt(largest_eigenvalue(square)).astype(x.dtype))
        square = square * scale**2
        for beta, gamma, c in passes:
            x = product(scale * (beta * identity + gamma * inverse(identity + c * square)), x)
            square, scale = gram(x), jnp.ones_like(scale)
        return oriented.restore(_finish(scale * x, square, last))


def _finish(x: jax.Array, square: jax.Array, weights: tuple[float, float, float]) -> jax.Array:
    """Apply the last pass and the filter; both on the short side, so the long one is touched once.

    The pass is H = beta I + gamma W, W = (I + c A)^-1; H A H needs no product, as c A W = I - W.
    """
    beta, gamma, c = weights
    identity = jnp.eye(x.shape[0], dtype=x.dtype)
    w = inverse(identity + c * square)
    cross = 2 * beta * gamma * (identity - w) + gamma**2 * (w - commuting_product(w, w))
    error = identity - (beta**2 * square + cross / c)
    error2 = commuting_product(error, error)
    series = identity + 2.5 * error + 4.375 * error2 + 6.5625 * commuting_product(error, error2)
    filtered = commuting_product(identity - 2 * error + error2, series)
    return product(commuting_product(beta * identity + gamma * w, filtered), x)


# The power iteration underestimates the norm, by a sixth at worst (m = 4096).
_SAFETY = 1.2
# No pass is designed for singular values below 4.3 sqrt(eps): it bounds c by about 5e-4 / eps.
_FLOOR = 4.3


@functools.lru_cache
def halley_weights(least: float, eps: float) -> tuple[tuple[float, float, float], ...]:
    """Return (beta, gamma, c) of passes x -> beta x + gamma x / (1 + c x^2) for [least, 1].

    As few passes as the floor on their design allows, and the gentlest of that number: a higher
    floor amplifies less of what lies below `least`. The last image is centered on 1.
    """
    done = 1 - 0.025 * (eps / 2**-23) ** 0.25  # from here, the filter's error is about 50 eps
    low, high = min(_FLOOR * math.sqrt(eps), 1.0), 1.0
    count = len(_passes(least, low, done))
    for _ in range(40):
        middle = math.sqrt(low * high)
        enough = len(_passes(least, middle, done)) <= count
        low, high = (middle, high) if enough else (low, middle)
    *passes, (beta, gamma, c, image) = _passes(least, low, done)
    center = (1 + image) / 2
    return (*((b, g, c) for b, g, c, _ in passes), (beta / center, gamma / center, c))


def _passes(least: float, floor: float, done: float) -> list[tuple[float, float, float, float]]:
    """Return (beta, gamma, c) and the least image of each pass until `done`."""
    passes: list[tuple[float, float, float, float]] = []
    while least < done and len(passes) < 100:
        design = max(least, floor)
        root = (4 * (1 - design**2) / design**4) ** (1 / 3)
        inner = 8 - 4 * root + 8 * (2 - design**2) / (design**2 * math.sqrt(1 + root))
        a = math.sqrt(1 + root) + math.sqrt(inner) / 2
        b = (a - 1) ** 2 / 4
        c = a + b - 1
        least = min(x * (a + b * x**2) / (1 + c * x**2) for x in (least, design))
        passes.append((b / c, a - b / c, c, least))
    return passes
