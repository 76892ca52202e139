"""Operations that bring values together: entry by entry, side by side, one into another."""

import functools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from egd_optax._program import _layouts as layouts
from egd_optax._program._layouts import Layout, Shape
from egd_optax._program._record import Record
from egd_optax._program._values import (
    Value,
    View,
    bits,
    forgotten,
    joint_views,
    moved,
    names,
    shape_of,
    union,
    without_gradient,
)

# Operations entry by entry: what goes in keeps its place.
ELEMENTWISE = names(
    "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil "
    "clamp complex conj convert_element_type copy copy_p cos cosh digamma div eq erf erf_inv erfc "
    "exp exp2 expm1 floor ge gt imag integer_pow is_finite layout_constraint le lgamma log log1p "
    "logistic lt max mesh_cast min mul name ne neg nextafter not or pow real reduce_precision rem "
    "reshard round rsqrt select_n sharding_constraint sign sin sinh sqrt square sub tan tanh xor"
)
MULTIPLY = {"mul", "div", "pow", "atan2", "rem"}
# Operations that hand on each of their operands.
ONE_TO_ONE = names(
    "device_put optimization_barrier pbroadcast pcast pmax pmin ppermute psum psum2 "
    "psum_invariant pvary shard_alike"
)
WRITES = names("dynamic_update_slice scatter scatter-add scatter_add scatter-mul")


def _stack(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
    axis, shape = equation.params["axis"], shape_of(equation.outvars[0])
    places = [i if i < axis else i - 1 for i in range(len(shape))]
    sources = [None if i == axis else place for i, place in enumerate(places)]
    one = (*shape[:axis], 1, *shape[axis + 1 :])
    entries = [moved(v, lambda layout: layouts.arranged(layout, sources, one)) for v in operands]
    return [_joined(record, equation, entries, axis, [1] * len(entries))]


def _concatenate(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
    axis = equation.params["dimension"]
    sizes = [shape_of(variable)[axis] for variable in equation.invars]
    return [_joined(record, equation, operands, axis, sizes)]


def _joined(
    record: Record, equation: Any, operands: Sequence[Value], axis: int, sizes: Sequence[int]
) -> Value:
    """Put values side by side; parameters beside data are joined to them."""
    columns: dict[Layout, int] = {}
    if any(operand.data for operand in operands):
        for operand in operands:
            record.note_views("joined", operand, equation)
        known = forgotten(operands)
    else:
        known = joint_views(operands, lambda places: layouts.joined(places, axis, sizes))
    for places, products in _columns_of(operands).items():
        layout = layouts.joined(places, axis, sizes)
        columns[layout] = columns.get(layout, 0) | products
    return replace(known, columns=columns)


def _columns_of(operands: Sequence[Value]) -> dict[tuple[Layout | None, ...], int]:
    """Return the products, as bits, by where their columns are in each operand."""
    everything = functools.reduce(int.__or__, (p for v in operands for p in v.columns.values()), 0)
    found: dict[tuple[Layout | None, ...], int] = {}
    for number in bits(everything):
        places = (
            next((layout for layout, products in v.columns.items() if products >> number & 1), None)
            for v in operands
        )
        parts = tuple(places)
        found[parts] = found.get(parts, 0) | 1 << number
    return found


def _write(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
    """Follow what is written into; parameters that are written into data are joined to them."""
    into, *others = operands
    kind = "added" if "add" in equation.primitive.name else "joined"
    for other in others:
        record.note_views(kind if into.data or into.given else "unknown", other, equation)
        record.consume(other)
    if any(other.data for other in others):
        record.note_views(kind, into, equation)
        into = replace(into, views={})
    known = forgotten(operands)
    return [replace(known, views=into.views, columns=into.columns)]


def _entry_by_entry(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
    """Mix operands of one shape; parameters that meet data are added or multiplied."""
    shape = shape_of(equation.outvars[0])
    kept = list(operands)
    large = [math.prod(shape_of(variable)) > 1 for variable in equation.invars]
    for place, value in enumerate(operands):
        others = [other for i, other in enumerate(operands) if i != place and large[i]]
        if value.views and others:
            kept[place] = _meeting(record, equation, value, others, shape)
    record.mix(operands)
    mixed = union(kept, shape)
    mixed = _updated(mixed, operands)
    if mixed.data and any(_is_update(value, shape) for value in operands):
        raw = all(_is_update(v, shape) or not (v.behind or v.columns or v.views) for v in operands)
        mixed = replace(mixed, data=not raw)
    return [mixed]


def _updated(mixed: Value, operands: Sequence[Value]) -> Value:
    """Return what operands come to, where a gradient may update a parameter: it hands on no data.

    What is mixed with data that went forward is no gradient any more.
    """
    data = [value for value in operands if value.data]
    own = [value for value in operands if value.views or value.updated]
    forward = any(not value.returned and not value.updated for value in data if not value.views)
    if own:
        through = [
            value for value in operands if value.views or value.updated or not value.returned
        ]
        mixed = replace(mixed, passed=forgotten(through).passed, updated=not forward)
    return replace(mixed, returned=mixed.returned and all(value.returned for value in data))


def _meeting(
    record: Record, equation: Any, value: Value, others: Sequence[Value], shape: Shape
) -> Value:
    """Return a value made of parameters as it is after it meets other values.

    Raw data of its very shape may be a mask of the parameter, a gradient an update of it: a product
    with other data explains that later. Otherwise the parameter is a bias, or a scale.
    """
    data = any(other.data for other in others)
    active = any(o.data and o.behind and not (o.returned or o.views) for o in others)
    given = any(other.given and not other.is_weight for other in others)
    kind = "multiplied" if equation.primitive.name in MULTIPLY else "added"
    views = {}
    for leaf, view in value.views.items():
        layout = layouts.broadcast(view.layout, shape)
        spread, thin = layout.is_spread(), layout.is_thin()
        scales = spread and thin and any(o.is_weight and leaf not in o.views for o in others)
        if not (data or scales or (given and spread)):
            views[leaf] = view
            continue
        met = view.met or frozenset({record.note(kind, leaf, equation)})
        if not (spread or thin or active):
            views[leaf] = View(view.layout, met)
    return replace(value, views=views)


def _is_update(value: Value, shape: Shape) -> bool:
    """Return whether it is a product of parameters alone, such as one of low rank, not repeated."""
    columns = [layouts.broadcast(layout, shape) for layout in value.columns]
    repeated = any(all(layout.is_spread([i]) for layout in columns) for i in range(len(shape)))
    return value.is_weight and not value.views and not repeated


def _handed_on(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
    return list(operands)


def _stopped(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
    return [without_gradient(operand) for operand in operands]


MIXES = {
    "concatenate": _concatenate,
    "stack": _stack,
    "stop_gradient": _stopped,
    **dict.fromkeys(WRITES, _write),
    **dict.fromkeys(ELEMENTWISE, _entry_by_entry),
    **dict.fromkeys(ONE_TO_ONE, _handed_on),
}
