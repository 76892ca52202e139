"""Naive float64 NumPy, and gradients whose spectrum is known: what the core is measured against."""

import jax
import jax.numpy as jnp
import numpy as np

from egd_optax._selection import leaf_path


def polar64(matrix, rtol=1e-5):
    """U V^H over the singular values above rtol * sigma_1, straight from the definition."""
    u, s, vh = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    keep = s > rtol * s.max(initial=0)
    return u[:, keep] @ vh[keep]


def gradient(shape=(24, 40), seed=0, decades=2.0):
    """A float32 matrix with singular values from 1 down to 10^-decades."""
    rng, k = np.random.default_rng(seed), min(shape)
    u, v = (np.linalg.qr(rng.standard_normal((size, k)))[0] for size in shape)
    return jnp.asarray((u * np.logspace(0, -decades, k)) @ v.T, jnp.float32)


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
