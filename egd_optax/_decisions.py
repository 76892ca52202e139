"""Decisions leaf by leaf: which axes make the matrix and why; and how a table shows them."""

import collections
import html
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from egd_optax._matrix_view import MatrixAxes, view_of

WIDTH = 120  # columns of a table, where its leaves' paths leave room
LEAST = 30  # columns for the reasons at least
MOST = 10  # suggestions at most
WINDOW = 11  # the largest window of a convolution that a suggestion expects

SAY = "Say what the unknown ones are, or None to leave them out. If they are layers:", "overrides={"
COLUMNS = ("leaf", "shape", "matrix", "done", "why")
LEGEND = (
    "matrix: batch of rows x columns (axes); * is any number. To change rows, infer_axes(...,\n"
    'overrides={"path": MatrixAxes(rows=..., columns=...)}), or None there to leave a leaf out.'
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


class InferredAxes(Mapping[str, MatrixAxes | None]):
    """Decisions about all leaves of two axes or more; prints as a table, works as `axes`.

    A mapping that does not change, from the path of each leaf to its `MatrixAxes`, or to None where
    it is left out. To change a leaf, or to settle an unknown one: `overrides` of `infer_axes`.

    Args:
        leaves: one `LeafAxes` (path, shape, axes, reason) for each leaf of two axes or more.
        rest: number of leaves that are no matrices: vectors, scalars, integers.
        note: a last line of the table.

    Raises:
        ValueError: on looking up an unknown leaf.
    """

    def __init__(self, leaves: Iterable[LeafAxes], rest: int, note: str = ""):
        self.leaves, self.rest, self.note = tuple(leaves), rest, note
        self.unknown = [leaf for leaf in self.leaves if not leaf.known]
        self._by_path = {leaf.path: leaf for leaf in self.leaves}

    def __getitem__(self, path: str) -> MatrixAxes | None:
        leaf = self._by_path[path]
        if not leaf.known:
            raise ValueError(
                f"{path!r} of shape {leaf.shape} is {leaf.reason}. Say its axes: infer_axes(..., "
                f"overrides={{{path!r}: {suggestion(leaf)}}}), or None there to leave it out."
            )
        return leaf.axes

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_path)

    def __len__(self) -> int:
        return len(self._by_path)

    def __contains__(self, path: object) -> bool:
        return path in self._by_path

    def __eq__(self, other: object) -> bool:
        if isinstance(other, InferredAxes):
            return self._decided() == other._decided()
        return not self.unknown and dict(self) == other

    def __hash__(self) -> int:
        return hash(frozenset(self._decided().items()))

    def _decided(self) -> dict[str, tuple[MatrixAxes | None, bool]]:
        return {leaf.path: (leaf.axes, leaf.known) for leaf in self.leaves}

    def __repr__(self) -> str:
        table = aligned([COLUMNS, *map(_row, self._alike())])
        return "\n".join(filter(None, [*self._first(), *table, LEGEND, self.note]))

    def _repr_html_(self) -> str:
        """Return the table as a notebook shows it."""
        rows = [_html_row("th", COLUMNS), *(_html_row("td", _row(s)) for s in self._alike())]
        before, after = "\n".join(self._first()), "\n".join(filter(None, [LEGEND, self.note]))
        table = f"<table>{''.join(rows)}</table>"
        return f"<pre>{html.escape(before)}</pre>{table}<pre>{html.escape(after)}</pre>"

    def _alike(self) -> list[list[LeafAxes]]:
        """Return the leaves, together those that differ by numbers only, the unknown ones first."""
        alike = collections.defaultdict(list)
        for leaf in sorted(self.leaves, key=lambda leaf: leaf.known):
            alike[_any_number(leaf.path), leaf.shape, leaf.axes, leaf.reason].append(leaf)
        return list(alike.values())

    def _first(self) -> list[str]:
        """Return what stands above the table: how many, and what to do about the unknown ones."""
        whitened = sum(leaf.axes is not None for leaf in self.leaves)
        unknown = f"Unknown: {len(self.unknown)}. " if self.unknown else ""
        left_out = len(self) - whitened - len(self.unknown)
        counts = f"Whitened: {whitened}. Left out: {left_out}. "
        first = f"{unknown}{counts}No matrices: {self.rest}."
        if not unknown:
            return [first]
        known = [leaf.path for leaf in self.leaves if leaf.known]
        entries = [f"    {_suggested(same, known)}" for same in self._alike() if not same[0].known]
        more = [f"    # and {len(entries) - MOST} more"] if len(entries) > MOST else []
        return [first, *SAY, *entries[:MOST], *more, "}"]


def suggestion(leaf: LeafAxes) -> MatrixAxes:
    """Return the axes that an ordinary layer of this shape has: a convolution, or a stack."""
    ndim = len(leaf.shape)
    out_first = re.search(r"(^|/)weight(_ih|_hh)?$", leaf.path)
    window = leaf.shape[2:] if out_first else leaf.shape[:-2]
    if len(window) > 1 and max(window) <= WINDOW:
        rows = tuple(range(1, ndim)) if out_first else tuple(range(ndim - 1))
        return MatrixAxes(rows, 0 if out_first else ndim - 1)
    last, before = ndim - 1, ndim - 2
    return MatrixAxes(last, before) if out_first else MatrixAxes(before, last)


def aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the lines of a table, its columns aligned to the left, the last one wrapped."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    indent = sum(widths[:-1]) + 2 * len(widths[:-1])
    lines = []
    for *cells, last in rows:
        start = "".join(f"{cell:{width}}  " for cell, width in zip(cells, widths, strict=False))
        texts = textwrap.wrap(
            last, max(WIDTH - indent, LEAST), break_long_words=False, break_on_hyphens=False
        )
        first, *more = texts or [""]
        lines += [f"{start}{first}".rstrip(), *(f"{'':{indent}}{text}" for text in more)]
    return lines


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
    done = "unknown" if not first.known else "whitened" if first.axes else "left out"
    reason = first.reason.removeprefix("unknown: ")
    return path, str(first.shape), matrix_text(first), done, reason


def _suggested(same: list[LeafAxes], known: Sequence[str]) -> str:
    """Return an entry of `overrides` for leaves that differ by numbers in their paths only.

    Args:
        same: these leaves.
        known: paths of the leaves that the entry must not name.
    """
    first, axes = same[0], suggestion(same[0])
    paths = [re.escape(leaf.path) for leaf in same]
    pattern = re.sub(r"\d+", lambda _: r"\d+", paths[0])
    if any(re.fullmatch(pattern, path) for path in known):
        pattern = f"({'|'.join(paths)})"
    key = f'"{first.path}"' if len(same) == 1 else f'r"^{pattern}$"'
    return f"{key}: {axes},  # {matrix_text(first._replace(axes=axes)).partition(' (')[0]}"


def _html_row(cell: str, texts: Iterable[str]) -> str:
    style = f'{cell} style="text-align:left"'
    return f"<tr>{''.join(f'<{style}>{html.escape(text)}</{cell}>' for text in texts)}</tr>"
