"""Flax models of `programs.py`: each with a loss, and the table of its parameters."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax import nnx

from egd_optax import MatrixAxes

KEY = jax.random.key(0)
TOKENS = jnp.arange(12).reshape(2, 6) % 7
IMAGES = jax.random.normal(KEY, (3, 8, 8, 3))
LABELS = jnp.arange(3)
IN_OUT, EACH = MatrixAxes(0, 1), MatrixAxes(1, 2)
CONV = MatrixAxes((0, 1, 2), 3)
TABLE, ADDED, SCALE, HEAD, JOINED = "embedding", "bias", "scale", "output head", "joined"


class Program(NamedTuple):
    """A model.

    Args:
        params: its parameters.
        loss: called with them and the examples.
        examples: a batch.
        table: what is decided of each leaf of two axes or more: its axes where it is whitened,
            or how the reason begins why it is not.
    """

    params: Any
    loss: Callable[..., jax.Array]
    examples: tuple
    table: dict[str, MatrixAxes | str]


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def of_nnx(make: Callable[[], nnx.Module], loss: Callable, examples: tuple, table: dict):
    """The program of an nnx module, of which there are shapes only; its statistics are zero."""
    graph, params, rest = nnx.split(nnx.eval_shape(make), nnx.Param, ...)

    def merged(params, *examples):
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), rest)
        return loss(nnx.merge(graph, params, zeros), *examples)

    return Program(params, merged, examples, table)


class GPTLayer(nnx.Module):
    def __init__(self, rngs):
        linear = functools.partial(nnx.Linear, use_bias=False, rngs=rngs)
        self.norm, self.norm_2 = nnx.RMSNorm(8, rngs=rngs), nnx.RMSNorm(8, rngs=rngs)
        self.qkv, self.out = linear(8, 24), linear(8, 8)
        self.gate_up, self.down = linear(8, 32), linear(16, 8)

    def __call__(self, x):
        heads = self.qkv(self.norm(x)).reshape(*x.shape[:-1], 3, 2, 4)
        q, k, v = (heads[..., i, :, :] for i in range(3))
        x = x + self.out(nnx.dot_product_attention(rotated(q), rotated(k), v).reshape(x.shape))
        gate, up = jnp.split(self.gate_up(self.norm_2(x)), 2, axis=-1)
        return x + self.down(nnx.silu(gate) * up)


def rotated(x):
    """Rotary positions: halves of the columns are mixed, which makes no parts of them."""
    a, b = jnp.split(x, 2, axis=-1)
    angles = jnp.arange(x.shape[-3], dtype=x.dtype)[:, None, None]
    sin, cos = (jnp.broadcast_to(f(angles), a.shape) for f in (jnp.sin, jnp.cos))
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class GPT(nnx.Module):
    def __init__(self, rngs):
        self.tokens = nnx.Embed(7, 8, rngs=rngs)
        self.layers = nnx.vmap(lambda key: GPTLayer(nnx.Rngs(key)))(jax.random.split(KEY, 3))
        self.norm = nnx.RMSNorm(8, rngs=rngs)

    def __call__(self, tokens):
        def step(x, layer):
            return layer(x), None

        scan = nnx.scan(nnx.remat(step), in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
        x, _ = scan(self.tokens(tokens), self.layers)
        return self.tokens.attend(self.norm(x))


def nnx_gpt():
    table = {
        "tokens/embedding": TABLE,
        "layers/norm/scale": SCALE,
        "layers/norm_2/scale": SCALE,
        "layers/qkv/kernel": MatrixAxes(1, 2, groups=3),
        "layers/out/kernel": EACH,
        "layers/gate_up/kernel": MatrixAxes(1, 2, groups=2),
        "layers/down/kernel": EACH,
    }
    return of_nnx(
        lambda: GPT(nnx.Rngs(0)), lambda model, t: cross_entropy(model(t), t), (TOKENS,), table
    )


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, _):
        general = functools.partial(nn.DenseGeneral, use_bias=False)
        q, k, v = (general((2, 4), name=name)(nn.LayerNorm()(x)) for name in "qkv")
        x = x + general(8, axis=(-2, -1), name="out")(nn.dot_product_attention(q, k, v))
        return x + nn.Dense(8, name="down")(nn.gelu(nn.Dense(16, name="up")(x))), None


class LinenTransformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(7, 8, name="tokens")(tokens)
        x = x + self.param("places", nn.initializers.normal(), (1, 9, 8))[:, : tokens.shape[1]]
        options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 3}
        x, _ = nn.scan(nn.remat(LinenBlock), **options)(name="layers")(x, None)
        return nn.Dense(7, name="head")(x)


def linen_transformer():
    model = LinenTransformer()
    params = jax.eval_shape(model.init, KEY, TOKENS)["params"]
    norms = {f"layers/LayerNorm_{i}/scale": SCALE for i in range(3)}
    biases = {f"layers/{name}/bias": ADDED for name in ("LayerNorm_0", "LayerNorm_1")}
    table = {
        "tokens/embedding": TABLE,
        "places": ADDED,
        **norms,
        **biases,
        "layers/LayerNorm_2/bias": ADDED,
        **{f"layers/{name}/kernel": MatrixAxes(1, (2, 3)) for name in "qkv"},
        "layers/out/kernel": MatrixAxes((1, 2), 3),
        "layers/up/kernel": EACH,
        "layers/up/bias": ADDED,
        "layers/down/kernel": EACH,
        "layers/down/bias": ADDED,
        "head/kernel": HEAD,
    }

    def loss(params, tokens):
        return cross_entropy(model.apply({"params": params}, tokens), tokens)

    return Program(params, loss, (TOKENS,), table)


class ViT(nnx.Module):
    def __init__(self, rngs):
        self.patches = nnx.Conv(3, 8, (4, 4), strides=4, padding="VALID", rngs=rngs)
        self.class_token = nnx.Param(jnp.ones((1, 1, 8)))
        self.places = nnx.Param(jnp.ones((1, 5, 8)))
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.up, self.down = nnx.Linear(8, 16, rngs=rngs), nnx.Linear(16, 8, rngs=rngs)
        self.head = nnx.Linear(8, 4, rngs=rngs)

    def __call__(self, images):
        x = self.patches(images).reshape(len(images), 4, 8)
        first = jnp.broadcast_to(self.class_token[...], (len(images), 1, 8))
        x = jnp.concatenate([first, x], axis=1) + self.places[...]
        x = x + self.attention(x)
        x = x + self.down(nnx.gelu(self.up(x)))
        return self.head(x[:, 0])


def classify(model, images, labels):
    return cross_entropy(model(images), labels)


def vit():
    table = {
        "patches/kernel": CONV,
        "class_token": JOINED,
        "places": ADDED,
        **{f"attention/{name}/kernel": MatrixAxes(0, (1, 2)) for name in ("query", "key", "value")},
        **{f"attention/{name}/bias": ADDED for name in ("query", "key", "value")},
        "attention/out/kernel": MatrixAxes((0, 1), 2),
        "up/kernel": IN_OUT,
        "down/kernel": IN_OUT,
        "head/kernel": HEAD,
    }
    return of_nnx(lambda: ViT(nnx.Rngs(0)), classify, (IMAGES, LABELS), table)


class ResNet(nnx.Module):
    def __init__(self, rngs):
        conv = functools.partial(nnx.Conv, use_bias=False, rngs=rngs)
        self.stem, self.norm = conv(3, 4, (3, 3)), nnx.BatchNorm(4, rngs=rngs)
        self.first, self.second = conv(4, 6, (3, 3), strides=2), conv(6, 6, (3, 3))
        self.norms = nnx.List([nnx.BatchNorm(6, rngs=rngs) for _ in range(3)])
        self.shortcut = conv(4, 6, (1, 1), strides=2)
        self.head = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, images):
        x = nnx.max_pool(nnx.relu(self.norm(self.stem(images))), (2, 2), (2, 2))
        y = self.norms[1](self.second(nnx.relu(self.norms[0](self.first(x)))))
        return self.head(nnx.relu(y + self.norms[2](self.shortcut(x))).mean((1, 2)))


def resnet():
    kernels = dict.fromkeys(("stem", "first", "second", "shortcut"), CONV)
    table = {f"{name}/kernel": axes for name, axes in kernels.items()} | {"head/kernel": HEAD}
    return of_nnx(lambda: ResNet(nnx.Rngs(0)), classify, (IMAGES, LABELS), table)


class Separable(nnx.Module):
    def __init__(self, rngs):
        conv = functools.partial(nnx.Conv, rngs=rngs)
        self.stem = conv(3, 4, (3, 3))
        self.each_channel = conv(4, 4, (3, 3), feature_group_count=4)
        self.mix = conv(4, 8, (1, 1))
        self.by_groups = conv(8, 6, (3, 3), feature_group_count=2)
        self.head = nnx.Linear(6, 4, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.mix(nnx.relu(self.each_channel(self.stem(images)))))
        return self.head(self.by_groups(x).mean((1, 2)))


def separable():
    table = {
        "stem/kernel": CONV,
        "each_channel/kernel": "depthwise",
        "mix/kernel": CONV,
        "by_groups/kernel": MatrixAxes((0, 1, 2), 3, groups=2),
        "head/kernel": HEAD,
    }
    return of_nnx(lambda: Separable(nnx.Rngs(0)), classify, (IMAGES, LABELS), table)
