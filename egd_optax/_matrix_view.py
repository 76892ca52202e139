"""Axes of a leaf <-> (batch, m, n): plain matrices, convolution kernels, attention heads."""

import dataclasses
import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from egd_optax._checks import check_at_least
from egd_optax._selection import is_matrix_like, leaves_by_path


@dataclasses.dataclass(frozen=True, repr=False)
class MatrixAxes:
    """Which axes of a leaf make the matrix; the others are batch.

    Args:
        rows: axis or axes of the m rows, the inputs (fan-in) of a Flax kernel.
        columns: axis or axes of the n columns, the outputs (fan-out).
            Negative axes count from the end; several axes are flattened in the order given.
        groups: number of equal parts of the columns, side by side, each a matrix of its own:
            query, key and value in one kernel, or the groups of a convolution.

    Raises:
        ValueError: no rows or columns, an axis named twice, or no groups.

    Examples:
        >>> from egd_optax import MatrixAxes
        >>> convolution = MatrixAxes(rows=(0, 1, 2), columns=3)  # (height width in) x out
        >>> query_key_value = MatrixAxes(rows=0, columns=1, groups=3)
    """

    rows: int | tuple[int, ...]
    columns: int | tuple[int, ...]
    groups: int = 1

    def __post_init__(self) -> None:
        rows, columns = _axis_tuple(self.rows), _axis_tuple(self.columns)
        named = rows + columns
        integers = all(
            isinstance(axis, numbers.Integral) and not isinstance(axis, bool) for axis in named
        )
        if not (integers and rows and columns and len({*named}) == len(named)):
            raise ValueError(
                "MatrixAxes needs integer axes, one or more for rows and columns, none twice, "
                f"got rows={self.rows!r}, columns={self.columns!r}."
            )
        check_at_least("groups", self.groups, 1)
        for name, given in (("rows", rows), ("columns", columns)):
            axes = tuple(map(int, given))  # lists and NumPy's integers are welcome: it must hash
            object.__setattr__(self, name, axes if len(axes) > 1 else axes[0])
        object.__setattr__(self, "groups", int(self.groups))

    def __repr__(self) -> str:
        groups = f", groups={self.groups}" if self.groups > 1 else ""
        return f"MatrixAxes(rows={self.rows}, columns={self.columns}{groups})"


@dataclasses.dataclass(frozen=True)
class MatrixView:
    """A leaf seen as `(batch, m, n)`: its place among the leaves and how to get there and back.

    Each of the `batch` matrices is one of `groups` parts of the columns, which vary fastest.
    `order` has the axes of the batch, then those of rows and columns, `sides` of each.
    A `turned` view's stack has the transposed matrices, `(batch, n, m)`.
    """

    index: int
    path: str
    order: tuple[int, ...]
    batch: int
    m: int
    n: int
    groups: int = 1
    turned: bool = False
    sides: tuple[int, int] = (1, 1)

    @property
    def axes(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """The leaf's axes that make the batch, the rows and the columns."""
        rows, columns = (len(self.order) - count for count in (sum(self.sides), self.sides[1]))
        return self.order[:rows], self.order[rows:columns], self.order[columns:]

    def part(self, shape: tuple[int, ...]) -> "MatrixView":
        """Return the view of a part of the leaf, which has this shape."""
        batch, m, n = (math.prod(shape[axis] for axis in axes) for axes in self.axes)
        groups = self.groups
        return dataclasses.replace(self, batch=batch * groups, m=m, n=n // groups)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the stack's matrices."""
        return (self.n, self.m) if self.turned else (self.m, self.n)

    def stack_of(self, leaf: Any) -> jax.ShapeDtypeStruct:
        """Return shape and dtype of the leaf's stack."""
        return jax.ShapeDtypeStruct((self.batch, *self.shape), leaf.dtype)

    def to_stack(self, leaf: jax.Array) -> jax.Array:
        """Return the leaf as `(batch, *shape)`."""
        batch, groups = self.batch // self.groups, self.groups
        stack = _moved(leaf, self.order).reshape(batch, self.m, groups * self.n)
        if groups > 1:
            parts = stack.reshape(batch, self.m, groups, self.n).swapaxes(1, 2)
            stack = parts.reshape(self.batch, self.m, self.n)
        return stack.mT if self.turned else stack

    def to_leaf(self, stack: jax.Array, like: jax.Array) -> jax.Array:
        """Return a `(batch, *shape)` stack in the shape of the leaf `like`."""
        stack = stack.mT if self.turned else stack
        shape = tuple(like.shape[axis] for axis in self.order)
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        if self.groups > 1:
            stack = stack.reshape(-1, self.groups, self.m, self.n).swapaxes(1, 2)
        return _moved(stack.reshape(shape), back)


def matrix_views(
    tree: Any, axes: Mapping[str, MatrixAxes | None], turning: bool = False
) -> list[MatrixView]:
    """Return a view of each leaf that has axes, in order of the leaves; all wide if `turning`."""
    views = [
        view_of(index, path, leaf.shape, chosen)
        for index, (path, leaf) in enumerate(leaves_by_path(tree).items())
        if is_matrix_like(leaf) and (chosen := axes.get(path)) is not None
    ]
    return [dataclasses.replace(view, turned=turning and view.m > view.n) for view in views]


def view_of(index: int, path: str, shape: tuple[int, ...], axes: MatrixAxes) -> MatrixView:
    """Return the view of one leaf, or raise ValueError where the axes do not fit its shape."""
    ndim = len(shape)
    rows, columns = _axis_tuple(axes.rows), _axis_tuple(axes.columns)
    named = tuple(axis % ndim for axis in rows + columns if -ndim <= axis < ndim)
    if len(set(named)) < len(rows + columns):
        raise ValueError(
            f"axes {axes} do not fit leaf {path!r} of shape {shape}: each must lie in "
            f"[{-ndim}, {ndim}) and be named once. Give each kind of leaf its own, such as "
            f"axes={{{path!r}: MatrixAxes(rows=..., columns=...)}}."
        )
    rest = tuple(axis for axis in range(ndim) if axis not in named)
    sides = len(rows), len(columns)
    view = MatrixView(index, path, rest + named, 0, 0, 0, sides=sides).part(shape)
    if view.n % axes.groups:
        raise ValueError(
            f"axes {axes} do not fit leaf {path!r} of shape {shape}: its {view.n} columns are not "
            f"{axes.groups} equal parts. Make each part a leaf of its own."
        )
    return dataclasses.replace(view, groups=axes.groups).part(shape)


def _moved(array: jax.Array, order: Sequence[int]) -> jax.Array:
    """Return the array with its axes in this order."""
    return array if list(order) == [*range(array.ndim)] else array.transpose(order)


def _axis_tuple(axes: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axes) if isinstance(axes, list | tuple) else (axes,)
