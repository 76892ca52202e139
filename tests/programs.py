"""Twelve models with a loss, and beside each the table of its parameters, written by hand."""

import random
import string
from collections.abc import Callable

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import nnx
from flax_programs import (
    EACH,
    HEAD,
    IN_OUT,
    KEY,
    TABLE,
    TOKENS,
    Program,
    classify,
    cross_entropy,
    linen_transformer,
    nnx_gpt,
    of_nnx,
    resnet,
    separable,
    vit,
)
from helpers import normal

from egd_optax import MatrixAxes
from egd_optax._selection import leaves_by_path
from egd_optax.models import DecoderTransformer, TwoLayerMLP

OUT_IN = MatrixAxes(1, 0)
POINTS = jax.random.normal(KEY, (4, 6))


def shuffled(program: Program, seed: int = 0) -> Program:
    """The same program, its parameters a dictionary with names by chance."""
    leaves, structure = jax.tree.flatten(program.params)
    draw = random.Random(seed)
    names = ["".join(draw.choices(string.ascii_lowercase, k=8)) for _ in leaves]

    def loss(params, *examples):
        tree = jax.tree.unflatten(structure, [params[name] for name in names])
        return program.loss(tree, *examples)

    of_path = dict(zip(leaves_by_path(program.params), names, strict=True))
    table = {of_path[path]: row for path, row in program.table.items()}
    return Program(dict(zip(names, leaves, strict=True)), loss, program.examples, table)


def mixture_of_experts():
    """All experts see every token: only the next product tells that they are batch."""
    shapes = {"tokens": (7, 8), "router": (8, 4), "up": (4, 8, 16), "down": (4, 16, 8)}
    shapes |= {"scale": (2, 8), "head": (8, 7)}

    def loss(params, tokens):
        x = params["tokens"][tokens]
        gates = jax.nn.softmax((x * params["scale"][0]) @ params["router"])
        hidden = jax.nn.gelu(jnp.einsum("btd,edf->ebtf", x, params["up"]))
        each = jnp.einsum("ebtf,efd->ebtd", hidden, params["down"])
        x = x + jnp.einsum("ebtd,bte->btd", each, gates) * params["scale"][1]
        return cross_entropy(x @ params["head"], tokens)

    table = {"tokens": TABLE, "router": IN_OUT, "up": EACH, "down": EACH, "head": HEAD}
    return Program(normal(shapes), loss, (TOKENS,), table | {"scale": "scale"})


def lora():
    """Low-rank pairs beside a frozen base, one pair before the data comes in."""
    frozen = normal({"first": (6, 8), "second": (8, 8), "head": (8, 4)}, seed=1)
    shapes = {"a": (6, 2), "b": (2, 8), "merged_a": (8, 2), "merged_b": (2, 8)}

    def loss(params, frozen, x):
        x = jnp.tanh(x @ frozen["first"] + x @ params["a"] @ params["b"])
        x = jnp.tanh(x @ (frozen["second"] + 0.5 * params["merged_a"] @ params["merged_b"]))
        return cross_entropy(x @ frozen["head"], jnp.arange(4))

    return Program(normal(shapes), loss, (frozen, POINTS), dict.fromkeys(shapes, IN_OUT))


class Recurrent(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.RNN(nn.OptimizedLSTMCell(8), name="rnn")(nn.Embed(7, 6, name="tokens")(tokens))
        return nn.Dense(7, name="head")(x)


def lstm():
    model = Recurrent()
    params = jax.eval_shape(model.init, KEY, TOKENS)["params"]
    gates = [f"OptimizedLSTMCell_0/{side}{gate}/kernel" for side in "ih" for gate in "ifgo"]

    def loss(params, tokens):
        return cross_entropy(model.apply({"params": params}, tokens), tokens)

    table = {"tokens/embedding": TABLE, **dict.fromkeys(gates, IN_OUT), "head/kernel": HEAD}
    return Program(params, loss, (TOKENS,), table)


class EquinoxNet(eqx.Module):
    mlp: eqx.nn.MLP
    attention: eqx.nn.MultiheadAttention
    head: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.mlp = eqx.nn.MLP(6, 8, 10, 1, key=keys[0])
        self.attention = eqx.nn.MultiheadAttention(2, 8, key=keys[1])
        self.head = eqx.nn.Linear(8, 4, key=keys[2])

    def __call__(self, x):
        x = jax.vmap(self.mlp)(x)
        return jax.vmap(self.head)(x + self.attention(x, x, x))


def is_shape(leaf):
    return isinstance(leaf, jax.ShapeDtypeStruct)


def equinox_net():
    params, static = eqx.partition(eqx.filter_eval_shape(EquinoxNet, KEY), is_shape)

    def loss(params, x):
        logits = jax.vmap(eqx.combine(params, static))(x)
        return cross_entropy(logits, jnp.zeros(logits.shape[:2], int))

    names = ("query", "key", "value", "output")
    table = {f"attention/{name}_proj/weight": OUT_IN for name in names}
    table |= {f"mlp/layers/{i}/weight": OUT_IN for i in (0, 1)} | {"head/weight": HEAD}
    return Program(params, loss, (jnp.stack([POINTS, POINTS]),), table)


def einsums():
    """Layers indexed one by one, kernels of all orders of axes, a matrix and its transpose."""
    shapes = {
        "in": (8, 6),
        "layers": (3, 8, 8),
        "query_key_value": (8, 3, 2, 4),
        "out": (8, 2, 4),
        "encode": (8, 5),
        "head": (4, 8),
    }

    def loss(params, x):
        x = jnp.einsum("td,fd->tf", x, params["in"])
        for i in range(3):
            x = x + jnp.tanh(x @ params["layers"][i])
        q, k, v = jnp.moveaxis(jnp.einsum("td,dphk->tphk", x, params["query_key_value"]), 1, 0)
        weights = jax.nn.softmax(jnp.einsum("thk,shk->hts", q, k))
        x = x + jnp.einsum("thk,dhk->td", jnp.einsum("hts,shk->thk", weights, v), params["out"])
        x = jnp.tanh(x @ params["encode"]) @ params["encode"].T
        return cross_entropy(jnp.einsum("fd,td->tf", params["head"], x), jnp.arange(4))

    table = {
        "in": OUT_IN,
        "layers": EACH,
        "query_key_value": MatrixAxes(0, (2, 3)),
        "out": MatrixAxes((1, 2), 0),
        "encode": IN_OUT,
        "head": HEAD,
    }
    return Program(normal(shapes), loss, (POINTS,), table)


def paper_mlp():
    def make():
        return TwoLayerMLP(6, 8, 4, rngs=nnx.Rngs(0))

    table = {"hidden/kernel": IN_OUT, "readout/kernel": HEAD}
    return of_nnx(make, classify, (POINTS, jnp.arange(4)), table)


def transformer():
    table = {"token_embedding/embedding": TABLE, "position_embedding/embedding": TABLE}
    for block in ("blocks/0", "blocks/1"):
        for name in ("query", "key", "value"):
            table[f"{block}/attention/{name}/kernel"] = MatrixAxes(0, (1, 2))
            table[f"{block}/attention/{name}/bias"] = "bias"
        table[f"{block}/attention/out/kernel"] = MatrixAxes((0, 1), 2)
        table |= {f"{block}/mlp/{name}/kernel": IN_OUT for name in ("expand", "contract")}
    table["head/kernel"] = HEAD

    def make():
        return DecoderTransformer(7, 6, width=8, heads=2, rngs=nnx.Rngs(0))

    return of_nnx(make, classify, (TOKENS, TOKENS[:, 0]), table)


PROGRAMS: dict[str, Callable[[], Program]] = {
    "nnx GPT, scanned, fused, tied": nnx_gpt,
    "linen transformer, scanned": linen_transformer,
    "ViT": vit,
    "ResNet": resnet,
    "depthwise and grouped": separable,
    "experts": mixture_of_experts,
    "LoRA": lora,
    "LSTM": lstm,
    "Equinox": equinox_net,
    "einsums": einsums,
    "the paper's MLP": paper_mlp,
    "the project's transformer": transformer,
}
