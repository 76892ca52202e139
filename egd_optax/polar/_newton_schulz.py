"""Polynomial polar factor: products alone, driven by a table of coefficients."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egd_optax._checks import check_at_least, check_choice
from egd_optax.polar._coefficients import TABLES, Row, Rows
from egd_optax.polar._linalg import commuting_product, gram, working_dtype
from egd_optax.polar._method import Stateless
from egd_optax.polar._oriented import orient


@dataclasses.dataclass(frozen=True)
class NewtonSchulz(Stateless):
    """Approximate polar factor by odd quintics X <- a X + (b A + c A^2) X, A = X X^H.

    Products are at JAX's default matmul precision. On CPU, where that is the dtype's own, wide
    matrices take two or three steps at a time on A alone (Gram Newton-Schulz).

    Accuracy class: polynomial. Singular values above 1e-3 of the Frobenius norm get the gains of
    their table (docs/how-to-choose.md); the ones below stay small. There is no rank tolerance,
    because a polynomial cannot cut: enough steps lift round-off as well.

    Args:
        coefficients: "polar_express" (8 rows), "standard" (5 rows; Muon's, by Jordan: also
            "jordan") or "dion" (5 rows, by You: also "you"); or rows (a, b, c), such as those of
            `polar_express_coefficients(12, lower=1e-6)`.
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
        table = np.array([[float(x) for x in row] for row in coefficients])
    except (TypeError, ValueError):
        table = np.empty(0)
    if table.shape[1:] != (3,) or not np.isfinite(table).all() or not len(table):
        raise ValueError(
            "coefficients must be a table's name or finite rows (a, b, c), got "
            f"{coefficients!r}; a number of steps is `steps`."
        )
    return tuple(map(tuple, table.tolist()))


def _runs(rows: Rows, shape: tuple[int, ...], dtype: jax.typing.DTypeLike) -> list[Rows]:
    """Split the rows into runs that form the Gram matrix once.

    Each step multiplies its round-off in small directions by a^2, so a run ends before that is
    felt: after two or three steps, in short dtypes and near squares after each one.
    """
    m, n = shape
    most = _GROWTH if n >= _WIDE * m and dtype == working_dtype(dtype) else 0.0
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
    """Take the steps of X / ||X||_F: the norm is in the Gram matrix, and goes into the first row.

    A run takes its steps on A = X X^H alone, X <- P X and A <- P A P, and applies their product.
    """
    for index, (first, *others) in enumerate(runs):
        gramian = gram(x, None)
        whole = step = _step(first if index else _normalized(first, gramian), gramian)
        for row in others:
            gramian = _product(step, _product(gramian, step))
            step = _step(row, gramian)
            whole = _product(step, whole)
        x = whole @ x
    return x


def _normalized(row: Row, gramian: jax.Array) -> Sequence[jax.Array]:
    """Return the row of x -> p(x / ||X||_F)."""
    norm = jnp.sqrt(jnp.trace(gramian, dtype=working_dtype(gramian.dtype)).real)
    numbers = (number / norm**power for number, power in zip(row, (1, 3, 5), strict=True))
    return [number.astype(gramian.dtype) for number in numbers]


def _step(row: Sequence[float | jax.Array], gramian: jax.Array) -> jax.Array:
    """Return P = a I + b A + c A^2."""
    a, b, c = row
    identity = jnp.eye(gramian.shape[0], dtype=gramian.dtype)
    return a * identity + b * gramian + c * _product(gramian, gramian)


_product = functools.partial(commuting_product, precision=None)


# Aspect from which several steps on the Gram matrix cost less than as many on the matrix.
_WIDE = 1.75
# What a run may multiply round-off by: to 1e-4 in float32.
_GROWTH = 1e3
