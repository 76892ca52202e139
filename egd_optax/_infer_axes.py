"""Which leaves are matrices and why: the one rule set, read off names, shapes and biases."""

import re
from collections.abc import Callable
from typing import Any

from egd_optax._axes import Axes, InferredAxes, LeafAxes, Shapes, check_axes, decide
from egd_optax._matrix_view import MatrixAxes
from egd_optax._program import read_program
from egd_optax._selection import check_tree

Shape = tuple[int, ...]
Split = tuple[int, int]

HEAD = (
    r"((^|/)((\w+_)?heads?(_proj)?|readout|(to_)?logits?|classifier|unembed\w*|output_(layer|head))"
    r"|^(params/)?output)([_/]\d+)?(/(kernel|weights?|w))?$"
)
TABLE = (
    r"((?<!patch)(?<!patch_)embed[^/]*|(^|[/_])emb|(^|/)w[tp]e|(^|[/_])tokens?"
    r"|relative_attention_bias)(/(weights?|w|embedding|table))?$"
)
# What a name says of a leaf that is no matrix, or no hidden one; the first match counts.
LEFT_OUT = {
    r"(^|/)bias$": "bias: added to the outputs, no matrix",
    r"(^|/)scale$|(norm|(^|/)ln)[^/]*/weight$": "scale: multiplied entry by entry, no matrix",
    HEAD: "output head: left out, as embeddings are",
    TABLE: "embedding: a table, looked up row by row",
    r"(^|/)pos(ition\w*)?(_\w+)?(/(weight|embedding))?$": "positions: a table, one row each",
    r"(depthwise|dw_?conv)[^/]*/(kernel|weight)$": "depthwise: a filter for each channel",
}
GUESS = "A guess by names and shapes; infer_axes(params, loss, batch) reads the model's program."
PROJECTION = r"(^|/)(query|key|value|[qkv](_proj)?)/[^/]+$"
DEPTHWISE = "; one input channel: if depthwise, leave it out"
CONVOLUTION = r"conv(?!local)[^/]*(/\d+)?/[^/]+$"


def infer_axes(
    params: Any, loss: Callable[..., Any] | None = None, *examples: Any, overrides: Axes = None
) -> InferredAxes:
    """Infer which leaves of a model are whitened, along which axes, and say why.

    With a loss, the program says it, whatever the names: a parameter that a dot product or a
    convolution contracts is a matrix, contracted axes x kept axes. Axes of which each entry has a
    product of its own (experts, a scan's layers) are batch; so are equal parts of the columns that
    go different ways, as query, key and value in one kernel (`groups`). Left out: what is looked
    up, added or multiplied, depthwise convolutions, and output heads: matrices behind which no
    other one comes on the way to the loss. Unknown: a leaf with two uses, or one that is not
    understood. The loss is traced on shapes; nothing is computed.

    Without a loss, it is a guess by names and shapes, which `egd` makes by itself. Left out, and so
    left to `others`: biases, scales of norms, embeddings, positions, output heads and depthwise
    convolutions; heads and embeddings are known by name. Every other leaf of two axes is a matrix.
    With more axes, the columns are the axes that a layer's bias shares with the end of its kernel,
    and those shared with the beginning are batch (stacked layers). Without a bias, attention and
    convolutions go by their names. A leaf called `weight` is Equinox's, out x in. A leaf without
    any name is a stack (*batch, m, n). A leaf that none of this explains is unknown, and `egd` asks
    for its axes.

    Args:
        params: the tree that the optimizer gets: linen's `variables["params"]`,
            `nnx.state(model, nnx.Param)`, the nnx or Equinox model; arrays or their shapes.
        loss: the training loss, called as `loss(params, *examples)`; a scalar, or a tuple that
            begins with one.
        *examples: its other arguments, such as a batch; arrays or their shapes.
        overrides: your own axes, in any form of `scale_by_egd`; they come before the rules.

    Returns:
        Mapping from the paths of the leaves to `MatrixAxes`, or to None for what is left out.
        `print` shows the table, `.leaves` holds its rows.

    Raises:
        ValueError: an override that matches no leaf, or does not fit one; a loss that cannot be
            traced on these shapes, or is no scalar.
        TypeError: overrides that are no axes, a loss that is no function.

    Examples:
        >>> import jax.numpy as jnp
        >>> from egd_optax import MatrixAxes, infer_axes
        >>> params = {"query": {"kernel": jnp.ones((8, 2, 4)), "bias": jnp.zeros((2, 4))}}
        >>> infer_axes(params)["query/kernel"]
        MatrixAxes(rows=0, columns=(1, 2))
        >>> def loss(params, x):
        ...     return jnp.mean(jnp.tanh(x @ params["a"]) @ params["b"])
        >>> infer_axes({"a": jnp.ones((8, 4)), "b": jnp.ones((4, 2))}, loss, jnp.ones((3, 8)))["a"]
        MatrixAxes(rows=0, columns=1)

    References:
        Jordan et al., Muon, 2024: embeddings and heads left to AdamW, convolutions flattened.
    """
    check_tree("infer_axes", params)
    check_axes(overrides)
    if loss is None:
        return decide(params, overrides, _by_rules, GUESS)
    if not callable(loss):
        raise TypeError(
            "infer_axes takes the loss second, called as loss(params, *examples), got "
            f"{repr(loss)[:100]}. Pass your own axes by name: overrides=..."
        )
    found = read_program(loss, params, examples)
    return decide(params, overrides, lambda path, _: found[path])


def _by_rules(path: str, shapes: Shapes) -> LeafAxes:
    """Return what the rules say of one leaf."""
    shape, query = shapes[path], _query(path, shapes)
    for pattern, reason in LEFT_OUT.items():
        if re.search(pattern, path, re.IGNORECASE):
            return LeafAxes(path, shape, None, reason)
    if shapes.get(_beside(path, "bias")) == shape:
        return LeafAxes(path, shape, None, "scale: its bias has the same shape")
    if re.search(r"(^|/)weight(_ih|_hh)?$", path):
        axes, reason = _out_first(path, shapes)
    elif len(shape) == 2:
        axes, reason = MatrixAxes(0, 1), "matrix: in x out"
    elif not re.search(r"[^\d/]", path):
        axes, reason = MatrixAxes(-2, -1), "no name: a stack of matrices"
    else:
        axes, reason = _in_first(path, shapes, query)
    return LeafAxes(path, shape, axes, reason, known=axes is not None)


def _in_first(path: str, shapes: Shapes, query: Shape | None) -> tuple[MatrixAxes | None, str]:
    """Return axes and reason for a Flax kernel of three axes or more; None where unknown."""
    shape, bias = shapes[path], shapes.get(_beside(path, "bias"))
    named, reason = _split_by_name(path, shape, query)
    fits = _splits_by_bias(shape, bias) if bias else [named]
    split = named if named in fits else fits[0]
    if split is None or (split != named and len(fits) > 1):
        return None, f"unknown: {'its bias fits two ways' if split else 'which axes are inputs?'}"
    batch, columns = split
    axes = range(len(shape))
    matrix = MatrixAxes(tuple(axes[batch:-columns]), tuple(axes[-columns:]))
    reason = reason if split == named else "matrix: columns as in its bias"
    reason += ", each of a stack" * (batch > 0) + DEPTHWISE * (shape[-2] == columns == 1)
    return matrix, reason


def _out_first(path: str, shapes: Shapes) -> tuple[MatrixAxes | None, str]:
    """Return axes and reason for Equinox, whose weights are out x in, as in PyTorch."""
    shape, bias = shapes[path], shapes.get(_beside(path, "bias"))
    *batch, rows = range(len(shape))
    if len(shape) == 2:
        return MatrixAxes(rows=1, columns=0), "matrix: out x in"
    convolution = re.search(CONVOLUTION, path, re.IGNORECASE)
    if bias == shape[:-1] and not convolution:
        return MatrixAxes(rows, columns=batch[-1]), "matrix: out x in, each of a stack"
    if convolution or bias == (shape[0], *(1,) * (len(shape) - 2)):
        reason = f"convolution: out x (in window){DEPTHWISE * (shape[1] == 1)}"
        return MatrixAxes((*batch[1:], rows), columns=0), reason
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
