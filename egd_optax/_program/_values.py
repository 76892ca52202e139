"""What is known of a value inside a loss: which parameters are in it, and through what products."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from egd_optax._program._layouts import Layout, Shape, broadcast, together

Columns = Mapping[Layout, int]


class View(NamedTuple):
    """A parameter itself, moved, scaled or summed with others, before any product.

    Attributes:
        layout: where its axes are.
        met: uses by data of the same shape, which a product with data explains.
    """

    layout: Layout
    met: frozenset[int] = frozenset()


class Lost(NamedTuple):
    """A parameter whose axes an operation lost: as a use, "number" or "unknown"; what it met."""

    kind: str
    met: frozenset[int]


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of a value.

    Attributes:
        data: whether examples or activations are in it; constants and parameters are none.
        given: whether arrays from outside are in it: examples, or what the loss closes over.
        returned: whether it is a gradient, or went through a transpose of an earlier product.
        behind: uses that it depends on, as bits.
        passed: those of them that data went through, and not the update of a parameter.
        updated: whether it is a parameter that met nothing but gradients.
        views: the parameters that it is made of, by number of the leaf.
        columns: products whose columns are axes of it, as bits, by where these columns are.
        lost: parameters that the last operation lost, by number: how, and the view before it.
    """

    data: bool = False
    given: bool = False
    returned: bool = False
    behind: int = 0
    passed: int = 0
    updated: bool = False
    views: Mapping[int, View] = dataclasses.field(default_factory=dict)
    columns: Columns = dataclasses.field(default_factory=dict)
    lost: Mapping[int, Lost] = dataclasses.field(default_factory=dict)

    @property
    def is_weight(self) -> bool:
        """Whether it is made of parameters alone."""
        return not self.data and bool(self.views or self.columns)


CONSTANT, GIVEN, DATA = Value(), Value(given=True), Value(data=True, given=True)


def names(text: str) -> list[str]:
    """Return the names of operations in a text."""
    return text.split()


def shape_of(variable: Any) -> Shape:
    """Return the shape of a variable of a program."""
    return tuple(getattr(variable.aval, "shape", ()))  # a token has none


def moved(value: Value, move: Callable[[Layout], Layout | None]) -> Value:
    """Return the value after its axes were moved; what `move` makes None of is lost."""
    views, lost = {}, dict(value.lost)
    for leaf, view in value.views.items():
        layout = move(view.layout)
        if layout is not None and layout.factors:
            views[leaf] = View(layout, view.met)
        else:
            lost[leaf] = Lost("unknown" if layout is None else "number", view.met)
    columns = moved_columns(value.columns, move)
    return dataclasses.replace(value, views=views, columns=columns, lost=lost)


def moved_columns(columns: Columns, move: Callable[[Layout], Layout | None]) -> dict[Layout, int]:
    """Return the columns after a move of the axes."""
    after: dict[Layout, int] = {}
    for layout, products in columns.items():
        if (new := move(layout)) is not None and new.factors:
            after[new] = after.get(new, 0) | products
    return after


def union(values: Sequence[Value], shape: Shape) -> Value:
    """Return what is known of values of one shape, or broadcast to it, mixed entry by entry."""
    if len(values) == 1:
        return values[0]
    values = [moved(value, lambda layout: broadcast(layout, shape)) for value in values]
    known = joint_views(values, lambda places: together([p for p in places if p is not None]))
    columns = mixed(value.columns for value in values)
    return dataclasses.replace(known, columns=columns)


def joint_views(
    values: Sequence[Value], join: Callable[[Sequence[Layout | None]], Layout]
) -> Value:
    """Return what is known of values that are brought together, without their columns.

    Args:
        values: these values.
        join: makes one layout of those that a parameter has in each value, None where it has none.
    """
    views: dict[int, View] = {}
    lost = {leaf: how for value in values for leaf, how in value.lost.items()}
    for leaf in dict.fromkeys(leaf for value in values for leaf in value.views):
        found = [value.views.get(leaf) for value in values]
        places = [view.layout if view else None for view in found]
        met = frozenset().union(*(view.met for view in found if view))
        layout = join(places)
        if all(place is None or place.wide_axes <= layout.wide_axes for place in places):
            views[leaf] = View(layout, met)
        else:
            lost[leaf] = Lost("unknown", met)
    return dataclasses.replace(forgotten(values), views=views, lost=lost)


def forgotten(values: Iterable[Value]) -> Value:
    """Return a value made of others in a way that tells nothing of the axes."""
    values = list(values)
    return Value(
        data=any(value.data for value in values),
        given=any(value.given for value in values),
        returned=any(value.returned for value in values),
        behind=functools.reduce(int.__or__, (value.behind for value in values), 0),
        passed=functools.reduce(int.__or__, (value.passed for value in values), 0),
    )


def without_gradient(value: Value) -> Value:
    """Return what is known of a value that no gradient flows through, such as a mask."""
    return Value(value.data, value.given, columns=value.columns)


def bits(products: int) -> list[int]:
    """Return the numbers of the bits that are set."""
    return [i for i, bit in enumerate(reversed(bin(products)[2:])) if bit == "1"]


def mixed(columns: Iterable[Columns]) -> Columns:
    """Return the columns of values of one shape that are mixed entry by entry."""
    return functools.reduce(_mixed, columns, {})


def _mixed(first: Columns, second: Columns) -> Columns:
    """Return the columns of two values that are mixed entry by entry."""
    if not (first and second) or first == second:
        return first or second
    both: dict[Layout, int] = {}
    for a, products in first.items():
        for b, others in second.items():
            if common := products & others:
                layout = a if a == b else together([a, b])
                both[layout] = both.get(layout, 0) | common
    shared = functools.reduce(int.__or__, both.values(), 0)
    for layout, products in (*first.items(), *second.items()):
        if alone := products & ~shared:
            both[layout] = both.get(layout, 0) | alone
    return both
