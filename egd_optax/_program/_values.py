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


@dataclasses.dataclass(frozen=True)
class Value:
    """What is known of a value.

    Attributes:
        data: whether examples or activations are in it; constants and parameters are none.
        given: whether arrays from outside are in it: examples, or what the loss closes over.
        returned: whether it went through a transpose of an earlier product, as in a gradient.
        behind: products that it went through, as bits.
        views: the parameters that it is made of, by number of the leaf.
        columns: products whose columns are axes of it, as bits, by where these columns are.
    """

    data: bool = False
    given: bool = False
    returned: bool = False
    behind: int = 0
    views: Mapping[int, View] = dataclasses.field(default_factory=dict)
    columns: Columns = dataclasses.field(default_factory=dict)

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
    """Return the value after its axes were moved; what `move` makes None of is forgotten."""
    views = {
        leaf: View(layout, view.met)
        for leaf, view in value.views.items()
        if (layout := move(view.layout)) is not None and layout.factors
    }
    return dataclasses.replace(value, views=views, columns=moved_columns(value.columns, move))


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
    views: dict[int, View] = {}
    for leaf, view in (item for value in values for item in value.views.items()):
        same = views.get(leaf, view)
        views[leaf] = View(together([same.layout, view.layout]), same.met | view.met)
    columns = mixed(value.columns for value in values)
    return dataclasses.replace(forgotten(values), views=views, columns=columns)


def forgotten(values: Iterable[Value]) -> Value:
    """Return a value made of others in a way that tells nothing of the axes."""
    values = list(values)
    return Value(
        data=any(value.data for value in values),
        given=any(value.given for value in values),
        returned=any(value.returned for value in values),
        behind=functools.reduce(int.__or__, (value.behind for value in values), 0),
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
