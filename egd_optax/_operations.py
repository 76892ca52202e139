"""One small rule for each operation that moves entries, or mixes them entry by entry."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from jax.extend.core import Literal

from egd_optax import _layouts as layouts
from egd_optax._layouts import Layout, Shape
from egd_optax._record import Record
from egd_optax._values import Value, View, bits, forgotten, moved, shape_of, union

Rule = Callable[[Record, Any, Sequence[Value]], list[Value]]
Move = Callable[[Layout], Layout | None]
# Operations entry by entry: what goes in keeps its place.
ELEMENTWISE = (
    "abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil "
    "clamp complex conj convert_element_type copy copy_p cos cosh digamma div erf erf_inv erfc exp "
    "exp2 expm1 floor imag integer_pow layout_constraint lgamma log log1p logistic max mesh_cast "
    "min mul name neg nextafter not or pbroadcast pcast pow pvary real reduce_precision rem "
    "reshard round rsqrt select_n sharding_constraint sign sin sinh sqrt square sub tan tanh xor"
).split()
MULTIPLY = {"mul", "div", "pow", "atan2", "rem"}
# Operations that hand on each of their operands.
ONE_TO_ONE = (
    "device_put optimization_barrier pmax pmin ppermute psum psum2 psum_invariant shard_alike"
).split()
REDUCTIONS = ("reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or")
ALONG = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
WINDOWS = ("reduce_window_sum", "reduce_window_max", "reduce_window_min", "reduce_window")
WRITES = ("dynamic_update_slice", "scatter", "scatter-add", "scatter_add", "scatter-mul")


def carry(record: Record, equation: Any, value: Value, move: Move) -> Value:
    """Return the value after a move; what it makes None of is a use that is not understood."""
    for leaf, view in value.views.items():
        if not view.met and move(view.layout) is None:
            record.note("unknown", leaf, equation)
    return moved(value, move)


def _moves(move_of: Callable[[Any], Move]) -> Rule:
    """Return the rule of an operation that moves the entries of its first operand."""

    def rule(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
        return [carry(record, equation, operands[0], move_of(equation))]

    return rule


def _transpose(equation: Any) -> Move:
    order, shape = equation.params["permutation"], shape_of(equation.outvars[0])
    return lambda layout: layouts.arranged(layout, order, shape)


def _reshape(equation: Any) -> Move:
    shape = shape_of(equation.outvars[0])
    if equation.params.get("dimensions") is not None:
        return lambda layout: None
    return lambda layout: layouts.reshaped(layout, shape)


def _squeeze(equation: Any) -> Move:
    return lambda layout: layouts.without(layout, equation.params["dimensions"])


def _reduce(equation: Any) -> Move:
    return lambda layout: layouts.without(layout, equation.params["axes"])


def _broadcast(equation: Any) -> Move:
    shape = shape_of(equation.outvars[0])
    places = dict(map(reversed, enumerate(equation.params["broadcast_dimensions"])))
    sources = [places.get(axis) for axis in range(len(shape))]
    return lambda layout: layouts.arranged(layout, sources, shape)


def _tile(equation: Any) -> Move:
    return lambda layout: layouts.tiled(layout, equation.params["reps"])


def _pad(equation: Any) -> Move:
    return lambda layout: layouts.padded(layout, shape_of(equation.outvars[0]))


def _slice(equation: Any) -> Move:
    params, ndim = equation.params, len(shape_of(equation.outvars[0]))
    steps = params["strides"] or (1,) * ndim
    places = zip(params["start_indices"], params["limit_indices"], steps, strict=True)
    return functools.partial(_sliced, places=list(enumerate(places)))


def _dynamic_slice(equation: Any) -> Move:
    places, sizes = [], equation.params["slice_sizes"]
    for axis, (start, size) in enumerate(zip(equation.invars[1:], sizes, strict=False)):
        begin = int(start.val) if isinstance(start, Literal) else None
        places.append((axis, (begin, (begin or 0) + size, 1)))
    return functools.partial(_sliced, places=places)


def _sliced(layout: Layout, places: list[tuple[int, tuple[int | None, int, int]]]) -> Layout:
    for axis, (start, stop, step) in places:
        layout = layouts.sliced(layout, axis, start, stop, step)
    return layout


def _split(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
    axis, start, parts = equation.params["axis"], 0, []
    for size in map(int, equation.params["sizes"]):
        place = [(axis, (start, start + size, 1))]
        move = functools.partial(_sliced, places=place)
        parts.append(carry(record, equation, operands[0], move))
        start += size
    return parts


def _gather(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
    """Follow the operand; a parameter of which one axis is left is a table."""
    table, indices = operands
    numbers, shape = equation.params["dimension_numbers"], shape_of(equation.outvars[0])
    sizes, before = equation.params["slice_sizes"], shape_of(equation.invars[0])
    chosen = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
    kept = iter([axis for axis in range(len(before)) if axis not in chosen])
    sources = [next(kept) if axis in numbers.offset_dims else None for axis in range(len(shape))]

    def move(layout: Layout) -> Layout:
        for axis in range(len(before)):
            if axis not in chosen:
                layout = layouts.sliced(layout, axis, None, sizes[axis])
        return layouts.arranged(layouts.in_turn(layout, chosen), sources, shape)

    views, looked_up = {}, False
    for leaf, view in table.views.items():
        layout = move(view.layout)
        if len({f.axis for f in layout.factors if f.size > 1}) > 1:
            views[leaf] = View(layout, view.met)
        elif not view.met:
            looked_up = True
            record.note("table", leaf, equation)
    record.note_views("unknown", indices, equation)
    value = moved(table, move)
    data = table.data or indices.data or looked_up
    return [replace(value, data=data, given=value.given or indices.given, views=views)]


def _unstack(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
    axis = equation.params["axis"]

    def entry(layout: Layout, index: int) -> Layout:
        return layouts.without(layouts.sliced(layout, axis, index, index + 1), [axis])

    moves = (functools.partial(entry, index=i) for i in range(len(equation.outvars)))
    return [carry(record, equation, operands[0], move) for move in moves]


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
    views, columns = {}, {}
    data = any(operand.data for operand in operands)
    for leaf in {leaf for operand in operands for leaf in operand.views}:
        found = [operand.views.get(leaf) for operand in operands]
        if data:
            for operand in operands:
                if leaf in operand.views and not operand.views[leaf].met:
                    record.note("joined", leaf, equation)
            continue
        parts = [view.layout if view else None for view in found]
        met = frozenset().union(*(view.met for view in found if view))
        views[leaf] = View(layouts.joined(parts, axis, sizes), met)
    for parts, products in _columns_of(operands).items():
        layout = layouts.joined(parts, axis, sizes)
        columns[layout] = columns.get(layout, 0) | products
    return replace(forgotten(operands), views=views, columns=columns)


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
    if any(other.data for other in others):
        record.note_views(kind, into, equation)
        into = replace(into, views={})
    known = forgotten(operands)
    return [replace(known, views=into.views, columns=into.columns)]


def _columns_alone(move_of: Callable[[Any], Move]) -> Rule:
    """Return the rule of an operation that is understood of activations, not of parameters."""

    def rule(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
        record.not_understood(equation, operands)
        value = moved(replace(operands[0], views={}), move_of(equation))
        return [replace(forgotten(operands), columns=value.columns)]

    return rule


def _gathered_shards(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
    if not equation.params.get("tiled"):
        return record.not_understood(equation, operands)
    shape = shape_of(equation.outvars[0])
    return [carry(record, equation, operands[0], lambda old: layouts.resized(old, shape))]


def _entry_by_entry(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
    """Mix operands of one shape; parameters that meet data are added or multiplied."""
    shape = shape_of(equation.outvars[0])
    kept = list(operands)
    for place, value in enumerate(operands):
        others = [*operands[:place], *operands[place + 1 :]]
        if value.views and others:
            kept[place] = _meeting(record, equation, value, others, shape)
    mixed = union(kept, shape)
    if mixed.data and any(_is_update(value, shape) for value in operands):
        raw = all(_is_update(v, shape) or not (v.behind or v.columns or v.views) for v in operands)
        mixed = replace(mixed, data=not raw)
    return [mixed]


def _meeting(
    record: Record, equation: Any, value: Value, others: Sequence[Value], shape: Shape
) -> Value:
    """Return a value made of parameters as it is after it meets other values.

    Data of its very shape may be a mask of the parameter or an update of it: a product with other
    data explains that later. Repeated over data, the parameter is a bias, or a scale.
    """
    data = any(other.data for other in others)
    given = any(other.given and not other.is_weight for other in others)
    kind = "multiplied" if equation.primitive.name in MULTIPLY else "added"
    views = {}
    for leaf, view in value.views.items():
        layout = layouts.broadcast(view.layout, shape)
        spread, met = layout.is_spread(), view.met
        if not met and (data or (given and spread)):
            met = frozenset({record.note(kind, leaf, equation)})
        if not met or not (spread or len({factor.axis for factor in layout.factors}) < 2):
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
    return [Value(operand.data, operand.given) for operand in operands]


MOVES: dict[str, Rule] = {
    "transpose": _moves(_transpose),
    "reshape": _moves(_reshape),
    "squeeze": _moves(_squeeze),
    "broadcast_in_dim": _moves(_broadcast),
    "slice": _moves(_slice),
    "dynamic_slice": _moves(_dynamic_slice),
    "split": _split,
    "pad": _moves(_pad),
    "rev": _moves(lambda equation: lambda layout: layout),
    "gather": _gather,
    "concatenate": _concatenate,
    "stack": _stack,
    "unstack": _unstack,
    "tile": _moves(_tile),
    "all_gather": _gathered_shards,
    "all_gather_invariant": _gathered_shards,
    "stop_gradient": _stopped,
    **dict.fromkeys(REDUCTIONS, _moves(_reduce)),
    **dict.fromkeys(ALONG, _columns_alone(lambda equation: lambda layout: layout)),
    **dict.fromkeys(WINDOWS, _columns_alone(_pad)),
    **dict.fromkeys(WRITES, _write),
    **dict.fromkeys(ELEMENTWISE, _entry_by_entry),
    **dict.fromkeys(ONE_TO_ONE, _handed_on),
}
