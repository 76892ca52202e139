"""From all uses of a parameter in a loss to one decision about it."""

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.extend import source_info_util

from egd_optax._axes import LeafAxes
from egd_optax._matrix_view import MatrixAxes
from egd_optax._program._layouts import Cut, Shape

Cuts = frozenset[Cut]
Place = tuple[Any, ...]  # an operation of a program, then the calls around it, from inside
LIBRARIES = (str(Path(jax.__file__).parents[1]), str(Path(__file__).parents[1]))
# What a use says of a leaf that is no matrix. The first that is found counts.
NO_MATRIX = {
    "table": "embedding: a table, looked up row by row",
    "depthwise": "depthwise: a filter for each channel",
    "vector": "contracted to one number: a vector, no matrix",
    "token": "token: a learned input, repeated over the data",
    "joined": "joined to the data: no matrix",
    "multiplied": "scale: multiplied entry by entry, no matrix",
    "added": "bias: added entry by entry, no matrix",
}
UNUSED = "unused: no gradient of the loss reaches it"
HEAD = "output head: no matrix behind it; left out, as embeddings are"


@dataclasses.dataclass(frozen=True)
class Use:
    """What one operation does with a parameter: a key of NO_MATRIX, or "unknown"."""

    kind: str
    place: Place

    @property
    def where(self) -> str:
        return where(self.place)


@dataclasses.dataclass
class Product:
    """A parameter as operand of a dot product or a convolution.

    Attributes:
        place: the operation, and the calls that it stands in.
        rows: the leaf's axes that are contracted.
        window: those that a convolution's window slides along.
        columns: those that are axes of the result.
        extent: sizes of the leaf's axes there.
        cuts: what was taken of the leaf before.
        parts: what was taken of the result before each product that used it.
        explains: uses that this product shows to be masks or updates of the parameter.
        aside: 0 if data pass through it forward, as far as it tells; 1 if its own columns come back
            to it, as in a gradient; 2 if no data do.
        turned: the leaf's axes that are contracted with data later, so that they are the rows.
    """

    place: Place
    rows: frozenset[int]
    window: frozenset[int]
    columns: frozenset[int]
    extent: Shape
    cuts: Cuts
    aside: int = 0
    explains: frozenset[int] = frozenset()
    parts: set[Cuts] = dataclasses.field(default_factory=set)
    turned: set[int] = dataclasses.field(default_factory=set)

    @property
    def where(self) -> str:
        return where(self.place)

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
    path: str, shape: Shape, uses: Sequence[Use], products: Sequence[Product], last: bool
) -> LeafAxes:
    """Return what all uses of a leaf say; `last`: no product lies between it and the loss."""
    try:
        axes, reason = _verdict(shape, uses, products, last)
    except Unclear as problem:
        return LeafAxes(path, shape, None, f"unknown: {problem}", known=False)
    return LeafAxes(path, shape, axes, reason)


def _verdict(
    shape: Shape, uses: Sequence[Use], products: Sequence[Product], last: bool
) -> tuple[MatrixAxes | None, str]:
    kinds = {use.kind: use for use in reversed(uses)}
    if unknown := kinds.get("unknown"):
        raise Unclear(f"{unknown.where} is not understood")
    if not kinds and not products:
        return None, UNUSED
    kind = next((kind for kind in NO_MATRIX if kind in kinds), None)
    if kind and products and kind != "table":
        raise Unclear(f"two uses, {kind} by {kinds[kind].where} and {products[0].where}")
    if kind:
        return None, f"{NO_MATRIX[kind]}: {kinds[kind].where}"
    first = min(products, key=lambda product: product.aside)
    for other in products:
        if not first.is_alike(other):
            raise Unclear(f"two uses that disagree, {first.where} and {other.where}")
    return _matrix(shape, first, products, last)


def _matrix(
    shape: Shape, first: Product, products: Sequence[Product], last: bool
) -> tuple[MatrixAxes | None, str]:
    """Return the axes of products that agree, and why."""
    rows, window, columns = first.roles
    if mixed := (rows | window) & columns:
        raise Unclear(f"axis {min(mixed)} is both summed and kept by {first.where}; split it")
    parts: dict[int, int] = {}
    for axis in sorted(rows | window | columns):
        parts[axis] = _parts_of(axis, shape, products, split=axis in columns)
    inputs = tuple(axis for axis in sorted(rows | window) if parts[axis])
    outputs = tuple(sorted((a for a in columns if parts[a]), key=lambda a: (parts[a] == 1, a)))
    if not (inputs and outputs):
        picked = any(product.cuts for product in products)
        return None, f"{NO_MATRIX['table' if picked else 'vector']}: {first.where}"
    if last:
        return None, f"{HEAD}: {first.where}"
    groups = parts[outputs[0]]
    if len(outputs) > 1 and parts[outputs[1]] > 1:
        raise Unclear(f"columns of two axes go different ways after {first.where}")
    kind = "convolution: (window in) x out" if window else "matrix"
    kind += ", each of a stack" * (len(inputs + outputs) < len(shape))
    kind += f", columns in {groups} parts" * (groups > 1)
    return MatrixAxes(inputs, outputs, groups), f"{kind}: {first.where}"


def _parts_of(axis: int, shape: Shape, products: Iterable[Product], split: bool) -> int:
    """Return the number of equal parts of an axis that are used apart; 0 if it is all batch."""
    takes = {
        frozenset(cut for cut in cuts if cut.factor.axis == axis)
        for product in products
        for cuts in product.parts or {product.cuts}
    }
    extent = next(product.extent[axis] for product in products)
    cuts = {cut for take in takes for cut in take}
    apart = {c.factor for c in cuts if c.start is None or len(_ranges(cuts, c.factor)) > 1}
    if frozenset() in takes or not apart:
        return 1
    where = next(product.where for product in products)
    if not split:
        raise Unclear(f"parts of axis {axis}, its rows, are used apart by {where}; {_HOW}")
    if len({frozenset(cut.factor for cut in take if cut.factor in apart) for take in takes}) > 1:
        raise Unclear(f"columns go different ways in unequal parts after {where}; {_HOW}")
    groups = 1
    for factor in sorted(apart, key=lambda factor: -(factor.stride or 0)):
        ranges = _ranges(cuts, factor)
        lengths = {stop - (start or 0) for start, stop in ranges}
        length = lengths.pop()
        if lengths or factor.size % length or any((start or 0) % length for start, _ in ranges):
            places = ", ".join(f"{start}:{stop}" for start, stop in sorted(ranges))
            raise Unclear(f"columns go different ways in parts {places} after {where}; {_HOW}")
        if factor.size * (factor.stride or 0) * groups != extent:
            raise Unclear(f"columns go different ways, interleaved, after {where}; {_HOW}")
        groups *= factor.size // length
    if groups < extent and extent != shape[axis]:
        raise Unclear(f"columns of a shard go different ways after {where}; {_HOW}")
    return groups if groups < extent else 0


_HOW = "make each part a leaf, or an axis of its own"


def _ranges(cuts: Iterable[Cut], factor: Any) -> set[tuple[int | None, int]]:
    return {(cut.start, cut.stop) for cut in cuts if cut.factor == factor}


def where(place: Place) -> str:
    """Return an operation and the line of the user's code that it stands in."""
    lines = [line for equation in place for line in _lines(equation)]
    own = [line for line in lines if not line[0].startswith(LIBRARIES)] or lines
    line = f", {Path(own[0][0]).name}:{own[0][1]}" if own else ""
    return f"{place[0].primitive.name}{line}"


def _lines(equation: Any) -> list[tuple[str, str]]:
    """Return files and lines that an operation was called from, from inside."""
    frames = source_info_util.summarize(equation.source_info, 1000).splitlines()
    found = (re.match(r"(.*?):(\d+)", frame) for frame in reversed(frames))
    return [(match[1], match[2]) for match in found if match]
