"""One small rule for each operation that moves the entries of a value, or picks some of them."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from jax.extend.core import Literal

from egd_optax._program import _layouts as layouts
from egd_optax._program._layouts import Layout
from egd_optax._program._record import Record
from egd_optax._program._values import Value, View, forgotten, moved, names, shape_of

Rule = Callable[[Record, Any, Sequence[Value]], list[Value]]
Move = Callable[[Layout], Layout | None]
REDUCTIONS = names("reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or")
ALONG = names("cumsum cumprod cummax cummin cumlogsumexp")
WINDOWS = names("reduce_window_sum reduce_window_max reduce_window_min reduce_window")


def _moves(move_of: Callable[[Any], Move]) -> Rule:
    """Return the rule of an operation that moves the entries of its first operand."""

    def rule(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
        return [moved(operands[0], move_of(equation))]

    return rule


def _transpose(equation: Any) -> Move:
    order, shape = equation.params["permutation"], shape_of(equation.outvars[0])
    return lambda layout: layouts.arranged(layout, order, shape)


def _reshape(equation: Any) -> Move:
    before, after = shape_of(equation.invars[0]), shape_of(equation.outvars[0])
    order = equation.params.get("dimensions") or range(len(before))  # a transposition before it
    between = tuple(before[axis] for axis in order)
    return lambda layout: layouts.reshaped(layouts.arranged(layout, order, between), after)


def _squeeze(equation: Any) -> Move:
    return lambda layout: layouts.without(layout, equation.params["dimensions"])


def _reduce(equation: Any) -> Move:
    return lambda layout: layouts.without(layout, equation.params["axes"])


def _broadcast(equation: Any) -> Move:
    shape = shape_of(equation.outvars[0])
    places = list(equation.params["broadcast_dimensions"])
    sources = [places.index(axis) if axis in places else None for axis in range(len(shape))]
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


def _sliced(layout: Layout, places: Sequence[tuple[int, Any]]) -> Layout:
    for axis, (start, stop, step) in places:
        layout = layouts.sliced(layout, axis, start, stop, step)
    return layout


def _split(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
    axis, start, parts = equation.params["axis"], 0, []
    for size in map(int, equation.params["sizes"]):
        place = [(axis, (start, start + size, 1))]
        move = functools.partial(_sliced, places=place)
        parts.append(moved(operands[0], move))
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
        if not layout.is_thin():
            views[leaf] = View(layout, view.met)
        elif not view.met:
            looked_up = True
            record.note("table", leaf, equation)
    record.note_views("unknown", indices, equation)
    lost = {layout: n for layout, n in table.columns.items() if layout.at(chosen)}
    record.consume(replace(table, columns=lost))
    if not table.data:
        record.note_tables(lost, {*range(len(before))} - chosen, equation)
    value = moved(replace(table, views={}), move)
    data = table.data or indices.data or looked_up
    return [replace(value, data=data, given=value.given or indices.given, views=views)]


def _unstack(record: Record, equation: Any, operands: Sequence[Value]) -> list[Value]:
    axis = equation.params["axis"]

    def entry(layout: Layout, index: int) -> Layout:
        return layouts.without(layouts.sliced(layout, axis, index, index + 1), [axis])

    moves = (functools.partial(entry, index=i) for i in range(len(equation.outvars)))
    return [moved(operands[0], move) for move in moves]


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
    return [moved(operands[0], lambda old: layouts.resized(old, shape))]


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
    "unstack": _unstack,
    "tile": _moves(_tile),
    "all_gather": _gathered_shards,
    "all_gather_invariant": _gathered_shards,
    **dict.fromkeys(REDUCTIONS, _moves(_reduce)),
    **dict.fromkeys(ALONG, _columns_alone(lambda equation: lambda layout: layout)),
    **dict.fromkeys(WINDOWS, _columns_alone(_pad)),
}
