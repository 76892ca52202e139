"""Traces a loss on shapes alone, and says what is wrong where that fails."""

import traceback
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr
from jax.interpreters import partial_eval

from egd_optax import _selection as selection
from egd_optax._matrix_view import MatrixAxes
from egd_optax._program._uses import is_library, shown_line

TEXT = "USOMm"  # NumPy's kinds of dtypes that no program computes with: strings, objects, dates
# What an error of a user's loss says, and what to do about it.
REMEDIES = {
    "'State' object is not callable": "Give infer_axes the model itself, or merge it in the loss.",
    "missing 1 required positional argument": "Give the batch: infer_axes(params, loss, batch).",
    "unbound axis name": "Map the loss over the axis, as in jax.vmap(loss, axis_name=...).",
}


def is_array(leaf: Any) -> bool:
    """Return whether a leaf is traced: an array, or its shape; numbers and text are static."""
    if isinstance(leaf, np.generic) or not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        return False
    return getattr(leaf.dtype, "kind", "V") not in TEXT


def traced(loss: Callable, params: Any, examples: Sequence[Any]) -> ClosedJaxpr:
    """Return the program of the loss alone: what it does not depend on is left out.

    Raises:
        ValueError: the loss cannot be traced, or is no scalar.
    """
    leaves, structure = jax.tree.flatten((params, tuple(examples)))
    arrays = [leaf for leaf in leaves if is_array(leaf)]

    def of_arrays(*given):
        rest = iter(given)
        filled = [next(rest) if is_array(leaf) else leaf for leaf in leaves]
        tree, others = jax.tree.unflatten(structure, filled)
        value = loss(tree, *others)
        while isinstance(value, tuple | list) and value:
            value = value[0]  # the rest are auxiliary outputs
        return value

    try:
        program, shape = jax.make_jaxpr(of_arrays, return_shape=True)(*arrays)
    except Exception as error:
        raise ValueError(
            f"loss(params, *examples) cannot be traced: {_told(error)} {_remedy(error, examples)}"
            "It is called as in jax.grad, with the parameters first and these examples: "
            f"{_listed(examples)}."
        ) from error
    if getattr(shape, "shape", None) != () or not jnp.issubdtype(shape.dtype, jnp.floating):
        raise ValueError(
            "loss must return a real scalar, or a tuple that begins with one, got "
            f"{_returned(shape)}"
        )
    live, _ = partial_eval.dce_jaxpr(program.jaxpr, [True], instantiate=True)
    return ClosedJaxpr(live, program.consts)


def _told(error: Exception) -> str:
    """Return an error in a sentence, with the user's line that it comes from."""
    lines = str(error).strip().splitlines() or [""]
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if not is_library(frame.filename)]
    where = f" at {shown_line(own[-1].filename, own[-1].lineno)}" if own else ""
    text = f"{type(error).__name__}{where}: {lines[0]}"
    return f"{text[:300].rstrip('.')}."


def _remedy(error: Exception, examples: Sequence[Any]) -> str:
    """Return what to do about an error, if it is a common one."""
    axes = (leaf for leaf in jax.tree.leaves(examples) if isinstance(leaf, MatrixAxes))
    if any(axes):
        return "Name your own axes: infer_axes(params, loss, batch, overrides=...). "
    found = (remedy for text, remedy in REMEDIES.items() if text in str(error))
    return next((f"{remedy} " for remedy in found), "")


def _listed(examples: Sequence[Any]) -> str:
    """Return the paths and shapes of the examples as an error shows them."""
    leaves = selection.leaves_by_path(tuple(examples))
    few = [f"{path}: {_text(leaf)}" for path, leaf in list(leaves.items())[:20]]
    return ", ".join(few + ["..."] * (len(leaves) > len(few))) or "none"


def _returned(shape: Any) -> str:
    """Return what a loss returned in place of a scalar, and what to do about it."""
    if is_array(shape):
        mean = " Take the mean over the batch." if shape.shape else ""
        return f"{_text(shape)}.{mean}"
    leaves = jax.tree.leaves(shape)
    if not leaves:
        return f"{type(shape).__name__} without any number. Does it end in return?"
    return (
        f"{type(shape).__name__} with {len(leaves)} arrays in it. Give the loss and not its "
        "gradient; or return the number first, and the rest beside it."
    )


def _text(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}" if is_array(leaf) else repr(leaf)[:40]
