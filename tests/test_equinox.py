"""Equinox: its modules are trees of their own, and its weights are out x in."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egd_optax import egd, infer_axes, polar
from egd_optax._matrix_view import matrix_views

KEYS = jax.random.split(jax.random.key(0), 8)


class Net(eqx.Module):
    tokens: eqx.nn.Embedding
    conv: eqx.nn.Conv2d
    attention: eqx.nn.MultiheadAttention
    norm: eqx.nn.LayerNorm
    mlp: eqx.nn.MLP
    head: eqx.nn.Linear

    def __init__(self):
        self.tokens = eqx.nn.Embedding(10, 6, key=KEYS[0])
        self.conv = eqx.nn.Conv2d(4, 6, (3, 2), key=KEYS[1])
        self.attention = eqx.nn.MultiheadAttention(2, 6, use_query_bias=True, key=KEYS[2])
        self.norm = eqx.nn.LayerNorm(6)
        self.mlp = eqx.nn.MLP(6, 6, 8, 2, key=KEYS[3])
        self.head = eqx.nn.Linear(6, 10, key=KEYS[4])

    def __call__(self, token, image):
        words = jax.vmap(self.tokens)(token) + self.conv(image)[None, :, 0, 0]
        mixed = self.attention(words, words, words)
        return jax.vmap(lambda word: self.head(self.mlp(self.norm(word))))(mixed)


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (eqx.nn.Linear(5, 3, key=KEYS[0]), jnp.arange(5.0)),
        (eqx.nn.Conv2d(4, 6, (3, 2), key=KEYS[1]), jnp.arange(24.0).reshape(4, 3, 2)),
        (eqx.nn.Conv1d(4, 6, 3, use_bias=False, key=KEYS[2]), jnp.arange(12.0).reshape(4, 3)),
    ],
    ids=["linear", "conv2d", "conv1d without bias"],
)
def test_the_proposed_matrix_is_the_layers_linear_map(layer, x):
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


def test_a_training_step_of_an_equinox_model():
    net = Net()
    params = eqx.filter(net, eqx.is_inexact_array)
    proposed = infer_axes(params, {"tokens": None})  # no name of it says what it is
    optimizer = egd(0.5, method=polar.SVD(), axes=proposed)
    state = optimizer.init(params)

    @eqx.filter_jit
    def step(net, state):
        image = jax.random.normal(KEYS[5], (4, 3, 2))
        gradients = eqx.filter_grad(lambda net: jnp.sum(net(jnp.arange(5), image) ** 2))(net)
        params = eqx.filter(net, eqx.is_inexact_array)
        updates, state = optimizer.update(gradients, state, params)
        return eqx.apply_updates(net, updates), state, updates

    after, _, updates = step(net, state)
    assert jax.tree.structure(after) == jax.tree.structure(net)
    leaves = jax.tree.leaves(updates)
    views = matrix_views(updates, proposed)
    assert {view.path for view in views} == {
        "conv/weight",
        *(f"attention/{name}_proj/weight" for name in ("query", "key", "value", "output")),
        *(f"mlp/layers/{number}/weight" for number in range(3)),
    }
    for view in views:
        lengths = np.linalg.svd(view.to_stack(leaves[view.index]), compute_uv=False)
        kept = lengths > 1e-2
        assert kept.any()
        np.testing.assert_allclose(lengths[kept], 0.5, rtol=1e-4)
