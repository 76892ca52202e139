"""Equinox: its modules are trees of their own, and its weights are out x in."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egd_optax import diagnostics, egd, infer_axes
from egd_optax._matrix_view import matrix_views

pytestmark = pytest.mark.usefixtures("quick_compilation")

KEYS = jax.random.split(jax.random.key(0), 8)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (eqx.nn.Linear(5, 3, key=KEYS[0]), jnp.arange(5.0)),
        (eqx.nn.Conv2d(4, 6, (3, 2), key=KEYS[1]), jnp.arange(24.0).reshape(4, 3, 2)),
        (eqx.nn.Conv1d(4, 6, 3, use_bias=False, key=KEYS[2]), jnp.arange(12.0).reshape(4, 3)),
    ],
    ids=["linear", "conv2d", "conv1d without bias"],
)
def test_the_matrix_is_the_layers_linear_map(layer, x):
    tree = {"conv": layer} if isinstance(layer, eqx.nn.Conv) else {"layer": layer}
    leaves = jax.tree.leaves(tree)
    (view,) = matrix_views(tree, infer_axes(tree))
    (matrix,) = view.to_stack(leaves[view.index])
    without_bias = layer(x) - layer(0 * x)
    np.testing.assert_allclose(x.ravel() @ matrix, without_bias.ravel(), rtol=1e-5, atol=1e-5)


def test_stacked_layers_are_a_batch():
    stack = eqx.filter_vmap(lambda key: eqx.nn.Linear(5, 3, key=key))(KEYS)
    (view,) = matrix_views({"layers": stack}, infer_axes({"layers": stack}))
    assert (view.batch, view.m, view.n) == (8, 5, 3)


class Net(eqx.Module):
    """One of each layer that is not a matrix, and a tree that can be called."""

    tokens: eqx.nn.Embedding
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    head: eqx.nn.Linear

    def __call__(self, x):
        raise AssertionError("a tree was taken for a function")


def test_an_equinox_model_is_a_tree_of_leaves_with_names():
    net = Net(
        eqx.nn.Embedding(10, 6, key=KEYS[0]),
        eqx.nn.MultiheadAttention(2, 6, use_query_bias=True, key=KEYS[2]),
        eqx.nn.LayerNorm(6),
        eqx.nn.Linear(6, 10, key=KEYS[4]),
    )
    params = eqx.filter(net, eqx.is_inexact_array)
    mask = jax.tree.map(lambda leaf: leaf.shape == (6, 6), params)
    projections = {f"attention/{name}_proj/weight" for name in ("query", "key", "value", "output")}
    for optimizer in (egd(0.5), egd(0.5, axes=infer_axes(params)), egd(0.5, matrices=mask)):
        plan = diagnostics.whitening_plan(optimizer, params)
        assert {leaf.path for leaf in plan.leaves if leaf.axes} == projections
        jax.eval_shape(lambda p, o=optimizer: o.update(p, o.init(p), p), params)
