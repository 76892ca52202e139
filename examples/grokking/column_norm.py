"""Cheap controls that whitening is compared with."""

import jax
import jax.numpy as jnp
import optax

from egd_optax._selection import is_matrix_like
from egd_optax.polar._oriented import working_dtype


def normalize_columns(floor: float = 0.01) -> optax.GradientTransformation:
    """Divide each column of a matrix gradient by its norm, floored.

    The paper's control: equal speed for the columns instead of the singular directions. A column
    of a Flax kernel (in, out) holds the weights into one output unit.

    Args:
        floor: least norm to divide by, positive; unit of the gradient.

    Returns:
        Transformation that touches 2-D leaves and passes the others through.

    Raises:
        ValueError: `floor` not positive.

    References:
        Pasand, Dohmatob 2025, arXiv 2510.04930, section 5.
    """
    if isinstance(floor, int | float) and not floor > 0:
        raise ValueError(f"floor must be positive, got {floor!r}; the paper has 0.01.")

    def normalize(leaf: jax.Array) -> jax.Array:
        if not is_matrix_like(leaf) or leaf.ndim != 2:
            return leaf
        precise = leaf.astype(working_dtype(leaf.dtype))
        unit = jnp.maximum(jnp.max(jnp.abs(precise), axis=0, keepdims=True), floor)
        norms = unit * jnp.linalg.norm(precise / unit.astype(precise.dtype), axis=0, keepdims=True)
        return leaf / jnp.maximum(norms, floor).astype(leaf.dtype)

    return optax.stateless_with_tree_map(lambda leaf, _: normalize(leaf))
