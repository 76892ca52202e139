"""Polynomial polar factor: products alone, driven by a table of coefficients."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egd_optax._checks import check_at_least, check_choice
from egd_optax.polar._coefficients import TABLES, Row, Rows
from egd_optax.polar._linalg import adjoint, commuting_product, gram, working_dtype
from egd_optax.polar._method import Stateless
from egd_optax.polar._oriented import orient


@dataclasses.dataclass(frozen=True)
class NewtonSchulz(Stateless):
    """Approximate polar factor by odd polynomials X <- (a I + b A + c A^2 + ...) X, A = X X^H.

    Products are at JAX's default matmul precision; those of steps of degree 7 and more, whose
    terms cancel, at the highest. On CPU, where the default is the dtype's own, wide matrices take
    two or three steps at a time on A alone (Gram Newton-Schulz).

    Accuracy class: polynomial. Singular values above 1e-3 of the Frobenius norm get the gains of
    their table (docs/how-to-choose.md); the ones below stay small. There is no rank tolerance,
    because a polynomial cannot cut: enough steps lift round-off as well.

    Args:
        coefficients: "polar_express" (8 rows of degree 5), "standard" (5 rows; Muon's, by Jordan:
            also "jordan"), "dion" (5 rows, by You: also "you") or "three_steps" (rows of degrees
            9, 9 and 13: as good as "standard" for less work on wide matrices); or rows
            (a, b, c, ...), such as those of `polar_express_coefficients(12, lower=1e-6)`.
        steps: None: one for each row. Fewer take the first rows, more repeat the last one.
        dtype: floating-point type to iterate in. None: the leaf's own, at least float32.

    Raises:
        ValueError: an argument that is not as said.

    References:
        Bjorck, Bowie, SIAM J. Numer. Anal. 8, 1971. Amsel et al. 2025, arXiv 2505.16932.
    """

    coefficients: str | Rows = "polar_express"
    steps: int | None = None
    dtype: jax.typing.DTypeLike | None = None

    def __post_init__(self) -> None:
        if isinstance(self.coefficients, str):
            check_choice("coefficients", self.coefficients, tuple(TABLES))
        else:
            object.__setattr__(self, "coefficients", _as_rows(self.coefficients))
        if self.steps is not None:
            check_at_least("steps", self.steps, 1)
        try:
            bits = jnp.finfo("float32" if self.dtype is None else self.dtype).bits
        except (TypeError, ValueError):
            bits = 0
        if bits < 16:
            raise ValueError(f"dtype: floating-point type of at least 16 bits, got {self.dtype!r}.")
        if bits < 32 and _long(self.rows):
            raise ValueError(
                f"dtype={self.dtype!r} is too short for steps of degree 7 and more, whose terms "
                "cancel; take rows (a, b, c), or float32."
            )

    @property
    def batches(self) -> bool:
        """Whether it gets batches: steps of degree 7 and more multiply their round-off."""
        return not _long(self.rows)

    @property
    def rows(self) -> Rows:
        """The rows that one call runs through, in order."""
        given = self.coefficients
        rows = TABLES[given] if isinstance(given, str) else given
        steps = len(rows) if self.steps is None else self.steps
        return rows[:steps] + rows[-1:] * (steps - len(rows))

    def factor(self, matrix: jax.Array) -> jax.Array:
        real = self.dtype is not None and not jnp.issubdtype(self.dtype, jnp.complexfloating)
        if real and jnp.iscomplexobj(matrix):
            raise ValueError(f"dtype={self.dtype!r} would drop {matrix.dtype}'s imaginary part.")
        oriented = orient(matrix, self.dtype)
        x = oriented.x
        if x.dtype != working_dtype(x.dtype):  # the Gram matrix of a large one would overflow
            x = x / jnp.linalg.norm(x.astype(working_dtype(x.dtype))).astype(x.dtype)
        on_cpu = functools.partial(_follow, _runs(self.rows, x.shape, x.dtype))
        elsewhere = functools.partial(_follow, [(row,) for row in self.rows])
        return oriented.restore(jax.lax.platform_dependent(x, cpu=on_cpu, default=elsewhere))


def _as_rows(coefficients: Any) -> Rows:
    """Return rows as tuples, which hash; lists and arrays are welcome."""
    try:
        rows = tuple(tuple(float(x) for x in row) for row in coefficients)
    except (TypeError, ValueError):
        rows = ()
    if not rows or not all(len(row) >= 2 and np.isfinite(row).all() for row in rows):
        raise ValueError(
            "coefficients must be a table's name or finite rows (a, b, c), or shorter or longer "
            f"ones from (a, b) on, got {coefficients!r}; a number of steps is `steps`."
        )
    return rows


def _runs(rows: Rows, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> list[Rows]:
    """Split the rows into runs that form the Gram matrix once.

    Each step multiplies its round-off in small directions by a^2, so a run ends before that is
    felt: after two or three steps, in short dtypes and near squares after each one.
    """
    m, n = shape
    most = _LONG_GROWTH if _long(rows) else _GROWTH
    if n < _WIDE * m or dtype != working_dtype(dtype):
        most = 0.0
    runs: list[Rows] = []
    growth = math.inf
    for row in rows:
        if growth <= most:
            runs[-1] += (row,)
        else:
            runs.append((row,))
            growth = 1.0
        growth = max(growth, 1.0) * row[0] ** 2  # at least the round-off of the step before
    return runs


def _follow(runs: list[Rows], x: jax.Array) -> jax.Array:
    """Take the steps of X / ||X||_F: the norm is in the Gram matrix, and divides the first step.

    A run takes its steps on A = X X^H alone, X <- P X and A <- P A P, and applies their product.
    """
    long = any(map(_long, runs))
    precision = "highest" if long else None
    product = functools.partial(commuting_product, precision=precision)
    for index, (first, *others) in enumerate(runs):
        gramian = gram(x, precision)
        if not index:
            norm = jnp.sqrt(jnp.trace(gramian, dtype=working_dtype(gramian.dtype)).real)
            inverse = (1 / norm).astype(gramian.dtype)
            gramian = gramian * inverse * inverse
        whole = step = _step(first, gramian, product)
        for row in others:
            gramian = product(step, product(gramian, step))
            if long:  # round-off that is not Hermitian would grow
                gramian = (gramian + adjoint(gramian)) / 2
            step = _step(row, gramian, product)
            whole = (jnp.matmul if long else product)(step, whole, precision=precision)
        if not index:
            whole = whole * inverse
        x = jnp.matmul(whole, x, precision=precision)
    return x


def _long(rows: Rows) -> bool:
    """Return whether a step is of degree 7 or more: its terms cancel."""
    return any(len(row) > 3 for row in rows)


def _step(row: Row, gramian: jax.Array, product: Callable) -> jax.Array:
    """Return P = a I + b A + c A^2 + ..., by Horner's rule in A^2."""
    identity = jnp.eye(gramian.shape[0], dtype=gramian.dtype)
    square = product(gramian, gramian)
    pairs = [row[i : i + 2] for i in range(0, len(row), 2)]
    above = pairs.pop()[0] * square if len(row) % 2 else 0.0
    for a, b in pairs[:0:-1]:
        above = product(square, a * identity + b * gramian + above)
    a, b = row[:2]
    return a * identity + b * gramian + above


# Aspect from which several steps on the Gram matrix cost less than as many on the matrix.
_WIDE = 1.75
# What a run may multiply round-off by: to 1e-4 in float32, and to 1e-3 where steps are long.
_GROWTH, _LONG_GROWTH = 1e3, 1e4
