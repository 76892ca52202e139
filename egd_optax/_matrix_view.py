"""Axes of a leaf <-> (batch, m, n): plain matrices, convolution kernels, attention heads."""

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from egd_optax._selection import compile_patterns, is_matrix_like, leaf_path


@dataclasses.dataclass(frozen=True)
class MatrixAxes:
    """Which axes of a leaf make the matrix; the others are batch.

    Args:
        rows: axis or axes of the m rows, the inputs (fan-in) of a Flax kernel.
        columns: axis or axes of the n columns, the outputs (fan-out).
            Negative axes count from the end; several axes are flattened in the order given.

    Raises:
        ValueError: no rows or columns, or an axis named twice.

    Examples:
        A convolution kernel (height, width, in, out) as one (height width in) x out matrix:

        >>> from egd_optax import MatrixAxes
        >>> MatrixAxes(rows=(0, 1, 2), columns=3)
        MatrixAxes(rows=(0, 1, 2), columns=3)
    """

    rows: int | tuple[int, ...]
    columns: int | tuple[int, ...]

    def __post_init__(self) -> None:
        rows, columns = _axis_tuple(self.rows), _axis_tuple(self.columns)
        integers = all(isinstance(axis, int) for axis in rows + columns)
        if not integers or not rows or not columns or len({*rows, *columns}) < len(rows + columns):
            raise ValueError(
                "MatrixAxes needs integer axes, one or more for rows and columns, none twice, "
                f"got rows={self.rows!r}, columns={self.columns!r}."
            )
        for name, axes in (("rows", rows), ("columns", columns)):
            if not isinstance(getattr(self, name), int):  # lists are welcome, but it has to hash
                object.__setattr__(self, name, axes)

    def normalized(self, path: str, ndim: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return rows and columns as axes in [0, ndim), or raise naming the leaf."""
        rows, columns = _axis_tuple(self.rows), _axis_tuple(self.columns)
        positive = [axis % ndim for axis in rows + columns if -ndim <= axis < ndim]
        if len(set(positive)) < len(rows + columns):
            raise ValueError(
                f"axes {self} do not fit leaf {path!r}, which has {ndim} axes: each must lie in "
                f"[{-ndim}, {ndim}) and be named once. Give each kind of leaf its own, such as "
                f"axes={{{path!r}: MatrixAxes(rows=..., columns=...)}}."
            )
        return tuple(positive[: len(rows)]), tuple(positive[len(rows) :])


Axes = MatrixAxes | Mapping[str, MatrixAxes | None] | Callable[[str, Any], MatrixAxes | None] | None


@dataclasses.dataclass(frozen=True)
class MatrixView:
    """A leaf seen as `(batch, m, n)`: its place among the leaves and how to get there and back."""

    index: int
    path: str
    order: tuple[int, ...]
    batch: int
    m: int
    n: int

    def to_stack(self, leaf: jax.Array) -> jax.Array:
        """Return the leaf as `(batch, m, n)`."""
        return leaf.transpose(self.order).reshape(self.batch, self.m, self.n)

    def to_leaf(self, stack: jax.Array, like: jax.Array) -> jax.Array:
        """Return a `(batch, m, n)` stack in the shape of the leaf `like`."""
        shape = tuple(like.shape[axis] for axis in self.order)
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return stack.reshape(shape).transpose(back)


def _axis_tuple(axes: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axes) if isinstance(axes, list | tuple) else (axes,)


def check_axes(axes: Axes) -> None:
    """Raise TypeError unless `axes` is one of the forms of `Axes`."""
    if isinstance(axes, Mapping):
        compile_patterns(axes)
    values = axes.values() if isinstance(axes, Mapping) else [axes]
    known = all(value is None or isinstance(value, MatrixAxes) for value in values)
    if not known and not callable(axes):
        raise TypeError(
            "axes must be None, a MatrixAxes, a mapping from path patterns to MatrixAxes or None, "
            f"or a function (path, leaf) -> MatrixAxes or None, got {axes!r}."
        )


def matrix_views(tree: Any, axes: Axes) -> list[MatrixView]:
    """Return a view of each leaf of `tree` that is to be whitened, in order of the leaves."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found = [_view(index, leaf_path(path), leaf, axes) for index, (path, leaf) in enumerate(leaves)]
    views = [view for view in found if view is not None]
    for first, second in itertools.pairwise(sorted(view.path for view in views)):
        if first == second:
            raise ValueError(
                f"Two leaves have the path {first!r}; rename a key, paths name states."
            )
    return views


def _view(index: int, path: str, leaf: Any, axes: Axes) -> MatrixView | None:
    chosen = axes_of(axes, path, leaf) if is_matrix_like(leaf) else None
    if chosen is None:
        return None
    rows, columns = chosen.normalized(path, leaf.ndim)
    rest = tuple(axis for axis in range(leaf.ndim) if axis not in rows + columns)
    batch, m, n = (math.prod(leaf.shape[axis] for axis in group) for group in (rest, rows, columns))
    return MatrixView(index, path, rest + rows + columns, batch, m, n)


def axes_of(axes: Axes, path: str, leaf: Any) -> MatrixAxes | None:
    """Return the axes of one leaf, or None where it is left as it is."""
    if isinstance(axes, MatrixAxes):
        return axes
    if callable(axes):
        chosen = axes(path, leaf)
        if not (chosen is None or isinstance(chosen, MatrixAxes)):
            raise TypeError(
                f"The function `axes` must return a MatrixAxes or None, got {chosen!r} for leaf "
                f"{path!r}."
            )
        return chosen
    for pattern, value in (axes or {}).items():
        if re.search(pattern, path):
            return value
    if leaf.ndim > 2:
        raise ValueError(
            f"Leaf {path!r} has shape {leaf.shape}; which of its axes make the matrix? Pass "
            f"axes={{{path!r}: MatrixAxes(rows=..., columns=...)}}, or None there to leave the "
            "leaf as it is; for a Flax model, axes=infer_axes(params). A spectrum_monitor needs "
            "the same axes as the whitening."
        )
    return MatrixAxes(0, 1)
