"""What a reader of a loss writes down: the uses of each parameter."""

import collections
from collections.abc import Iterable, Sequence
from typing import Any

import jax.numpy as jnp

from egd_optax._axes import LeafAxes
from egd_optax._program._layouts import Shape
from egd_optax._program._uses import Product, Use, decision
from egd_optax._program._values import Value, View, bits, forgotten


class Record:
    """The uses of all parameters, each once however often a loop is read.

    Attributes:
        products: all products, by number: their bits in values.
        followed: products behind which another one lies on the way to the loss, as bits.
        calls: the calls that are being read, the outermost first.
    """

    def __init__(self) -> None:
        self.products: list[Product] = []
        self.followed = 0
        self.calls: list[Any] = []
        self._of_leaf: dict[int, list[int]] = collections.defaultdict(list)
        self._uses: dict[int, dict[int, Use]] = collections.defaultdict(dict)
        self._numbers: dict[Any, int] = {}

    def _place(self, equation: Any) -> tuple[Any, ...]:
        return equation, *reversed(self.calls)

    def note(self, kind: str, leaf: int, equation: Any) -> int:
        """Write down a use that is no product; return its number."""
        number = self._numbers.setdefault((kind, leaf, id(equation)), len(self._numbers))
        self._uses[leaf][number] = Use(kind, self._place(equation))
        return number

    def note_views(self, kind: str, value: Value, equation: Any) -> None:
        """Write down a use of all parameters in a value, but for those lost in data before."""
        for leaf, view in value.views.items():
            if not view.met:
                self.note(kind, leaf, equation)

    def not_understood(self, equation: Any, operands: Sequence[Value]) -> list[Value]:
        """Write down an operation that no rule explains; return what is known of its outputs."""
        if any(
            jnp.issubdtype(getattr(v.aval, "dtype", bool), jnp.inexact) for v in equation.outvars
        ):
            for operand in operands:
                self.note_views("unknown", operand, equation)
        return [forgotten(operands)] * len(equation.outvars)

    def product(
        self, leaf: int, view: View, equation: Any, alone: bool, axes: Sequence[frozenset[int]]
    ) -> int:
        """Write down a product; return its number.

        Args:
            leaf: number of the leaf.
            view: the leaf as the operand has it.
            equation: the operation.
            alone: whether no data are in the other operand.
            axes: those of the leaf that are rows, window and columns.
        """
        (rows, window, columns), cuts = axes, view.layout.cuts
        key = leaf, id(equation), rows, window, columns, cuts
        number = self._numbers.get(key)
        if number is None:
            number = self._numbers[key] = len(self.products)
            self._of_leaf[leaf].append(number)
            extent = view.layout.extent
            place = self._place(equation)
            self.products.append(Product(place, rows, window, columns, extent, cuts, alone))
        product = self.products[number]
        product.explains |= view.met
        return number

    def is_forward(self, leaf: int, number: int) -> bool:
        """Return whether a product is no transpose of an earlier one, as gradients have it."""
        numbers = self._of_leaf[leaf]
        first = next((n for n in numbers if not self.products[n].alone), numbers[0])
        return self.products[number].rows == self.products[first].rows

    def consume(self, value: Value, turned: Iterable[int]) -> None:
        """Write down a product that uses columns of earlier ones.

        Args:
            value: its operand.
            turned: axes that data are contracted along with parameters multiplied before.
        """
        for layout, products in value.columns.items():
            rows = layout.leaf_axes(turned)
            for number in bits(products):
                self.products[number].parts.add(layout.cuts)
                self.products[number].turned |= rows

    def decision(self, leaf: int, path: str, shape: Shape) -> LeafAxes:
        """Return what the uses of a leaf say."""
        numbers = self._of_leaf[leaf]
        products = [self.products[number] for number in numbers]
        explained = frozenset().union(*(product.explains for product in products))
        uses = [use for number, use in self._uses[leaf].items() if number not in explained]
        forward = [number for number in numbers if self.is_forward(leaf, number)]
        last = not any(self.followed >> number & 1 for number in forward)
        return decision(path, shape, uses, products, last)
