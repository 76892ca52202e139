"""All forms of `axes`, and the decisions that they make leaf by leaf."""

import contextvars
import functools
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from egd_optax import _selection as selection
from egd_optax._decisions import InferredAxes, LeafAxes, suggestion
from egd_optax._matrix_view import MatrixAxes

Axes = Any  # its forms are in the docstring of `scale_by_egd`
Shapes = Mapping[str, tuple[int, ...]]
# Who looks on while `init` and `update` are traced: `diagnostics` does, at times.
WITNESS: contextvars.ContextVar[Any] = contextvars.ContextVar("witness", default=None)


def decide(
    tree: Any, axes: Axes, rules: Callable[[Shapes], Callable[[str], LeafAxes]], note: str = ""
) -> InferredAxes:
    """Return what `axes` says of the leaves that it names, and a rule of the others.

    Args:
        tree: the parameters.
        axes: in one of its forms.
        rules: from the shapes of all leaves to the rule, a function of a leaf's path.
        note: a last line of the table.
    """
    leaves = {} if selection.is_placeholder(tree) else selection.leaves_by_path(tree)
    shapes = {path: tuple(leaf.shape) for path, leaf in leaves.items() if hasattr(leaf, "shape")}
    paths = [path for path, leaf in leaves.items() if selection.is_matrix_like(leaf)]
    named = _named(tree, axes, shapes, paths)
    rule = rules(shapes)
    decided = tuple(named[path] if path in named else rule(path) for path in paths)
    for leaf in decided:
        _ = leaf.matrix  # raises where the axes do not fit
    return InferredAxes(decided, len(leaves) - len(paths), note)


def literal_axes(tree: Any, axes: Axes) -> InferredAxes:
    """Return what `axes` says of the leaves, and of the others: those of two axes are matrices."""
    selection.check_arrays(tree)
    decided = decide(tree, axes, lambda shapes: functools.partial(_literal, shapes))
    check_known(decided, axes)
    return decided


def _literal(shapes: Shapes, path: str) -> LeafAxes:
    if len(shapes[path]) > 2:
        raise ValueError(
            f"Leaf {path!r} has shape {shapes[path]}; which of its axes make the matrix? Pass "
            f"axes={{{path!r}: MatrixAxes(rows=..., columns=...)}}, or None there to leave the "
            "leaf as it is; or axes=infer_axes(model), which knows the layers of Flax and Equinox."
        )
    return LeafAxes(path, shapes[path], MatrixAxes(0, 1), "matrix: two axes")


def check_known(decided: InferredAxes, axes: Axes) -> None:
    """Raise ValueError where leaves are unknown; `axes` is what they were decided by."""
    if not decided.unknown:
        return
    first, read = decided.unknown[0], isinstance(axes, InferredAxes) and not axes.note
    leaves = [f"{leaf.path} {leaf.shape}{f': {leaf.reason}' * read}" for leaf in decided.unknown]
    say = f"{{{first.path!r}: {suggestion(first)}}}"
    if read:
        raise ValueError(
            f"The loss does not tell which axes of these leaves make one matrix: "
            f"{selection.listed(leaves)}. Say it: infer_axes(params, loss, batch, "
            f"overrides={say}), or None there to leave the leaf out."
        )
    raise ValueError(
        f"Nothing explains which axes of these leaves make the matrix: {selection.listed(leaves)}. "
        f"Read them off the model, axes=infer_axes(params, loss, batch); or say it: axes={say}, "
        "or None there to leave the leaf out."
    )


def warn_of_nothing(who: str, decided: InferredAxes, stacklevel: int) -> None:
    """Warn where there are leaves, but none to whiten."""
    if not any(leaf.axes for leaf in decided.leaves) and (decided.leaves or decided.rest):
        text = (
            f"{who} whitens nothing here: no leaf is a hidden matrix. Unless it is meant so, as in "
            "a group of a partition, take off masks, or optax.flatten."
        )
        warnings.warn(text, stacklevel=stacklevel + 1)


def _named(tree: Any, axes: Axes, shapes: Shapes, matrices: list[str]) -> dict[str, LeafAxes]:
    """Return the leaves that `axes` names, by path."""
    if not shapes:
        return {}
    if selection.is_function(axes):
        axes = axes(tree)
        check_axes(axes)
    if isinstance(axes, InferredAxes):
        return _inferred(axes, shapes, matrices)
    if axes is None:
        return {}
    named = {}
    for path, value in _choices(axes, tree, list(shapes), matrices).items():
        if hasattr(value, "reduction_axis"):  # a MuonDimensionNumbers, which older Optax lacks
            value = MatrixAxes(value.reduction_axis, value.output_axis)
        reason = "your axes" if value else "left out by your axes"
        named[path] = LeafAxes(path, shapes[path], value, reason)
    return named


def _inferred(axes: InferredAxes, shapes: Shapes, matrices: list[str]) -> dict[str, LeafAxes]:
    """Return the leaves of a table, if it was made for a tree like this one, or a larger one."""
    table = {leaf.path: leaf for leaf in axes.leaves}
    for path in matrices:
        if path not in table:
            raise ValueError(
                f"axes=infer_axes(...) was made for another tree: it has no leaf {path!r} of shape "
                f"{shapes[path]}, but {selection.listed(list(table), 5)}. Give infer_axes the tree "
                "that the optimizer gets."
            )
        if len(table[path].shape) != len(shapes[path]):
            raise ValueError(
                f"axes=infer_axes(...) was made for another tree: leaf {path!r} has shape "
                f"{shapes[path]} here and {table[path].shape} there. Give infer_axes the tree that "
                "the optimizer gets."
            )
    return {path: table[path]._replace(shape=shapes[path]) for path in matrices}


def _choices(axes: Any, tree: Any, paths: list[str], matrices: list[str]) -> dict[str, Any]:
    """Return what each pattern, or each leaf of a tree, says of the paths at and below it.

    The last match wins. A key that is a leaf's or a subtree's whole path means these alone, so that
    "block_1" is not "block_10", too.
    """
    patterns, partial = _is_pattern_mapping(axes), selection.is_partial(tree)
    places = [path.split("/") for path in selection.places(tree)]
    chosen: dict[str, Any] = {}
    given = axes if patterns else selection.leaves_by_path(axes, is_leaf=_is_choice)
    for key, value in given.items():
        parts = key.split("/")
        literal = not patterns or any(one[: len(parts)] == parts[: len(one)] for one in places)
        pattern = f"^{re.escape(key)}(/|$)" if literal and key else key
        found = [path for path in paths if re.search(pattern, path)]
        if not (found or partial or (value is None and not patterns)):
            raise selection.no_match("pattern in axes", key, paths)
        if value and found and key and not (partial or {*found} & {*matrices}):
            raise ValueError(
                f"axes names {key!r}, which is whitened by no axes: only leaves of two axes or "
                "more that hold floating-point numbers, and are not empty, are. Leave it out."
            )
        chosen |= dict.fromkeys(found, value)
    return chosen


def check_axes(axes: Axes) -> None:
    """Raise TypeError unless `axes` has one of its forms, ValueError on a bad pattern."""
    if isinstance(axes, InferredAxes) or selection.is_function(axes):
        return
    given = selection.leaves_with_path(axes, is_leaf=_is_choice)
    wrong = [(path, value) for path, value in given if not _is_choice(value)]
    if wrong:
        path, value = wrong[0]
        raise TypeError(
            "axes must be None, a MatrixAxes (or Optax's MuonDimensionNumbers), a mapping from "
            "path patterns to MatrixAxes or None, a tree of them like the parameters, or a "
            f"function from the parameters to one of these, got {repr(value)[:100]}"
            f"{f' at {path!r}' if path else ''}."
        )
    if _is_pattern_mapping(axes):
        selection.compile_patterns(axes)


def _is_pattern_mapping(axes: Any) -> bool:
    named = isinstance(axes, Mapping) and all(isinstance(key, str) for key in axes)
    return named and all(map(_is_choice, axes.values()))


def _is_choice(value: Any) -> bool:
    return value is None or isinstance(value, MatrixAxes) or hasattr(value, "reduction_axis")
