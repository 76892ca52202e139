"""What Flax's nnx layers say of their own parameters: layers know what names and shapes do not."""

import numbers
import sys
from collections.abc import Callable, Iterable
from typing import Any

import jax

from egd_optax import _selection as selection
from egd_optax._matrix_view import MatrixAxes

Said = tuple[MatrixAxes | None, str]  # axes, and why


def said_by_layers(tree: Any) -> dict[str, Said]:
    """Return axes and reason by path where the tree holds nnx layers; Flax is never imported."""
    nnx = sys.modules.get("flax.nnx")
    kinds = {getattr(nnx, name): rule for name, rule in RULES.items() if hasattr(nnx, name)}
    if not kinds:
        return {}
    found: dict[str, Said] = {}
    types = tuple(kinds)
    for keys, layer in jax.tree_util.tree_leaves_with_path(tree, lambda n: isinstance(n, types)):
        for kind, (name, rule) in kinds.items():
            shape = getattr(getattr(layer, name, None), "shape", None)
            said = rule(layer, shape) if isinstance(layer, kind) and shape is not None else None
            if said is not None:
                found[selection.leaf_path((*keys, jax.tree_util.GetAttrKey(name)))] = said
    return found


def _stacked(kind: str, shape: Any, rows: Iterable[int], columns: Iterable[int]) -> Said | None:
    """Return the axes of a kernel that ends with these sizes; those in front are batch."""
    rows, columns = tuple(rows), tuple(columns)
    first = len(shape) - len(rows) - len(columns)
    if first < 0 or tuple(shape[first:]) != rows + columns:
        return None
    between = first + len(rows)
    axes = MatrixAxes(tuple(range(first, between)), tuple(range(between, len(shape))))
    return axes, f"{kind}: in x out, by its layer{', each of a stack' * (first > 0)}"


def _linear(layer: Any, shape: Any) -> Said | None:
    return _stacked("matrix", shape, _sizes(layer.in_features), _sizes(layer.out_features))


def _convolution(layer: Any, shape: Any) -> Said | None:
    groups = layer.feature_group_count
    inputs, outputs = layer.in_features // groups, layer.out_features
    if groups > 1 and inputs == 1:
        return None, "depthwise: a filter for each channel, by its layer"
    said = _stacked("convolution", shape, (*_sizes(layer.kernel_size), inputs), (outputs,))
    if said is None or groups == 1:
        return said
    axes, reason = said
    return axes and MatrixAxes(axes.rows, axes.columns, groups), reason


def _transposed(layer: Any, shape: Any) -> Said | None:
    window, sizes = _sizes(layer.kernel_size), (layer.in_features, layer.out_features)
    if not layer.transpose_kernel:
        return _stacked("convolution", shape, (*window, sizes[0]), sizes[1:])
    first = len(shape) - len(window) - 2
    if tuple(shape[first:]) != (*window, *sizes[::-1]):
        return None
    rows = (*range(first, len(shape) - 2), len(shape) - 1)
    return MatrixAxes(rows, len(shape) - 2), "convolution: transposed, by its layer"


def _embedding(layer: Any, shape: Any) -> Said:
    return None, "embedding: a table, by its layer"


def _sizes(features: Any) -> tuple[int, ...]:
    return (int(features),) if isinstance(features, numbers.Integral) else tuple(features)


RULES: dict[str, tuple[str, Callable[[Any, Any], Said | None]]] = {
    "Linear": ("kernel", _linear),
    "LinearGeneral": ("kernel", _linear),
    "Conv": ("kernel", _convolution),
    "ConvTranspose": ("kernel", _transposed),
    "Embed": ("embedding", _embedding),
}
