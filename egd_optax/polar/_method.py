"""What a polar method is: a value with `init` and `update`, written for one matrix."""

import dataclasses
import numbers
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

from egd_optax.polar._oriented import working_dtype

State = Any


@runtime_checkable
class PolarMethod(Protocol):
    """A way to compute polar factors, written for one `(m, n)` matrix.

    `scale_by_egd` and `polar_factor` map it over stacks. It must hash and not change: write a
    frozen dataclass. Zero and non-finite matrices are its own affair; 16-bit ones reach it in
    float32. A method without a memory can be a function instead, from a matrix to its factor.
    """

    def init(self, matrix: jax.ShapeDtypeStruct) -> State:
        """Return the state for matrices of this shape and dtype (a pytree of arrays)."""
        ...

    def update(self, matrix: jax.Array, state: State) -> tuple[jax.Array, State]:
        """Return the polar factor of `matrix`, of its shape, and the next state, like `state`."""
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
        return self.function(matrix)


def checked_update(method: PolarMethod, matrix: jax.Array, state: State) -> tuple[jax.Array, State]:
    """Return `method.update`, in the matrix's dtype; raise unless it is what `PolarMethod` says.

    16-bit matrices reach the method in float32.
    """
    name = method.function if isinstance(method, Custom) else method
    result = method.update(matrix.astype(working_dtype(matrix.dtype)), state)
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"update must return the polar factor and the next state, but that of {name!r} "
            f"returned {result!r}."
        )
    factor, after = result
    if getattr(factor, "shape", None) != matrix.shape:
        raise ValueError(
            f"A polar method must keep the shape {matrix.shape} of its matrix, but "
            f"{name!r} returned {factor!r}. Return U V^T."
        )
    lossy = jnp.iscomplexobj(factor) and not jnp.iscomplexobj(matrix)
    if lossy or not jnp.issubdtype(factor.dtype, jnp.inexact):
        raise TypeError(
            f"A polar method must keep the kind {matrix.dtype} of its matrix, but {name!r} "
            f"returned {factor.dtype}."
        )
    before, now = (
        jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", tree)
        for tree in (state, after)
    )
    if jax.tree.flatten(before) != jax.tree.flatten(now):
        raise ValueError(
            f"A method's state keeps its structure, shapes and dtypes, but that of {name!r} "
            f"turned from {before} to {now}."
        )
    return factor.astype(matrix.dtype), after


def as_array(value: Any, needed_by: str) -> jax.Array:
    """Return `value` as one array; a tree of arrays raises."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{needed_by} needs one array, got a {type(value).__name__}; map it over a tree of "
            "arrays by jax.tree.map."
        ) from error


def check_rtol(rtol: float | None) -> None:
    """Raise ValueError unless `rtol` is None or lies in [0, 0.5)."""
    number = isinstance(rtol, numbers.Real) and not isinstance(rtol, bool)
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
