"""Which leaves: paths of leaves, and masks by pattern."""

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

PyTree = Any
_PLACEHOLDERS: list[Any] = []
optax.tree_utils.tree_map_params(_PLACEHOLDERS.append, lambda leaf: leaf, None)


def leaf_path(path: tuple) -> str:
    """Return a path as text, such as "hidden/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaves_with_path(
    tree: PyTree, is_leaf: Callable[[Any], bool] | None = None
) -> Iterator[tuple[str, Any]]:
    """Yield path and leaf of each leaf, in order.

    Flax's boxes, nnx's variables among them, are nodes around their `value` in some calls only:
    that key is left out.
    """
    boxes, value = _boxes(), jax.tree_util.GetAttrKey("value")

    def stops(node: Any) -> bool:
        return isinstance(node, boxes) or (is_leaf is not None and is_leaf(node))

    for keys, node in jax.tree_util.tree_leaves_with_path(tree, is_leaf=stops):
        boxed = isinstance(node, boxes)
        for inner, leaf in jax.tree_util.tree_leaves_with_path(node, is_leaf=is_leaf):
            bare = inner[1:] if boxed and inner[:1] == (value,) else inner
            yield leaf_path((*keys, *bare)), leaf


def _boxes() -> tuple[type, ...]:
    """Return Flax's types of boxes; Flax is never imported."""
    names = {"flax.nnx": "Variable", "flax.core.meta": "AxisMetadata"}
    found = (getattr(sys.modules.get(module), name, None) for module, name in names.items())
    return tuple(kind for kind in found if kind is not None)


def leaves_by_path(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Return the leaves of a tree by path, or raise ValueError where two paths are equal."""
    found: dict[str, Any] = {}
    for path, leaf in leaves_with_path(tree, is_leaf):
        if path in found:
            raise ValueError(f"Two leaves have the path {path!r}; rename a key, paths name states.")
        found[path] = leaf
    return found


def is_matrix_like(leaf: Any) -> bool:
    """Return whether a leaf has entries to whiten: inexact, not empty, two axes or more."""
    several = getattr(leaf, "ndim", 0) >= 2 and leaf.size > 0
    return several and jnp.issubdtype(leaf.dtype, jnp.inexact)


def is_partial(tree: PyTree) -> bool:
    """Return whether leaves are masked, or a placeholder of Optax's stands for all of them."""
    nodes = jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    return is_placeholder(tree) or any(isinstance(node, optax.MaskedNode) for node in nodes)


def places(tree: PyTree) -> list[str]:
    """Return the paths of all leaves, and of what stands where leaves are masked."""
    masked = leaves_with_path(tree, is_leaf=lambda node: isinstance(node, optax.MaskedNode))
    return [path for path, _ in masked]


def is_placeholder(params: PyTree) -> bool:
    """Return whether it is `optax.tree.map_params` that asks: it hands `init` one node, no leaf."""
    return isinstance(params, type(_PLACEHOLDERS[0]))


def by_path(params: PyTree, states: dict[str, Any]) -> Any:
    """Return the states by path, or for `optax.tree.map_params` one leaf that is no parameter."""
    return jnp.zeros(()) if is_placeholder(params) else states


def matching(*patterns: str, exclude: str | tuple[str, ...] = ()) -> Callable[[PyTree], PyTree]:
    """Select leaves by path: a mask function for `optax.masked`, `optax.partition` and `egd`.

    A leaf is selected when a regular expression of `patterns` is found anywhere in its path, such
    as "hidden/kernel", and none of `exclude` is.

    Args:
        *patterns: regular expressions, at least one.
        exclude: regular expression or expressions that veto a leaf.

    Returns:
        Function from a tree to a tree of bools of the same structure. It raises ValueError where
        it selects nothing or a pattern matches no leaf, unless leaves are masked.

    Raises:
        ValueError: no pattern, or one that is not a regular expression.

    Examples:
        >>> from egd_optax import matching
        >>> matching("kernel")({"hidden": {"kernel": 1.0, "bias": 0.0}})
        {'hidden': {'bias': False, 'kernel': True}}
    """
    if not patterns:
        raise ValueError('matching needs at least one pattern, such as "kernel".')
    vetoes = (exclude,) if isinstance(exclude, str) else tuple(exclude)
    wanted, unwanted = compile_patterns(patterns), compile_patterns(vetoes)

    def selects(name: str) -> bool:
        return any(p.search(name) for p in wanted) and not any(p.search(name) for p in unwanted)

    def mask(tree: PyTree) -> PyTree:
        check_tree("matching(...)", tree)
        paths = [path for path, _ in leaves_with_path(tree)]
        selected = jax.tree.unflatten(jax.tree.structure(tree), map(selects, paths))
        if not is_partial(tree):
            for pattern in (*patterns, *vetoes):
                if not any(re.search(pattern, path) for path in paths):
                    raise no_match("pattern", pattern, paths)
            if not any(jax.tree.leaves(selected)):
                raise ValueError(f"No leaf matches {patterns} but not {vetoes}: {listed(paths)}.")
        return selected

    return mask


def check_tree(function: str, tree: PyTree) -> None:
    """Raise TypeError where `optax.inject_hyperparams` takes a function of trees for a schedule."""
    if jax.tree_util.all_leaves([tree]) and getattr(tree, "ndim", None) == 0:
        raise TypeError(
            f"{function} was called with a number in place of a tree. optax.inject_hyperparams "
            "takes functions for schedules: pass a value, or name the argument in static_args, "
            'such as inject_hyperparams(egd, static_args=("matrices", "axes")).'
        )


def selected_paths(tree: PyTree, matrices: Any) -> set[str]:
    """Return the paths of the leaves that `matrices`, in any of its forms, selects."""
    mask = matrices(tree) if is_function(matrices) else matrices
    if patterns := patterns_of(mask):
        mask = matching(*patterns)(tree)
    paths = leaves_by_path(tree)
    if mask is None:
        return set(paths)
    chosen = leaves_by_path(mask)  # nnx's variables are in one of the trees only, at times
    for path in paths if is_partial(tree) else {**paths, **chosen}:
        if path not in paths or not isinstance(chosen.get(path), bool | np.bool_):
            raise ValueError(
                "matrices must be a pattern, patterns, a tree with a bool for every parameter, or "
                f"a function from the parameters to one of these, got {repr(mask)[:100]}, which "
                f"has {repr(chosen.get(path, 'nothing'))[:50]} at {path!r}."
            )
    return {path for path in paths if chosen[path]}


def patterns_of(matrices: Any) -> list[str]:
    """Return the patterns where `matrices` is one, or several; an empty list in other forms."""
    patterns = [matrices] if isinstance(matrices, str) else matrices
    several = isinstance(patterns, list | tuple) and all(isinstance(p, str) for p in patterns)
    return list(patterns) if several else []


def check_arrays(tree: PyTree) -> None:
    """Raise TypeError on a leaf that is no array, as Equinox's models have them."""
    for path, leaf in leaves_by_path(tree).items():
        if not (hasattr(leaf, "shape") or isinstance(leaf, int | float | complex)):
            raise TypeError(f"{path!r} is no array: pass eqx.filter(model, eqx.is_inexact_array).")


def is_function(value: Any) -> bool:
    """Return whether it is a function, and not a tree that can be called, as Equinox's modules."""
    return callable(value) and jax.tree_util.all_leaves([value])


def no_match(what: str, pattern: str, paths: Sequence[str]) -> ValueError:
    """Return the error on a pattern without a leaf: a misspelled one would change nothing."""
    return ValueError(
        f"The {what} {pattern!r} matches no leaf of these: {listed(paths)}. Patterns are "
        "regular expressions, found anywhere in a path."
    )


def listed(paths: Sequence[str], limit: int = 20) -> str:
    """Return the paths as an error shows them: the first ones, and how many more there are."""
    if not paths:
        return "none"
    more = f" and {len(paths) - limit} more" if len(paths) > limit else ""
    return f"{', '.join(map(repr, paths[:limit]))}{more}"


def compile_patterns(patterns: Iterable[str]) -> list[re.Pattern]:
    """Compile regular expressions, or raise ValueError that quotes the wrong one."""
    try:
        return [re.compile(current := pattern) for pattern in patterns]
    except (re.error, TypeError) as error:
        raise ValueError(
            f"{current!r} is no regular expression: {error}. Pass strings one by one."
        ) from None
