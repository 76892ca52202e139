"""Trees of gradients, and what an optimizer makes of them."""

import jax
import jax.numpy as jnp
import matrices
import numpy as np

from egd_optax._selection import leaf_path


def gradient(shape=(24, 40), seed=0, decades=2.0):
    """A float32 matrix with singular values from 1 down to 10^-decades."""
    return jnp.asarray(matrices.with_spectrum(shape, np.logspace(0, -decades, min(shape)), seed))


def normal(tree, seed=0):
    """N(0, 1) entries: a float32 array for every shape in the tree."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32),
        tree,
        is_leaf=lambda node: isinstance(node, tuple),
    )


def updates_of(optimizer, params, grads=None):
    """The updates of the first step; by default the parameters are the gradients, too."""
    grads = params if grads is None else grads
    return optimizer.update(grads, optimizer.init(params), params)[0]


def moved(optimizer, params):
    """Paths of the leaves that an optimizer updates."""
    leaves = jax.tree_util.tree_leaves_with_path(updates_of(optimizer, params))
    return {leaf_path(path) for path, leaf in leaves if np.any(leaf)}
