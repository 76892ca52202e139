"""What leaves tell of each other: biases and norms of kernels, one layer of all layers alike."""

import collections
import re
from collections.abc import Iterator

from egd_optax._axes import Shapes

Shape = tuple[int, ...]
Split = tuple[int, int]  # numbers of batch axes in front, and of column axes at the end

NORM = r"(^|/)scale$|(norm|(^|/)ln)[^/]*/weight$"
PROJECTION = r"(^|/)(query|key|value|[qkv](_proj)?)/[^/]+$"
OUT_FIRST = r"(^|/)weight(_ih|_hh)?$"


class Siblings:
    """What the shapes of a model's leaves say of the axes of a kernel, (*batch, *rows, *columns).

    Args:
        shapes: those of all leaves, by path.
    """

    def __init__(self, shapes: Shapes):
        self.shapes = shapes
        self._layers = _stacks(shapes)
        self._alike: dict[tuple[str, int], set[Split]] = collections.defaultdict(set)
        for path, shape in shapes.items():
            splits = self.by_bias(path)
            if len(splits) == 1 and not re.search(OUT_FIRST, path):
                self._alike[_name(path), len(shape)] |= {*splits}

    def layers(self, path: str) -> int:
        """Return how many axes in front of a leaf are layers, each of its block's leaves has them.

        A block shows it where all of its leaves begin alike, and one of them tells: the scale of a
        norm, which has one axis in one layer, or a kernel beside its bias.
        """
        return max((self._layers.get(block, 0) for block in _blocks(path)), default=0)

    def by_bias(self, path: str) -> list[Split]:
        """Return what makes kernel = (*batch, *rows, *columns) and bias = (*batch, *columns)."""
        return _by_bias(path, self.shapes, self.layers(path))

    def alike(self, path: str) -> Split | None:
        """Return what the biases of other layers say, of this name and as many axes."""
        splits = self._alike.get((_name(path), len(self.shapes[path])), set())
        return next(iter(splits)) if len(splits) == 1 else None

    def query(self, path: str) -> Shape | None:
        """Return the shape of the query's kernel where the leaf is part of an attention."""
        return _query(path, self.shapes)


def beside(path: str, name: str) -> str:
    """Return the path of a leaf in the same place."""
    parent, slash, _ = path.rpartition("/")
    return f"{parent}{slash}{name}"


def by_attention(path: str, shape: Shape, query: Shape | None) -> Split | None:
    """Return how an attention's kernel is split, by the names of Flax and the query's shape."""
    if query is None or len(query) < 3:
        return None
    if re.search(PROJECTION, path):
        return len(shape) - 3, 2
    return (len(shape) - 3, 1) if shape[-3:-1] == query[-2:] else None


def _by_bias(path: str, shapes: Shapes, layers: int = 0) -> list[Split]:
    shape, bias = shapes[path], shapes.get(beside(path, "bias"), ())
    rows = len(shape) - len(bias)
    if rows <= 0 or path == beside(path, "bias"):
        return []
    return [
        (batch, len(bias) - batch)
        for batch in range(layers, len(bias))
        if shape[:batch] + shape[batch + rows :] == bias
    ]


def _query(path: str, shapes: Shapes) -> Shape | None:
    module, _, name = path.rpartition("/")
    kernels = (beside(module, f"{query}/{name}") for query in ("query", "q", "q_proj"))
    return next((shapes[kernel] for kernel in kernels if module and kernel in shapes), None)


def _stacks(shapes: Shapes) -> dict[str, int]:
    """Return the blocks of stacked layers, and how many axes in front are theirs."""
    inside: dict[str, list[Shape]] = collections.defaultdict(list)
    told: dict[str, set[int]] = collections.defaultdict(set)
    for path, shape in shapes.items():
        layers = _told(path, shapes)
        for block in _blocks(path):
            if shape:
                inside[block].append(shape)
            if layers is not None:
                told[block].add(layers)
    found = {}
    for block, counts in told.items():
        count = min(counts)
        starts = {shape[:count] for shape in inside[block]}
        if count and len(starts) == 1 and len(inside[block]) > 1:
            found[block] = count
    return found


def _told(path: str, shapes: Shapes) -> int | None:
    """Return how many axes of layers a leaf shows by itself, None where it shows nothing."""
    shape = shapes[path]
    if re.search(NORM, path, re.IGNORECASE):
        return len(shape) - 1 if shape else None
    if len(shape) < 3 or path == beside(path, "bias"):
        return None
    splits = _by_bias(path, shapes)
    named = by_attention(path, shape, _query(path, shapes))
    if named and (named in splits or not splits):
        return named[0]
    return splits[0][0] if len(splits) == 1 else None


def _blocks(path: str) -> Iterator[str]:
    """Yield what a leaf is part of, from inside; the model itself is ""."""
    while path:
        path = path.rpartition("/")[0]
        yield path


def _name(path: str) -> str:
    """Return the name of a leaf and of its layer, without numbers."""
    return re.sub(r"\d+", "*", "/".join(path.split("/")[-2:]))
