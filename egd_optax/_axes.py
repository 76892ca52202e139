"""Decisions leaf by leaf: which axes make the matrix and why; and all forms of `axes`."""

import collections
import contextvars
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from egd_optax import _selection as selection
from egd_optax._matrix_view import MatrixAxes, view_of

Axes = Any  # its forms are in the docstring of `scale_by_egd`
Shapes = Mapping[str, tuple[int, ...]]
# Who looks on while `init` and `update` are traced: `diagnostics` does, at times.
WITNESS: contextvars.ContextVar[Any] = contextvars.ContextVar("witness", default=None)

LEGEND = (
    "matrix: batch of rows x columns (axes); * is any number. To change a row, name its path:\n"
    'axes={"path": MatrixAxes(rows=..., columns=...)}, or None there to leave the leaf out.'
)


class LeafAxes(NamedTuple):
    """What was decided for one leaf.

    Attributes:
        path: the leaf's path, such as "hidden/kernel".
        shape: its shape.
        axes: the axes of its matrix; None where it is left out.
        reason: why.
        known: False where nothing explains the leaf; then `axes` is None.
    """

    path: str
    shape: tuple[int, ...]
    axes: MatrixAxes | None
    reason: str
    known: bool = True

    @property
    def matrix(self) -> tuple[int, int, int] | None:
        """Sizes (batch, m, n) of the leaf's matrices, None where it is left out."""
        if self.axes is None:
            return None
        view = view_of(0, self.path, self.shape, self.axes)
        return view.batch, view.m, view.n


class InferredAxes(dict[str, MatrixAxes | None]):
    """Decisions about all leaves of two axes or more; prints as a table, works as `axes`.

    From the path of each leaf that is explained to its `MatrixAxes`, or to None where it is left
    out, so `{**inferred, "head/kernel": MatrixAxes(0, 1)}` changes one leaf.

    Args:
        leaves: one `LeafAxes` (path, shape, axes, reason) for each leaf of two axes or more.
        rest: number of leaves that are no matrices: vectors, scalars, integers.
        note: a last line of the table.
    """

    def __init__(self, leaves: Iterable[LeafAxes], rest: int, note: str = ""):
        self.leaves, self.rest, self.note = tuple(leaves), rest, note
        self.unknown = [leaf for leaf in self.leaves if not leaf.known]
        super().__init__({leaf.path: leaf.axes for leaf in self.leaves if leaf.known})

    def __repr__(self) -> str:
        left_out = sum(axes is None for axes in self.values())
        counts = f"Whitened: {len(self) - left_out}. Left out: {left_out}. "
        unknown = f"Unknown: {len(self.unknown)}. " if self.unknown else ""
        alike = collections.defaultdict(list)
        for leaf in sorted(self.leaves, key=lambda leaf: leaf.known):
            alike[_any_number(leaf.path), leaf.shape, leaf.axes, leaf.reason].append(leaf)
        rows = [("leaf", "shape", "matrix", "why"), *map(_row, alike.values())]
        lines = [f"{unknown}{counts}No matrices: {self.rest}.", *aligned(rows), LEGEND, self.note]
        return "\n".join(filter(None, lines))


def decide(
    tree: Any, axes: Axes, rule: Callable[[str, Shapes], LeafAxes], note: str = ""
) -> InferredAxes:
    """Return what `axes` says of the leaves that it names, and `rule` of the others."""
    leaves = {} if selection.is_placeholder(tree) else selection.leaves_by_path(tree)
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items() if hasattr(leaf, "shape")}
    paths = [path for path, leaf in leaves.items() if selection.is_matrix_like(leaf)]
    named = _named(tree, axes, shapes, paths)
    decided = tuple(named[path] if path in named else rule(path, shapes) for path in paths)
    for leaf in decided:
        _ = leaf.matrix  # raises where the axes do not fit
    return InferredAxes(decided, len(leaves) - len(paths), note)


def literal_axes(tree: Any, axes: Axes) -> InferredAxes:
    """Return what `axes` says of the leaves, and of the others: those of two axes are matrices."""
    selection.check_arrays(tree)
    return decide(tree, axes, _literal)


def _literal(path: str, shapes: Shapes) -> LeafAxes:
    if len(shapes[path]) > 2:
        raise ValueError(
            f"Leaf {path!r} has shape {shapes[path]}; which of its axes make the matrix? Pass "
            f"axes={{{path!r}: MatrixAxes(rows=..., columns=...)}}, or None there to leave the "
            "leaf as it is; or axes=infer_axes, which knows the layers of Flax and Equinox."
        )
    return LeafAxes(path, shapes[path], MatrixAxes(0, 1), "matrix: two axes")


def warn_of_nothing(who: str, decided: InferredAxes, stacklevel: int) -> None:
    """Warn where there are leaves, but none to whiten."""
    if not any(decided.values()) and (decided.leaves or decided.rest):
        text = f"{who} whitens nothing here: no leaf is a matrix. Take off masks, or optax.flatten."
        warnings.warn(text, stacklevel=stacklevel + 1)


def _named(tree: Any, axes: Axes, shapes: Shapes, matrices: list[str]) -> dict[str, LeafAxes]:
    """Return the leaves that `axes` names, by path."""
    if not shapes:
        return {}
    if selection.is_function(axes):
        axes = axes(tree)
        check_axes(axes)
    if isinstance(axes, InferredAxes):
        return {leaf.path: leaf for leaf in axes.leaves}
    if axes is None:
        return {}
    named = {}
    for path, value in _choices(axes, list(shapes), matrices, selection.is_partial(tree)).items():
        if hasattr(value, "reduction_axis"):  # a MuonDimensionNumbers, which older Optax lacks
            value = MatrixAxes(value.reduction_axis, value.output_axis)
        reason = "your axes" if value else "left out by your axes"
        named[path] = LeafAxes(path, shapes[path], value, reason)
    return named


def _choices(axes: Any, paths: list[str], matrices: list[str], partial: bool) -> dict[str, Any]:
    """Return what each pattern, or each leaf of a tree, says of the paths at and below it.

    The last match wins; a key that is a leaf's whole path means that leaf alone.
    """
    patterns = _is_pattern_mapping(axes)
    chosen: dict[str, Any] = {}
    given = axes if patterns else selection.leaves_by_path(axes, is_leaf=_is_choice)
    for key, value in given.items():
        pattern = key if patterns or not key else f"^{re.escape(key)}(/|$)"
        found = [key] if key in paths else [path for path in paths if re.search(pattern, path)]
        if not (found or partial or (value is None and not patterns)):
            raise selection.no_match("pattern in axes", key, paths)
        if value and found and key and not (partial or {*found} & {*matrices}):
            raise ValueError(f"axes names {key!r}, which has fewer than two axes of real numbers.")
        chosen |= dict.fromkeys(found, value)
    return chosen


def check_axes(axes: Axes) -> None:
    """Raise TypeError unless `axes` has one of its forms, ValueError on a bad pattern."""
    if isinstance(axes, InferredAxes) or selection.is_function(axes):
        return
    if not all(map(_is_choice, jax.tree.leaves(axes, is_leaf=_is_choice))):
        raise TypeError(
            "axes must be None, a MatrixAxes (or Optax's MuonDimensionNumbers), a mapping from "
            "path patterns to MatrixAxes or None, a tree of them like the parameters, or a "
            f"function from the parameters to one of these, got {repr(axes)[:100]}."
        )
    if _is_pattern_mapping(axes):
        selection.compile_patterns(axes)


def _is_pattern_mapping(axes: Any) -> bool:
    return isinstance(axes, Mapping) and all(map(_is_choice, axes.values()))


def _is_choice(value: Any) -> bool:
    return value is None or isinstance(value, MatrixAxes) or hasattr(value, "reduction_axis")


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table, its columns aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def matrix_text(leaf: LeafAxes) -> str:
    """Return a leaf's sizes and axes as a table shows them."""
    if leaf.axes is None or leaf.matrix is None:
        return "-"
    batch, m, n = leaf.matrix
    several = f"{batch} of " if batch > 1 else ""
    parts = f" in {leaf.axes.groups} parts" if leaf.axes.groups > 1 else ""
    return f"{several}{m} x {n} ({leaf.axes.rows} x {leaf.axes.columns}{parts})"


def _any_number(path: str) -> str:
    """Return the path with its numbers, those of layers, taken out."""
    return re.sub(r"\d+", "*", path)


def _row(same: list[LeafAxes]) -> tuple[str, ...]:
    """Return the cells of leaves that differ by numbers in their paths only."""
    first = same[0]
    path = first.path if len(same) == 1 else f"{_any_number(first.path)} ({len(same)})"
    return path, str(first.shape), matrix_text(first), first.reason
