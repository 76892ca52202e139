"""Axes rules for Flax's layers: which leaves are matrices, read off names, shapes and biases."""

import collections
import dataclasses
import functools
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import optax

from egd_optax._matrix_view import MatrixAxes, check_axes, matrix_views
from egd_optax._selection import is_matrix_like, is_placeholder, leaf_path, listed

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Split = tuple[int, int]

# Flax's own names of leaves that are no matrices whatever their axes; `egd` leaves them out, too.
NO_MATRIX = r"(^|/)(bias|scale|embedding)$"
HEAD = (
    r"(^|/)((\w+_)?heads?|readout|logits?|classifier|unembed\w*|output(_layer|_head)?)([_/]\d+)?"
    r"(/(kernel|weight))?$"
)
LEFT_OUT = {
    r"(^|/)bias$": "bias: added to the outputs, no matrix",
    r"(^|/)scale$": "scale: multiplied entry by entry, no matrix",
    HEAD: "output head: left out, as with Muon",
    r"embed[^/]*(/weight)?$": "embedding: a table, looked up row by row",
    r"(^|/)pos(ition\w*)?(_\w+)?$": "positions: a table, looked up row by row",
    r"(depthwise|dw_?conv)[^/]*/kernel$": "depthwise: a filter for each channel, no matrix",
}
PROJECTION = r"(^|/)(query|key|value|[qkv](_proj)?)/[^/]+$"
CONVOLUTION = r"conv(?!local)[^/]*(/\d+)?/[^/]+$"
LEGEND = (
    "axes: rows x columns; * stands for numbers. To change a row, give the pattern of its path:\n"
    'infer_axes(params, {"...": MatrixAxes(rows=..., columns=...)}), or None to leave it out.'
)


class LeafAxes(NamedTuple):
    """What is proposed for one leaf: its axes, or None, the matrix (batch, m, n), and why."""

    path: str
    shape: Shape
    axes: MatrixAxes | None
    matrix: tuple[int, int, int] | None
    why: str


@dataclasses.dataclass(frozen=True, repr=False)
class InferredAxes(Mapping[str, MatrixAxes | None]):
    """Path patterns with the axes of their leaves, to be used as `axes`; printed as a table.

    The patterns are anchored and each leaf matches one of them; numbers in a path, those of
    layers, stand for any number where all such leaves agree.

    Args:
        leaves: one `LeafAxes` (path, shape, axes, matrix, why) for each leaf of two axes or
            more; `axes` is None where it is left out.
        rest: number of leaves that are no matrices: vectors, scalars, integers.
    """

    leaves: tuple[LeafAxes, ...]
    rest: int

    @functools.cached_property
    def _axes(self) -> dict[str, MatrixAxes | None]:
        alike = collections.defaultdict(set)
        for leaf in self.leaves:
            alike[_any_number(leaf.path)].add(leaf.axes)
        return {
            f"^{general if len(alike[general]) == 1 else re.escape(leaf.path)}$": leaf.axes
            for leaf in self.leaves
            for general in [_any_number(leaf.path)]
        }

    def __getitem__(self, pattern: str) -> MatrixAxes | None:
        return self._axes[pattern]

    def __iter__(self) -> Iterator[str]:
        return iter(self._axes)

    def __len__(self) -> int:
        return len(self._axes)

    def __repr__(self) -> str:
        alike = collections.defaultdict(list)
        for leaf in self.leaves:
            alike[_any_number(leaf.path), leaf.shape, leaf.axes, leaf.why].append(leaf)
        rows = [("leaf", "shape", "axes", "matrix", "why"), *map(_row, alike.values())]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        whitened = sum(leaf.axes is not None for leaf in self.leaves)
        left_out = len(self.leaves) - whitened
        summary = f"Whitened: {whitened}. Left out: {left_out}. No matrices: {self.rest}."
        return "\n".join([*table, summary, LEGEND])


def infer_axes(
    params: Any, overrides: Mapping[str, MatrixAxes | None] | None = None
) -> InferredAxes:
    """Propose which leaves of a Flax model are whitened, along which axes, and say why.

    Print what it returns, then hand it over: `egd(0.02, axes=proposed, others=optax.adam(1e-3))`.
    Left out, and so left to `others`: biases, scales, embeddings, output heads, depthwise
    convolutions (the last three known by name), and leaves of three axes or more that neither
    their bias nor their name explains. Every other leaf of two axes is a matrix. With more axes,
    the columns are the axes that a layer's bias shares with the end of its kernel, and those
    shared with the beginning are batch (stacked layers). Without a bias, attention and
    convolutions go by their names: in x (heads head_dim), (heads head_dim) x out,
    (window in) x out. A leaf called `weight` is Equinox's: out x in, out x (in window).

    Args:
        params: the tree that the optimizer gets: linen's `variables["params"]`,
            `nnx.state(model, nnx.Param)` or the nnx model; arrays or their shapes
            (`jax.eval_shape`).
        overrides: your own axes by path pattern (`re.search`, first match wins), or None to leave
            leaves out. They come before the rules.

    Returns:
        Mapping from path patterns to `MatrixAxes`, or to None for what is left out. `print`
        shows the table, `.leaves` holds its rows.

    Raises:
        ValueError: an override that matches no leaf of two axes or more, or does not fit one.
        TypeError: overrides that are not such a mapping.

    Examples:
        >>> import jax.numpy as jnp
        >>> from egd_optax import MatrixAxes, infer_axes
        >>> params = {"query": {"kernel": jnp.ones((8, 2, 4)), "bias": jnp.zeros((2, 4))}}
        >>> dict(infer_axes(params))
        {'^query/bias$': None, '^query/kernel$': MatrixAxes(rows=0, columns=(1, 2))}

        One matrix for each head instead:

        >>> each = infer_axes(params, {"query/kernel": MatrixAxes(rows=0, columns=2)})
        >>> each.leaves[1].matrix  # batch, m, n
        (2, 8, 4)

    References:
        Jordan et al., Muon, 2024: embeddings and heads left to AdamW, convolutions flattened.
    """
    if not isinstance(overrides, Mapping | None):
        raise TypeError(
            "overrides must be a mapping from path patterns to MatrixAxes or None, such as "
            f'{{"head": MatrixAxes(rows=0, columns=1)}}, got {overrides!r}.'
        )
    overrides = overrides or {}
    check_axes(overrides)
    leaves = {leaf_path(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items() if hasattr(leaf, "shape")}
    paths = [path for path, leaf in leaves.items() if is_matrix_like(leaf)]
    _check_used("override", overrides, paths)
    chosen = {path: _override(path, overrides) or _by_rules(path, shapes) for path in paths}
    views = {view.path: view for view in matrix_views(params, lambda path, leaf: chosen[path][0])}
    return InferredAxes(
        tuple(
            LeafAxes(
                path,
                shapes[path],
                axes,
                (views[path].batch, views[path].m, views[path].n) if path in views else None,
                why,
            )
            for path, (axes, why) in chosen.items()
        ),
        len(leaves) - len(paths),
    )


def _by_rules(path: str, shapes: Shapes) -> tuple[MatrixAxes | None, str]:
    """Return the axes of a leaf, or None, and the reason."""
    shape, query = shapes[path], _query(path, shapes)
    for pattern, why in LEFT_OUT.items():
        inside = pattern == HEAD and query is not None  # an attention's output is no head
        if not inside and re.search(pattern, path, re.IGNORECASE):
            return None, why
    if path.rpartition("/")[2] == "weight":
        return _out_first(path, shapes)
    if len(shape) == 2:
        return MatrixAxes(0, 1), "matrix: in x out"
    bias = shapes.get(_beside(path, "bias"))
    named, why = _split_by_name(path, shape, query)
    fits = _splits_by_bias(shape, bias) if bias else [named]
    split = named if named in fits else fits[0]
    if split is None or (split != named and len(fits) > 1):
        return None, f"unknown: {'its bias fits two ways' if split else 'which axes are inputs?'}"
    batch, columns = split
    axes = range(len(shape))
    matrix = MatrixAxes(_bare(axes[batch:-columns]), _bare(axes[-columns:]))
    why = why if split == named else "matrix: columns as in its bias"
    doubt = "; one input channel: if depthwise, leave it out" if shape[-2] == columns == 1 else ""
    return matrix, f"{why}{', each of a stack' if batch else ''}{doubt}"


def _out_first(path: str, shapes: Shapes) -> tuple[MatrixAxes | None, str]:
    """Return axes and reason for Equinox, whose weights are out x in, as in PyTorch."""
    shape = shapes[path]
    *batch, rows = range(len(shape))
    if len(shape) == 2 or shapes.get(_beside(path, "bias")) == shape[:-1]:
        stacked = ", each of a stack" if len(shape) > 2 else ""
        return MatrixAxes(rows=rows, columns=batch[-1]), f"matrix: out x in{stacked}"
    if re.search(CONVOLUTION, path, re.IGNORECASE):
        return MatrixAxes(rows=_bare(range(1, len(shape))), columns=0), (
            "convolution: out x (in window)"
        )
    return None, "unknown: which axes are inputs?"


def _split_by_name(path: str, shape: Shape, query: Shape | None) -> tuple[Split | None, str]:
    """Return numbers of batch and of column axes, as attention and convolutions have them."""
    if query is not None and len(query) > 2:
        if re.search(PROJECTION, path):
            return (len(shape) - 3, 2), "attention: in x (heads head_dim)"
        if shape[-3:-1] == query[-2:]:
            return (len(shape) - 3, 1), "attention: (heads head_dim) x out"
    if re.search(CONVOLUTION, path, re.IGNORECASE):
        return (0, 1), "convolution: (window in) x out"
    return None, ""


def _splits_by_bias(shape: Shape, bias: Shape) -> list[Split | None]:
    """Return what makes kernel = (*batch, *rows, *columns) and bias = (*batch, *columns)."""
    rows = len(shape) - len(bias)
    fits = [batch for batch in range(len(bias)) if shape[:batch] + shape[batch + rows :] == bias]
    return [(batch, len(bias) - batch) for batch in fits] if fits and rows > 0 else [None]


def _query(path: str, shapes: Shapes) -> Shape | None:
    """Return the shape of the query's kernel where the leaf is part of an attention."""
    module, _, name = path.rpartition("/")
    beside = (_beside(module, f"{query}/{name}") for query in ("query", "q", "q_proj"))
    return next((shapes[kernel] for kernel in beside if module and kernel in shapes), None)


def _beside(path: str, name: str) -> str:
    parent, slash, _ = path.rpartition("/")
    return f"{parent}{slash}{name}"


def _override(path: str, overrides: Mapping[str, MatrixAxes | None]):
    return next(((o, "yours") for pattern, o in overrides.items() if re.search(pattern, path)), ())


def check_axes_used(axes: Any, params: Any) -> None:
    """Raise ValueError on a pattern of `axes` that matches no leaf of `params`.

    Not on those of a proposal, which may be for a whole model of which a part is trained, nor
    where leaves are masked.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=_is_masked)
    masked = any(_is_masked(leaf) for _, leaf in leaves)
    proposed = isinstance(axes, InferredAxes)
    if isinstance(axes, Mapping) and not (masked or proposed or is_placeholder(params)):
        _check_used("pattern in axes", axes, [leaf_path(path) for path, _ in leaves])


def _check_used(what: str, patterns: Iterable[str], paths: list[str]) -> None:
    """Raise ValueError on a pattern without a leaf: a misspelt one would change nothing."""
    for pattern in patterns:
        if not any(re.search(pattern, path) for path in paths):
            raise ValueError(
                f"The {what} {pattern!r} matches no leaf of these: {listed(paths)}. Patterns are "
                "regular expressions, found anywhere in a path."
            )


def _is_masked(leaf: Any) -> bool:
    return isinstance(leaf, optax.MaskedNode)


def _any_number(path: str) -> str:
    """Return a pattern of the paths that differ from this one by their numbers."""
    return re.sub(r"\d+", r"\\d+", re.escape(path))


def _bare(axes: range) -> int | tuple[int, ...]:
    return axes[0] if len(axes) == 1 else tuple(axes)


def _row(same: list[LeafAxes]) -> tuple[str, ...]:
    """Return the cells of leaves that differ by numbers in their paths only."""
    first = same[0]
    several = f"{re.sub(r'[0-9]+', '*', first.path)} ({len(same)})"
    path = first.path if len(same) == 1 else several
    if first.axes is None or first.matrix is None:
        return path, str(first.shape), "-", "-", first.why
    batch, m, n = first.matrix
    size = f"{batch} of {m} x {n}" if batch > 1 else f"{m} x {n}"
    axes = f"{first.axes.rows} x {first.axes.columns}"
    return path, str(first.shape), axes, size, first.why
