"""What a polar method is: a value with `init` and `update`, written for one matrix."""

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax

State = Any


@runtime_checkable
class PolarMethod(Protocol):
    """A way to compute polar factors, written for one `(m, n)` matrix.

    `scale_by_egd` and `polar_factor` map it over stacks. A method without a memory can be a
    function instead, from a matrix to its polar factor.
    """

    def init(self, matrix: jax.ShapeDtypeStruct) -> State:
        """Return the state for matrices of this shape and dtype (a pytree of arrays)."""
        ...

    def update(self, matrix: jax.Array, state: State) -> tuple[jax.Array, State]:
        """Return the polar factor of `matrix`, shape and dtype kept, and the next state."""
        ...


class Stateless:
    """Base of this package's methods that keep nothing between steps: they write `factor` alone."""

    def init(self, matrix: jax.ShapeDtypeStruct) -> State:
        del matrix
        return ()

    def update(self, matrix: jax.Array, state: State) -> tuple[jax.Array, State]:
        return self.factor(matrix), state

    def factor(self, matrix: jax.Array) -> jax.Array:
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class Custom(Stateless):
    """A user's function from `(m, n)` to `(m, n)` as a method."""

    function: Callable[[jax.Array], jax.Array]

    def factor(self, matrix: jax.Array) -> jax.Array:
        result = self.function(matrix)
        if getattr(result, "shape", None) != matrix.shape:
            raise ValueError(
                f"A polar method must keep the shape {matrix.shape} of its matrix, but "
                f"{self.function!r} returned {result!r}. Return U V^T."
            )
        return result.astype(matrix.dtype)


def check_rtol(rtol: float | None) -> None:
    """Raise ValueError unless `rtol` is None or lies in [0, 0.5)."""
    number = isinstance(rtol, int | float) and not isinstance(rtol, bool)
    if rtol is not None and not (number and 0.0 <= rtol < 0.5):
        raise ValueError(
            "rtol is a share of the largest singular value and must lie in [0, 0.5), got "
            f"{rtol!r}. Leave it None for the default of the dtype."
        )


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise unless `value` is an integer (NumPy's count) of at least `least`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
