"""Models as users write them: `egd(0.02)` trains at the first try, and says what it does."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from egd_optax import diagnostics, egd, infer_axes

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOKENS = jax.random.randint(jax.random.key(0), (32, 4), 0, 5)
LABELS = (TOKENS[:, 0] + TOKENS[:, 1]) % 5
IMAGES = jax.nn.one_hot(TOKENS, 5)[..., None]  # 4 x 5, one channel


def loss_of(logits):
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, LABELS))


class CNN(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(1, 8, (3, 3), rngs=rngs)
        self.position_embedding = nnx.Param(jnp.zeros((4, 40)))
        self.attention = nnx.MultiHeadAttention(2, 40, decode=False, rngs=rngs)
        self.norm = nnx.LayerNorm(40, rngs=rngs)
        self.head = nnx.Linear(160, 5, rngs=rngs)

    def __call__(self, x):
        words = nnx.relu(self.conv(x)).reshape(-1, 4, 40) + self.position_embedding[...][None]
        return self.head((words + self.attention(self.norm(words))).reshape(-1, 160))


def nnx_cnn():
    graph, params = nnx.split(CNN(nnx.Rngs(0)), nnx.Param)
    return nnx.to_pure_dict(params), lambda params: loss_of(nnx.merge(graph, params)(IMAGES))


class Transformer(nn.Module):
    """With DenseGeneral by hand, as in Flax's examples."""

    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(5, 16, name="token_embedding")(tokens)
        heads = [nn.DenseGeneral((2, 8), name=name)(x) for name in ("query", "key", "value")]
        weights = nn.softmax(jnp.einsum("blhd,bmhd->bhlm", *heads[:2]))
        mixed = jnp.einsum("bhlm,bmhd->blhd", weights, heads[2])
        x = nn.LayerNorm()(x + nn.DenseGeneral(16, axis=(-2, -1), name="out")(mixed))
        x = x + nn.Dense(16)(nn.relu(nn.Dense(32)(x)))
        return nn.Dense(5, name="lm_head")(x.reshape(len(x), -1))


def linen_transformer():
    model = Transformer()
    params = model.init(jax.random.key(0), TOKENS)["params"]
    return params, lambda params: loss_of(model.apply({"params": params}, TOKENS))


class Classifier(eqx.Module):
    embedding: eqx.nn.Embedding
    mlp: eqx.nn.MLP
    head: eqx.nn.Linear

    def __call__(self, tokens):
        return self.head(self.mlp(jax.vmap(self.embedding)(tokens).ravel()))


def equinox_mlp():
    keys = jax.random.split(jax.random.key(0), 3)
    mlp = eqx.nn.MLP(32, 32, 32, 1, final_activation=jax.nn.relu, key=keys[1])
    embedding, head = eqx.nn.Embedding(5, 8, key=keys[0]), eqx.nn.Linear(32, 5, key=keys[2])
    params, static = eqx.partition(Classifier(embedding, mlp, head), eqx.is_inexact_array)
    return params, lambda params: loss_of(jax.vmap(eqx.combine(params, static))(TOKENS))


class Layer(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        return x + nn.relu(nn.Dense(32)(x)), None


class Stack(nn.Module):
    """Three layers with biases under `nn.scan`."""

    @nn.compact
    def __call__(self, tokens):
        options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 3}
        x = nn.Embed(5, 8, name="tokens")(tokens).reshape(len(tokens), -1)
        return nn.Dense(5, name="head")(nn.scan(Layer, **options)(name="layers")(x, None)[0])


def scanned_stack():
    model = Stack()
    params = model.init(jax.random.key(0), TOKENS)["params"]
    return params, lambda params: loss_of(model.apply({"params": params}, TOKENS))


ATTENTION = dict.fromkeys(("query/kernel", "key/kernel", "value/kernel"), (1, 16, 16))
INSIDE = {f"attention/{name}/kernel": (1, 40, 40) for name in ("query", "key", "value", "out")}
MODELS = {
    nnx_cnn: {"conv/kernel": (1, 9, 8), **INSIDE},
    linen_transformer: {
        **ATTENTION,
        "out/kernel": (1, 16, 16),
        "Dense_0/kernel": (1, 32, 16),  # linen names the inner call first
        "Dense_1/kernel": (1, 16, 32),
    },
    equinox_mlp: {"mlp/layers/0/weight": (1, 32, 32), "mlp/layers/1/weight": (1, 32, 32)},
    scanned_stack: {"layers/Dense_0/kernel": (3, 32, 32)},
}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
@pytest.mark.usefixtures("optax_promotes")
def test_egd_trains_at_the_first_try(model):
    params, loss = model()
    optimizer = egd(0.02)
    plan = diagnostics.whitening_plan(optimizer, params)
    assert plan == infer_axes(params)
    assert {leaf.path: leaf.matrix for leaf in plan.leaves if leaf.axes} == MODELS[model]
    assert not plan.unknown
    reasons = {leaf.reason.partition(":")[0] for leaf in plan.leaves if not leaf.axes}
    assert {"output head", "embedding"} <= reasons

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            value, gradients = jax.value_and_grad(loss)(params)
            updates, state = optimizer.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), value

        return jax.lax.scan(step, (params, optimizer.init(params)), length=60)

    (after, state), losses = train(params)
    assert losses[-1] < losses[0] / 2, losses[::10]
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), params, after)
    assert all(jax.tree.leaves(moved))
    check = diagnostics.check_whitening(optimizer, after, state=state)
    assert not check.failed, check
    assert {path for path, leaf in check.items() if leaf.whitened} == MODELS[model].keys()
