"""From all uses of a parameter in a loss to one decision about it."""

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
from jax.extend import source_info_util

from egd_optax._decisions import LeafAxes
from egd_optax._matrix_view import MatrixAxes
from egd_optax._program._layouts import Shape
from egd_optax._program._parts import Cuts, NotEqual, Take, parts_of

LIBRARIES = (str(Path(jax.__file__).parents[1]), str(Path(__file__).parents[1]))
Place = tuple[Any, ...]  # an operation of a program, then the calls around it, from inside
# What a use says of a leaf that is no matrix. The first that is found counts.
NO_MATRIX = {
    "table": "embedding: looked up row by row",
    "depthwise": "depthwise: a filter for each channel",
    "vector": "vector: contracted to one number",
    "token": "token: a learned input, repeated over the data",
    "joined": "joined to the data",
    "multiplied": "scale: multiplied entry by entry",
    "added": "bias: added entry by entry",
    "number": "numbers: its entries are summed up, or used one by one",
}
UNUSED = "unused: no gradient of the loss reaches it"
LOST = "the loss depends on it in a way that is not understood"
HEAD = "output head: no matrix behind it"
HOW = "make each part a leaf, or an axis of its own"


@dataclasses.dataclass(frozen=True)
class Use:
    """What one operation does with a parameter: a key of NO_MATRIX, or "unknown"."""

    kind: str
    place: Place


@dataclasses.dataclass
class Product:
    """A parameter as operand of a dot product or a convolution.

    Attributes:
        leaf: number of the parameter.
        place: the operation, and the calls that it stands in.
        rows: the leaf's axes that are contracted.
        window: those that a convolution's window slides along.
        columns: those that are axes of the result.
        extent: sizes of the leaf's axes there.
        cuts: what was taken of the leaf before, each entry of a batch by itself among it.
        picked: whether something was taken before the product.
        alone: whether no data pass through it.
        explains: uses that this product shows to be masks or updates of the parameter.
        takes: what was taken of the result before each product that used it.
        turned: the leaf's axes that are contracted with data later, so that they are the rows.
    """

    leaf: int
    place: Place
    rows: frozenset[int]
    window: frozenset[int]
    columns: frozenset[int]
    extent: Shape
    cuts: Cuts
    picked: bool = False
    alone: bool = False
    explains: frozenset[int] = frozenset()
    takes: set[Take] = dataclasses.field(default_factory=set)
    turned: set[int] = dataclasses.field(default_factory=set)

    @property
    def roles(self) -> tuple[frozenset[int], frozenset[int], frozenset[int]]:
        """Rows, window and columns, in the direction in which data pass."""
        turned = self.turned and not self.turned & self.rows
        rows, columns = (self.columns, self.rows) if turned else (self.rows, self.columns)
        return rows, self.window, columns

    def is_alike(self, other: "Product") -> bool:
        """Return whether the other one is this matrix, or its transpose, as gradients have it."""
        rows, window, columns = self.roles
        return other.roles in ((rows, window, columns), (columns, window, rows))


class Unclear(Exception):
    """The uses of a leaf do not say which matrix it is."""


def decision(
    path: str,
    shape: Shape,
    uses: Sequence[Use],
    products: Sequence[Product],
    live: bool,
    last: bool,
) -> LeafAxes:
    """Return what all uses of a leaf say.

    Args:
        path: the leaf's path.
        shape: its shape.
        uses: those that are no products.
        products: those that are some.
        live: whether a gradient of the loss flows to it.
        last: whether no product lies between it and the loss.
    """
    if not live:
        return LeafAxes(path, shape, None, UNUSED)
    try:
        axes, reason = _verdict(shape, uses, products, last)
    except Unclear as problem:
        return LeafAxes(path, shape, None, f"unknown: {problem}", known=False)
    return LeafAxes(path, shape, axes, reason)


def where(use: Use | Product) -> str:
    """Return the operation of a use, and the line of the user's code that it stands in."""
    lines = [line for equation in use.place for line in _lines(equation)]
    own = [line for line in lines if not is_library(line[0])] or lines
    line = f", {shown_line(*own[0])}" if own else ""
    return f"{use.place[0].primitive.name}{line}"


def is_library(file: str) -> bool:
    """Return whether a file is not the user's."""
    return file.startswith(LIBRARIES)


def shown_line(file: str, line: Any) -> str:
    """Return a line as tables and errors show it; a notebook's cells have files without a name."""
    cell = re.search(r"ipykernel_\d+[/\\]", file)
    return f"notebook cell, line {line}" if cell else f"{Path(file).name}:{line}"


def _lines(equation: Any) -> list[tuple[str, str]]:
    """Return files and lines that an operation was called from, from inside."""
    frames = source_info_util.summarize(equation.source_info, 1000).splitlines()
    found = (re.match(r"(.*?):(\d+)", frame) for frame in reversed(frames))
    return [(match[1], match[2]) for match in found if match]


def _verdict(
    shape: Shape, uses: Sequence[Use], products: Sequence[Product], last: bool
) -> tuple[MatrixAxes | None, str]:
    kinds = {use.kind: use for use in reversed(uses)}
    if unknown := kinds.get("unknown"):
        raise Unclear(f"{where(unknown)} is not understood")
    kind = next((kind for kind in NO_MATRIX if kind in kinds), None)
    if kind and products and kind not in ("table", "number"):
        raise Unclear(f"two uses, {kind} by {where(kinds[kind])} and {where(products[0])}")
    if kind and not (kind == "number" and products):
        return None, f"{NO_MATRIX[kind]}: {where(kinds[kind])}"
    if not products:
        raise Unclear(LOST)
    first = min(products, key=lambda product: product.alone)
    for other in products:
        if not first.is_alike(other):
            raise Unclear(f"two uses that disagree, {where(first)} and {where(other)}")
    return _matrix(shape, first, products, last)


def _matrix(
    shape: Shape, first: Product, products: Sequence[Product], last: bool
) -> tuple[MatrixAxes | None, str]:
    """Return the axes of products that agree, and why."""
    rows, window, columns = first.roles
    parts = _parts(shape, first, products)
    if not any(parts[axis] for axis in columns):  # each one has a product of its own: no batch
        parts |= dict.fromkeys(columns, 1)
    inputs = tuple(axis for axis in sorted(rows | window) if parts[axis])
    outputs = sorted((axis for axis in columns if parts[axis]), key=lambda a: (parts[a] == 1, a))
    if not (inputs and outputs):
        kind = "table" if first.picked else "vector" if rows | window else "multiplied"
        return None, f"{NO_MATRIX[kind]}: {where(first)}"
    if last:
        return None, f"{HEAD}: {where(first)}"
    kind = "convolution" if window else "matrix"
    return MatrixAxes(inputs, tuple(outputs), parts[outputs[0]]), f"{kind}: {where(first)}"


def _parts(shape: Shape, first: Product, products: Sequence[Product]) -> dict[int, int]:
    """Return for each axis of rows and columns in how many parts it is; 0: it is batch."""
    rows, window, columns = first.roles
    if mixed := (rows | window) & columns:
        raise Unclear(f"axis {min(mixed)} is both summed and kept by {where(first)}; split it")
    takes = [take for product in products for take in product.takes or {Take(product.cuts)}]
    parts = {}
    for axis in rows | window | columns:
        try:
            parts[axis] = parts_of(axis, first.extent[axis], takes)
        except NotEqual as how:
            raise Unclear(f"columns go different ways {how} after {where(first)}; {HOW}") from None
    divided = [axis for axis, number in parts.items() if number > 1]
    if {*divided} - columns:
        raise Unclear(f"rows are used in parts by {where(first)}; {HOW}")
    if len(divided) > 1 or any(first.extent[axis] != shape[axis] for axis in divided):
        raise Unclear(f"columns of shards or of two axes go different ways after {where(first)}")
    return parts
