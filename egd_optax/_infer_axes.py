"""Which leaves are matrices and why: read off the loss, or guessed by one rule set."""

import functools
import re
from collections.abc import Callable
from typing import Any

from egd_optax._axes import Axes, Shapes, check_axes, decide
from egd_optax._decisions import InferredAxes, LeafAxes
from egd_optax._layers import Said, said_by_layers
from egd_optax._matrix_view import MatrixAxes
from egd_optax._program import read_program
from egd_optax._selection import check_tree, is_function
from egd_optax._siblings import NORM, OUT_FIRST, Shape, Siblings, Split, beside, by_attention

HEAD = (
    r"^(?!.*(attn|attention|mha)([_/]\d+)?/\w+_heads?)"  # those of an attention are no outputs
    r".*((^|/)((\w+_)?heads?(_proj)?|readout|(to_)?logits?|classifier|unembed\w*|output_(layer|head))"
    r"|^(params/)?output)([_/]\d+)?(/(kernel|weights?|w))?$"
)
TABLE = (
    r"((?<!patch)(?<!patch_)embed(ding|der)?s?(_?(in|out|tokens?|positions?|table|weights?|\d+))?"
    r"|(^|[/_])emb|(^|/)w[tp]e|(^|/)tokens?|relative_attention_bias)"
    r"(/(weights?|w|embedding|table))?$|_tokens?$"
)
# What a name says of a leaf that is no matrix, or no hidden one; the first match counts.
LEFT_OUT = {
    r"(^|/)bias$": "bias: added to the outputs",
    NORM: "scale: multiplied entry by entry",
    HEAD: "output head: by its name",
    TABLE: "embedding: a table, by its name",
    r"(^|/)pos(ition\w*)?(_\w+)?(/(weight|embedding))?$": "positions: a table, by their name",
    r"(depthwise|dw_?conv)[^/]*/(kernel|weight)$": "depthwise: a filter for each channel",
}
GUESS = "A guess by names and shapes; infer_axes(params, loss, batch) reads the model's program."
ASK = "unknown: which axes are inputs?"
OUT = "(heads head_dim) x out"
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
    convolutions go by their names, stacked layers by the norms and biases of their block, and any
    other layer by one of its name that has a bias. Layers of nnx in `params` are asked themselves.
    A leaf called `weight` is Equinox's, out x in. A leaf without any name is a stack (*batch, m,
    n). A leaf that none of this explains is unknown, and `egd` raises until it has its axes.

    Args:
        params: the tree that the optimizer gets: linen's `variables["params"]`,
            `nnx.state(model, nnx.Param)`, the nnx or Equinox model; arrays or their shapes.
        loss: the training loss, called as `loss(params, *examples)`; a scalar, or a tuple that
            begins with one.
        *examples: its other arguments, such as a batch; arrays or their shapes.
        overrides: your own axes, in any form of `scale_by_egd`; they come before the rules.

    Returns:
        Mapping from the paths of the leaves to `MatrixAxes`, or to None for what is left out.
        `print` shows the table, what is unknown first; `.leaves` holds its rows.

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
    if is_function(params) or isinstance(params, type):
        raise TypeError(
            "infer_axes takes the parameters first, the tree that the optimizer gets, then the "
            f"loss; got {repr(params)[:100]}."
        )
    if loss is None and examples:
        raise TypeError("infer_axes got a batch and no loss: infer_axes(params, loss, batch).")
    if loss is None:
        return decide(params, overrides, functools.partial(_guess, params), GUESS)
    if not callable(loss):
        raise TypeError(
            "infer_axes takes the loss second, called as loss(params, *examples), got "
            f"{repr(loss)[:100]}. Pass your own axes by name: overrides=..."
        )
    found = read_program(loss, params, examples)
    return decide(params, overrides, lambda _: found.__getitem__)


def _guess(params: Any, shapes: Shapes) -> Callable[[str], LeafAxes]:
    """Return the rule by layers, names and shapes."""
    layers, siblings = said_by_layers(params), Siblings(shapes)

    def rule(path: str) -> LeafAxes:
        axes, reason = _said(path, shapes[path], siblings, layers.get(path))
        return LeafAxes(path, shapes[path], axes, reason, known=not reason.startswith("unknown"))

    return rule


def _said(path: str, shape: Shape, siblings: Siblings, layer: Said | None) -> Said:
    """Return axes and reason of one leaf; the first rule that fits decides."""
    if layer and not re.search(HEAD, path, re.IGNORECASE):
        return layer
    layers = siblings.layers(path)
    if reason := _no_matrix(path, shape, siblings, layers):
        return None, reason
    if re.search(OUT_FIRST, path):
        return _out_first(path, shape, siblings, layers)
    if len(shape) == 2:
        return MatrixAxes(0, 1), "matrix: in x out"
    if not re.search(r"[^\d/]", path):
        return MatrixAxes(-2, -1), "no name: a stack of matrices"
    return _in_first(path, shape, siblings, layers)


def _no_matrix(path: str, shape: Shape, siblings: Siblings, layers: int) -> str | None:
    """Return why a leaf is no matrix, or no hidden one; None where it may be one."""
    for pattern, reason in LEFT_OUT.items():
        if re.search(pattern, path, re.IGNORECASE):
            return reason
    if siblings.shapes.get(beside(path, "bias")) == shape:
        return "scale: its bias has the same shape"
    return "vector: one in each of its block's stacked layers" if len(shape) == layers + 1 else None


def _in_first(path: str, shape: Shape, siblings: Siblings, layers: int) -> Said:
    """Return axes and reason for a Flax kernel of three axes or more."""
    named, reason = _by_name(path, shape, siblings, layers)
    fits = siblings.by_bias(path)
    if siblings.shapes.get(beside(path, "bias")) and not fits:
        return None, ASK
    split = named if named in fits or not fits else fits[0]
    if split is None or (split != named and len(fits) > 1):
        return None, "unknown: its bias fits two ways" if split else ASK
    batch, columns = split
    axes = range(len(shape))
    matrix = MatrixAxes(tuple(axes[batch:-columns]), tuple(axes[-columns:]))
    reason = reason if split == named else "matrix: columns as in its bias"
    reason += ", each of a stack" * (batch > 0) + DEPTHWISE * (shape[-2] == columns == 1)
    return matrix, reason


def _out_first(path: str, shape: Shape, siblings: Siblings, layers: int) -> Said:
    """Return axes and reason for Equinox, whose weights are out x in, as in PyTorch."""
    bias = siblings.shapes.get(beside(path, "bias"))
    *batch, rows = range(len(shape))
    if len(shape) == 2:
        return MatrixAxes(rows=1, columns=0), "matrix: out x in"
    convolution = re.search(CONVOLUTION, path, re.IGNORECASE)
    if not convolution and (bias == shape[:-1] or len(shape) == layers + 2):
        return MatrixAxes(rows, columns=batch[-1]), "matrix: out x in, each of a stack"
    if convolution or bias == (shape[0], *(1,) * (len(shape) - 2)):
        reason = f"convolution: out x (in window){DEPTHWISE * (shape[layers + 1] == 1)}"
        return MatrixAxes((*batch[layers + 1 :], rows), columns=layers), reason
    return None, ASK


def _by_name(path: str, shape: Shape, siblings: Siblings, layers: int) -> tuple[Split | None, str]:
    """Return numbers of batch and of column axes, as names and other layers have them."""
    if attention := by_attention(path, shape, siblings.query(path)):
        several = attention[1] > 1
        return attention, f"attention: {'in x (heads head_dim)' if several else OUT}"
    if re.search(CONVOLUTION, path, re.IGNORECASE):
        return (layers, 1), "convolution: (window in) x out"
    if layers and len(shape) == layers + 2:
        return (layers, 1), "matrix: in x out"
    if split := siblings.alike(path):
        return split, "matrix: as a layer of this name with a bias"
    return None, ""
