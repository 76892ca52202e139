"""What a polar method is: a value with `init` and `update`, written for one matrix."""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from egd_optax._checks import check_rtol
from egd_optax.polar._linalg import working_dtype

State = Any


class PolarMethod(abc.ABC):
    """A way to compute polar factors, written for one `(m, n)` matrix: the base of every method.

    `scale_by_egd` and `polar_factor` map it over stacks. It must hash and not change: write a
    frozen dataclass. Zero and non-finite matrices are its own affair; 16-bit ones reach it in
    float32. A method without a memory can be a function instead; see docs/how-to-choose.md.
    Tall matrices reach it transposed, as wide ones, unless `turns` is False. On CPU they come one
    by one, unless it has `batches = True`: some at a time, as under `vmap`. A method that is made
    of products gains by that; a batched call of LAPACK can hang there.
    """

    turns: ClassVar[bool] = True

    @property
    def batches(self) -> bool:
        """Whether several matrices come at a time on CPU; False in methods that do not say so."""
        return False

    @abc.abstractmethod
    def init(self, matrix: jax.ShapeDtypeStruct) -> State:
        """Return the state for matrices of this shape and dtype (a pytree of arrays)."""

    @abc.abstractmethod
    def update(self, matrix: jax.Array, state: State) -> tuple[jax.Array, State]:
        """Return the polar factor of `matrix`, of its shape, and the next state, like `state`."""


class Stateless(PolarMethod):
    """Base of methods that keep nothing between steps: they write `factor` alone."""

    def init(self, matrix: jax.ShapeDtypeStruct) -> State:
        return ()

    def update(self, matrix: jax.Array, state: State) -> tuple[jax.Array, State]:
        return self.factor(matrix), state

    @abc.abstractmethod
    def factor(self, matrix: jax.Array) -> jax.Array:
        """Return the polar factor of `matrix`, of its shape."""


@dataclasses.dataclass(frozen=True)
class Exact(Stateless):
    """Base of the exact methods: their rank tolerance, relative to the largest singular value."""

    rtol: float | None = None

    def __post_init__(self) -> None:
        check_rtol(self.rtol)


@dataclasses.dataclass(frozen=True)
class Custom(Stateless):
    """A user's function from `(m, n)` to `(m, n)` as a method."""

    function: Callable[[jax.Array], jax.Array]

    turns: ClassVar[bool] = False  # it may be no polar factor, and treat rows and columns unlike

    def factor(self, matrix: jax.Array) -> jax.Array:
        return self.function(matrix)


def checked_update(method: PolarMethod, matrix: jax.Array, state: State) -> tuple[jax.Array, State]:
    """Return `method.update`, in the matrix's dtype; raise unless it is what `PolarMethod` says."""
    name = method.function if isinstance(method, Custom) else method
    precise = matrix.astype(working_dtype(matrix.dtype))
    result = method.update(precise, state)
    if not isinstance(result, tuple) or len(result) != 2:
        raise TypeError(
            f"{name!r} must return the polar factor and the next state, got {result!r}."
        )
    factor, after = result
    told = jax.typeof(factor) if isinstance(factor, jax.Array) else repr(factor)
    kind = jnp.complexfloating if jnp.iscomplexobj(matrix) else jnp.floating
    fits = getattr(factor, "shape", None) == matrix.shape and jnp.issubdtype(factor.dtype, kind)
    before, now = (
        jax.tree.map(lambda x: f"{jnp.result_type(x)}{list(jnp.shape(x))}", tree)
        for tree in (state, after)
    )
    if not fits or jax.tree.flatten(before) != jax.tree.flatten(now):
        raise ValueError(
            f"{name!r} must return U V^T of the shape and kind of its matrix, and a state like the "
            f"one before: got {jax.typeof(precise)} and {before}, returned {told} and {now}."
        )
    return factor.astype(matrix.dtype), after
