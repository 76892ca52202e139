"""What a reader of a loss writes down: the uses of each parameter."""

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp

from egd_optax._decisions import LeafAxes
from egd_optax._program._layouts import Shape
from egd_optax._program._parts import Take
from egd_optax._program._uses import Product, Use, decision
from egd_optax._program._values import Columns, Value, View, bits, forgotten

T = TypeVar("T")


class Record:
    """The uses of all parameters, each once however often a loop is read.

    Uses have numbers, their bits in values. A loss is read several times: only then it is known
    through which uses a gradient flows, and which way data pass through a matrix.

    Attributes:
        products: products by number.
        fresh: uses by the operation that is being read, as bits.
        followed: products behind which another one lies on the way to the loss, as bits.
        calls: the calls that are being read, the outermost first.
    """

    def __init__(self) -> None:
        self.fresh = self.followed = 0
        self.calls: list[Any] = []
        self._live, self._read = -1, (0, 0)
        self._uses: dict[int, Use] = {}
        self.products: dict[int, Product] = {}
        self._numbers: dict[Any, int] = {}
        self._of_leaf: dict[int, list[int]] = collections.defaultdict(list)
        self._explained: frozenset[int] = frozenset()

    def again(self, live: int) -> bool:
        """Get ready to read once more, unless nothing new was read.

        Args:
            live: the uses that the loss went through, as bits.
        """
        before, self._read = self._read, (live, len(self._numbers))
        if before == self._read:
            return False
        self._live = live | -1 << len(self._numbers)  # what is new in the next reading counts, too
        self.followed = 0
        for product in self.products.values():
            product.takes.clear()
            product.turned.clear()
        return True

    def note(self, kind: str, leaf: int, equation: Any) -> int:
        """Write down a use that is no product; return its number."""
        number = self._number(leaf, kind, id(equation))
        self._uses[number] = Use(kind, self._place(equation))
        return number

    def note_lost(self, value: Value, equation: Any) -> Value:
        """Write down the parameters whose axes an operation lost; return the value without them."""
        for leaf, (kind, met) in value.lost.items():
            if kind == "number":  # whatever it met by the way: a penalty's distance, for example
                self._explained |= met
            if kind == "number" or not met:
                self.note(kind, leaf, equation)
        return dataclasses.replace(value, lost={}) if value.lost else value

    def note_tables(self, columns: Columns, rest: Iterable[int], equation: Any) -> None:
        """Write down a lookup in a product of parameters alone: those that lie on no other axis."""
        rows = (products for layout, products in columns.items() if not layout.at(rest))
        for number in bits(functools.reduce(int.__or__, rows, 0)):
            if self.products[number].alone:
                self.note("table", self.products[number].leaf, equation)

    def note_views(self, kind: str, value: Value, equation: Any) -> None:
        """Write down a use of all parameters in a value, but for those lost in data before."""
        for leaf, view in value.views.items():
            if not view.met:
                self.note(kind, leaf, equation)

    def not_understood(self, equation: Any, operands: Sequence[Value]) -> list[Value]:
        """Write down an operation that no rule explains; return what is known of its outputs."""
        if any(map(is_real, equation.outvars)):
            for operand in operands:
                self.note_views("unknown", operand, equation)
                self.consume(operand)
        return [forgotten(operands)] * len(equation.outvars)

    def product(self, leaf: int, view: View, equation: Any, axes: Sequence[frozenset[int]]) -> int:
        """Write down a product; return its number.

        Args:
            leaf: number of the leaf.
            view: the leaf as the operand has it.
            equation: the operation.
            axes: those of the leaf that are rows, window and columns.
        """
        layout, (rows, window, columns) = view.layout, axes
        number = self._number(leaf, *axes, layout.cuts, id(equation))
        if number not in self.products:
            place, extent = self._place(equation), layout.extent
            self.products[number] = Product(leaf, place, rows, window, columns, extent, layout.cuts)
        self.products[number].explains |= view.met
        return number

    def is_forward(self, leaf: int, number: int) -> bool:
        """Return whether data pass through a product, and no gradient through its transpose."""
        product, products = self.products[number], self._live_of(leaf, self.products).values()
        if not self.is_of_gradient(product.place):
            return True
        return product.rows == min(products, key=lambda p: p.alone, default=product).rows

    def consume(self, value: Value, each: Iterable[int] = (), turned: Iterable[int] = ()) -> None:
        """Write down that an operation uses columns of products.

        Args:
            value: its operand, such as that of the next product.
            each: axes along which each entry is used by itself.
            turned: axes that data are contracted along with parameters multiplied before.
        """
        for layout, products in value.columns.items():
            rows, take = layout.leaf_axes(turned), Take(layout.cuts, frozenset(layout.at(each)))
            for number in bits(products):
                self.products[number].takes.add(take)
                self.products[number].turned |= rows

    def mix(self, values: Sequence[Value]) -> None:
        """Write down that values are mixed; a head lies behind what its gradient is mixed with.

        A gradient begins with a product of the head's parameters alone, where it is its only use.
        """
        passed = functools.reduce(int.__or__, (value.passed for value in values), 0)
        products = functools.reduce(int.__or__, (p for v in values for p in v.columns.values()), 0)
        alone = sum(1 << n for n in bits(products) if self.products[n].alone)
        self.followed |= passed & ~alone if alone else 0

    def decision(self, leaf: int, path: str, shape: Shape) -> LeafAxes:
        """Return what the uses of a leaf say."""
        products = self._live_of(leaf, self.products)
        explained = self._explained.union(*(product.explains for product in products.values()))
        uses = [u for n, u in self._live_of(leaf, self._uses).items() if n not in explained]
        forward = [number for number in products if self.is_forward(leaf, number)]
        last = not any(self.followed >> number & 1 for number in forward)
        live = bool(self._live & self.source(leaf))
        return decision(path, shape, uses, [*products.values()], live, last)

    def source(self, leaf: int) -> int:
        """Return the bit that stands for a parameter itself: all that is made of it has it."""
        number, self.fresh = self._number(leaf), 0
        return 1 << number

    def _live_of(self, leaf: int, uses: Mapping[int, T]) -> dict[int, T]:
        """Return the uses of a leaf that a gradient flows through, by number."""
        live = (number for number in self._of_leaf[leaf] if self._live >> number & 1)
        return {number: uses[number] for number in live if number in uses}

    def _number(self, leaf: int, *key: Any) -> int:
        number = self._numbers.setdefault((leaf, *key), len(self._numbers))
        if number not in self._of_leaf[leaf]:
            self._of_leaf[leaf].append(number)
        self.fresh |= 1 << number
        return number

    @staticmethod
    def is_of_gradient(place: Iterable[Any]) -> bool:
        """Return whether JAX made an operation, or a call around it, as a transpose."""
        return any(map(_is_transpose, place))

    def _place(self, equation: Any) -> tuple[Any, ...]:
        return equation, *reversed(self.calls)


def _is_transpose(equation: Any) -> bool:
    stack = equation.source_info.name_stack.stack
    return any(type(part).__name__ == "Transform" and part.name == "transpose" for part in stack)


def is_real(variable: Any) -> bool:
    """Return whether a variable has entries that a gradient flows through."""
    return jnp.issubdtype(getattr(variable.aval, "dtype", bool), jnp.inexact)
