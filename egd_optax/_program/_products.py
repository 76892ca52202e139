"""Dot products and convolutions: which axes of a parameter are rows, columns and batch."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from egd_optax._program._layouts import Layout, Shape, arranged, in_parts, in_turn
from egd_optax._program._record import Record
from egd_optax._program._values import (
    Columns,
    Value,
    forgotten,
    mixed,
    moved,
    moved_columns,
    shape_of,
)


@dataclasses.dataclass(frozen=True)
class Side:
    """One operand of a product.

    Attributes:
        value: what is known of it.
        shape: its shape.
        rows: axes that are contracted; `window`: those that slide; `batch`: those of both operands.
        sources: for each axis of the result, the operand's axis that it is, if any.
    """

    value: Value
    shape: Shape
    rows: tuple[int, ...]
    window: tuple[int, ...]
    batch: tuple[int, ...]
    sources: tuple[int | None, ...]

    @property
    def columns(self) -> tuple[int, ...]:
        taken = {*self.rows, *self.window, *self.batch}
        return tuple(axis for axis in range(len(self.shape)) if axis not in taken)

    def each(self, layout: Layout) -> Layout:
        """Return a layout where each entry of the batch is used by itself."""
        return in_turn(layout, self.batch)

    def move(self, equation: Any) -> Callable[[Layout], Layout]:
        """Return the move of a layout of this operand to the result."""
        shape = shape_of(equation.outvars[0])
        return lambda layout: arranged(layout, self.sources, shape)

    def is_token(self) -> bool:
        """Return whether its parameters stand for data beside another parameter."""
        views = self.value.views.values()
        axes = (*self.columns, *self.batch)
        return self.value.data or any(v.met or v.layout.is_spread(axes) for v in views)

    def is_frozen(self) -> bool:
        """Return whether it is a matrix from outside, without any parameter."""
        value = self.value
        trained = value.views or value.columns or value.behind
        wide = all(any(self.shape[i] > 1 for i in axes) for axes in (self.rows, self.columns))
        return value.given and not trained and wide


def contract(record: Record, equation: Any, sides: tuple[Side, Side]) -> Value:
    """Return what is known of a product, and write it down."""
    result = forgotten([side.value for side in sides])
    tokens = [a.is_token() and bool(b.value.views) for a, b in (sides, sides[::-1])]
    tokens = [False, False] if all(tokens) else tokens
    weights = [s.value.is_weight and not t for s, t in zip(sides, tokens, strict=True)]
    alone = not any(side.columns or side.value.columns for side in sides)
    if all(weights) and alone:  # a penalty, such as vdot(w, w)
        for side in sides:
            record.note_views("number", side.value, equation)
        return result
    columns: list[Columns] = []
    ways: set[bool] = set()  # forward, or back
    for i, side in enumerate(sides):
        other, beside = sides[1 - i].value, weights[1 - i]
        turned = weights[i] and not beside and bool(side.value.columns)
        columns.append(_used(record, equation, side, bool(other.views) or beside, turned))
        meets = any(layout.at(side.rows) for layout in side.value.columns)
        if turned or (meets and not side.value.returned and sides[1 - i].is_frozen()):
            ways.add(True)
        if tokens[i]:
            record.note_views("token", side.value, equation)
            continue
        alone = beside or not (other.data or other.given or tokens[1 - i])
        for leaf in side.value.views:
            number, new = _product(record, equation, side, leaf, alone)
            columns.append(new)
            ways.add(record.is_forward(leaf, number))
    if True in ways:
        record.followed |= result.passed
    return replace(
        result,
        data=result.data or weights[0] != weights[1],
        returned=ways == {False} or (result.returned and True not in ways),
        columns=mixed(columns),
    )


def _used(record: Record, equation: Any, side: Side, beside_weight: bool, turned: bool) -> Columns:
    """Write down the use of columns of earlier products; return them as they are in the result."""
    value = moved(side.value, side.each) if beside_weight else side.value
    record.consume(value, side.batch, side.rows if turned else ())
    return moved_columns(value.columns, side.move(equation))


def _product(
    record: Record, equation: Any, side: Side, leaf: int, alone: bool
) -> tuple[int, Columns]:
    """Write down the product of a parameter; return its number, and its columns in the result."""
    view = side.value.views[leaf]
    layout = side.each(view.layout)
    axes = [layout.leaf_axes(axes) for axes in (side.rows, side.window, side.columns)]
    number = record.product(leaf, view._replace(layout=layout), equation, axes)
    record.products[number].alone = alone
    record.products[number].picked = bool(view.layout.cuts)
    return number, moved_columns({layout: 1 << number}, side.move(equation))


def _dot_general(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
    contracted, batch = equation.params["dimension_numbers"]
    shapes = [shape_of(variable) for variable in equation.invars]
    free = [
        [axis for axis in range(len(shape)) if axis not in (*rows, *both)]
        for shape, rows, both in zip(shapes, contracted, batch, strict=True)
    ]
    nothing = [[None] * len(axes) for axes in free]
    sources = [(*batch[0], *free[0], *nothing[1]), (*batch[1], *nothing[0], *free[1])]
    first, second = (
        Side(operands[i], shapes[i], tuple(contracted[i]), (), tuple(batch[i]), sources[i])
        for i in (0, 1)
    )
    return [contract(record, equation, (first, second))]


def _ragged_dot(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
    """Rows of the left operand in groups, each with a matrix of its own: experts."""
    numbers = equation.params["ragged_dot_dimension_numbers"]
    (rows, others), batch = numbers.dot_dimension_numbers
    groups = tuple(numbers.rhs_group_dimensions)
    if any(batch) or len(shape_of(equation.outvars[0])) != 2 or not groups:
        return record.not_understood(equation, operands)
    shapes = [shape_of(variable) for variable in equation.invars]
    (column,) = {*range(3)} - {*others, *groups}
    (row,) = {*range(2)} - {*rows}
    left = Side(operands[0], shapes[0], tuple(rows), (), (), (row, None))
    right = Side(operands[1], shapes[1], tuple(others), (), groups, (None, column))
    return [contract(record, equation, (left, right))]


def _convolution(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
    params, (image, kernel) = equation.params, operands
    image_shape, shape = (shape_of(variable) for variable in equation.invars)
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    (batch, feature, *_), (column, row, *window) = numbers.lhs_spec, numbers.rhs_spec
    out_batch, out_feature, *_ = numbers.out_spec
    sources: list[list[int | None]] = [[None] * len(shape) for _ in operands]
    sources[0][out_batch], sources[1][out_feature] = batch, column
    if params["batch_group_count"] > 1 or (image.views and not kernel.views):
        return record.not_understood(equation, operands)
    if groups > 1 and shape[row] == 1:
        record.note_views("depthwise", kernel, equation)
        sources[0][out_feature] = feature
        for view in kernel.views.values():  # where it is a batch of kernels, so is the image's
            batch_of = math.prod(factor.size for factor in view.layout.axes[column][:-1])
            image = moved(image, functools.partial(_apart, axis=feature, parts=batch_of))
        kernel = forgotten([kernel])
    elif groups > 1:
        image = moved(image, lambda layout: in_parts(layout, feature, groups, whole_axes=True))
        kernel = moved(kernel, lambda layout: in_parts(layout, column, groups))
    left = Side(image, image_shape, (feature,), (), (), tuple(sources[0]))
    right = Side(kernel, shape, (row,), tuple(window), (), tuple(sources[1]))
    return [contract(record, equation, (left, right))]


def _apart(layout: Layout, axis: int, parts: int) -> Layout:
    """Return the layout of parts of an axis, each used apart, where it has several of a leaf's."""
    several = len({factor.axis for factor in layout.axes[axis]}) > 1
    return in_parts(layout, axis, parts) if several else layout


PRODUCTS = {
    "dot_general": _dot_general,
    "ragged_dot_general": _ragged_dot,
    "conv_general_dilated": _convolution,
}
