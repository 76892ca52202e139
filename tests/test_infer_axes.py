"""infer_axes: against the linear maps of Flax's own layers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from egd_optax import MatrixAxes, infer_axes
from egd_optax._matrix_view import matrix_views
from egd_optax.models import DecoderTransformer

pytestmark = pytest.mark.usefixtures("quick_compilation")

RNGS = nnx.Rngs(0)


def normal(*shape):
    return jax.random.normal(jax.random.key(1), shape)


def views(params):
    """The whitened leaves as stacks of matrices, by path."""
    leaves = jax.tree.leaves(params)
    return {
        view.path: np.asarray(view.to_stack(leaves[view.index]))
        for view in matrix_views(params, infer_axes(params))
    }


def whitened(params):
    return {leaf.path for leaf in infer_axes(params).leaves if leaf.axes is not None}


def attention(**options):
    return nnx.MultiHeadAttention(2, 8, 6, out_features=10, decode=False, rngs=RNGS, **options)


def stacked(layers, inputs, outputs):
    return nnx.vmap(lambda key: nnx.Linear(inputs, outputs, rngs=nnx.Rngs(key)))(
        jax.random.split(jax.random.key(0), layers)
    )


def center(convolution, x):
    return convolution(x)[:, 2, 1]  # the one output that sees the whole window


def general(*shape, **options):
    return lambda: nnx.LinearGeneral(*shape, rngs=RNGS, **options)


def convolution(kind):
    return lambda: kind(4, 6, (3, 2), padding="VALID", rngs=RNGS)


def query(attention, x):
    return attention.query(x)


def out(attention, x):
    return attention.out(x)


bare_attention = functools.partial(attention, use_bias=False)
# Layer, its kernel, how it is called, shape of the input. Biases are zero.
NNX = {
    "Linear": (lambda: nnx.Linear(5, 7, rngs=RNGS), "kernel", None, (1, 5)),
    "LinearGeneral": (general((2, 3), (4, 5), axis=(-2, -1)), "kernel", None, (1, 2, 3)),
    "batch_axis": (general(5, 7, axis=-1, batch_axis={0: 3}), "kernel", None, (3, 5)),
    "query": (attention, "query/kernel", query, (1, 8)),
    "query, no bias": (bare_attention, "query/kernel", query, (1, 8)),
    "out": (attention, "out/kernel", out, (1, 2, 3)),
    "out, no bias": (bare_attention, "out/kernel", out, (1, 2, 3)),
    "Conv": (convolution(nnx.Conv), "kernel", None, (1, 3, 2, 4)),
    "ConvTranspose": (convolution(nnx.ConvTranspose), "kernel", center, (1, 3, 2, 4)),
    "stack": (lambda: stacked(3, 5, 7), "kernel", nnx.vmap(lambda m, x: m(x)), (3, 5)),
}


@pytest.mark.parametrize("name", NNX)
def test_the_matrix_is_the_linear_map_of_an_nnx_layer(name):
    make, path, call, shape = NNX[name]
    layer, x = make(), normal(*shape)
    y = layer(x) if call is None else call(layer, x)
    stack = views(nnx.state(layer, nnx.Param))[path]
    actual = np.einsum("bm,bmn->bn", np.reshape(x, (len(stack), -1)), stack)
    np.testing.assert_allclose(actual, np.reshape(y, actual.shape), rtol=0, atol=1e-5)


LINEN = {
    "Dense": (nn.Dense(7), (1, 5)),
    "DenseGeneral": (nn.DenseGeneral((4, 5), axis=(-2, -1)), (1, 2, 3)),
    "batch_dims": (nn.DenseGeneral(7, axis=-1, batch_dims=(0,)), (3, 5)),
    "Conv": (nn.Conv(6, (3, 2), padding="VALID"), (1, 3, 2, 4)),
}


@pytest.mark.parametrize("name", LINEN)
def test_the_matrix_is_the_linear_map_of_a_linen_layer(name):
    layer, shape = LINEN[name]
    x = normal(*shape)
    y, variables = layer.init_with_output(jax.random.key(0), x)
    stack = views(variables["params"])["kernel"]
    actual = np.einsum("bm,bmn->bn", np.reshape(x, (len(stack), -1)), stack)
    np.testing.assert_allclose(actual, np.reshape(y, actual.shape), rtol=0, atol=1e-5)


class Scanned(nn.Module):
    """Attention, and a layer without a bias, three times under `nn.scan`."""

    use_bias: bool = True

    @nn.compact
    def __call__(self, x):
        def body(module, carry, _):
            attention = nn.MultiHeadDotProductAttention(2, use_bias=self.use_bias, name="mha")
            return nn.Dense(8, use_bias=False, name="dense")(attention(carry)), None

        scan = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
        return scan(self, x, None)[0]


@pytest.mark.parametrize("use_bias", [True, False])
def test_scanned_layers_are_batch(use_bias):
    """Attention by bias or name, and it explains the bare kernel (3, 8, 8) beside it."""
    x = normal(1, 4, 8)
    params = jax.eval_shape(Scanned(use_bias).init, jax.random.key(0), x)["params"]
    matrices = {leaf.path: leaf.matrix for leaf in infer_axes(params).leaves if leaf.axes}
    names = {f"mha/{name}/kernel" for name in ("query", "key", "value", "out")} | {"dense/kernel"}
    assert matrices == dict.fromkeys(names, (3, 8, 8))
    alone = {"dense": params["dense"]}  # it could be anything
    assert [leaf.path for leaf in infer_axes(alone).unknown] == ["dense/kernel"]
    own = infer_axes(alone, overrides={"dense/kernel": MatrixAxes(1, 2)}).leaves[0]
    assert (own.path, own.matrix, own.reason) == ("dense/kernel", (3, 8, 8), "your axes")


OUT, UNKNOWN = None, False
LAYERS = {"up/kernel": (3, 8, 32), "down/kernel": (3, 32, 8), "log": (3, 8)}
WHITENED = {"up/kernel": (3, 8, 32), "down/kernel": (3, 32, 8), "log": OUT}


@pytest.mark.parametrize(
    ("siblings", "more"),
    [
        ({"norm/scale": (3, 8)}, WHITENED),
        ({"ln_1/weight": (3, 8)}, WHITENED),
        ({"gate/kernel": (3, 8, 32), "gate/bias": (3, 32)}, WHITENED | {"gate/kernel": (3, 8, 32)}),
        (
            {"norm/scale": (3, 8), "conv/kernel": (3, 5, 5, 8, 4), "lift/weight": (3, 16, 8)},
            WHITENED | {"conv/kernel": (3, 200, 4), "lift/weight": (3, 8, 16)},
        ),
        ({"norm/scale": (3, 8), "x/kernel": (3, 3, 8), "x/bias": (3, 8)}, {"x/kernel": (3, 3, 8)}),
        (
            {"norm/scale": (3, 8), "x/kernel": (3, 3, 2, 8), "x/bias": (3, 2, 8)},
            {"x/kernel": (3, 3, 16)},
        ),
        ({"norm/scale": (8,)}, {"up/kernel": UNKNOWN}),  # as in one layer
        ({"norm/scale": (2, 8)}, {"up/kernel": UNKNOWN}),  # of two layers
        ({"norm/scale": (3, 8), "w": (4, 8)}, {"up/kernel": UNKNOWN}),  # a leaf of no stack
        ({"cell/kernel": (3, 3, 5), "cell/bias": (3, 5)}, {"up/kernel": UNKNOWN}),  # fits two ways
    ],
    ids=str,
)
@pytest.mark.parametrize("block", ["layers/", ""])
def test_norms_and_biases_explain_their_block(block, siblings, more):
    tree = {block + path: jnp.zeros(shape) for path, shape in (LAYERS | siblings).items()}
    leaves = {leaf.path: leaf for leaf in infer_axes(tree | {"count": jnp.zeros(())}).leaves}
    for path, expected in more.items():
        leaf = leaves[block + path]
        assert (leaf.matrix, leaf.known) == (expected or None, expected is not UNKNOWN), leaf


def test_a_layer_with_a_bias_explains_those_of_its_name():
    shapes = {"b0/proj/kernel": (8, 2, 4), "b0/proj/bias": (2, 4), "b1/proj/kernel": (8, 2, 4)}
    params = {path: jnp.zeros(shape) for path, shape in shapes.items()}
    assert infer_axes(params)["b1/proj/kernel"] == MatrixAxes(0, (1, 2))
    params |= {"b2/proj/kernel": jnp.zeros((2, 4, 8)), "b2/proj/bias": jnp.zeros(8)}
    assert [leaf.path for leaf in infer_axes(params).unknown] == ["b1/proj/kernel"]


class Layers(nnx.Module):
    """Layers of which names and shapes do not tell what they are."""

    def __init__(self):
        bare = {"use_bias": False, "rngs": RNGS}
        self.a = nnx.Conv(4, 6, (3, 2), **bare)
        self.b = nnx.Conv(4, 6, (3, 2), feature_group_count=2, **bare)
        self.c = nnx.Conv(4, 4, (3, 2), feature_group_count=4, **bare)
        self.d = nnx.ConvTranspose(4, 6, (3, 2), transpose_kernel=True, **bare)
        self.e = nnx.LinearGeneral((2, 3), (4, 5), axis=(-2, -1), **bare)
        self.f = nnx.LinearGeneral(5, 7, axis=-1, batch_axis={0: 3}, **bare)
        self.g = nnx.vmap(lambda key: nnx.Linear(5, 7, use_bias=False, rngs=nnx.Rngs(key)))(
            jax.random.split(jax.random.key(0), 3)
        )
        self.i = nnx.List([nnx.Embed(9, 5, rngs=RNGS)])
        self.h = nnx.MultiHeadAttention(2, 8, 6, decode=False, **bare)
        self.head = nnx.Linear(np.int64(5), np.prod((7, 1)), **bare)


def test_layers_of_nnx_are_asked_what_they_are():
    expected = {
        "a/kernel": MatrixAxes((0, 1, 2), 3),
        "b/kernel": MatrixAxes((0, 1, 2), 3, groups=2),
        "c/kernel": None,
        "d/kernel": MatrixAxes((0, 1, 3), 2),
        "e/kernel": MatrixAxes((0, 1), (2, 3)),
        "f/kernel": MatrixAxes(1, 2),
        "g/kernel": MatrixAxes(1, 2),
        "h/key/kernel": MatrixAxes(0, (1, 2)),
        "h/out/kernel": MatrixAxes((0, 1), 2),
        "h/query/kernel": MatrixAxes(0, (1, 2)),
        "h/value/kernel": MatrixAxes(0, (1, 2)),
        "head/kernel": None,
        "i/0/embedding": None,
    }
    model = Layers()
    assert infer_axes(model) == expected
    assert infer_axes({"net": [model]}) == {f"net/0/{path}": row for path, row in expected.items()}
    assert infer_axes(nnx.state(model)).unknown  # without the layers, names alone


def test_what_is_left_out_of_a_transformer():
    """The model, its state, a plain dictionary and shapes give one answer."""
    model = DecoderTransformer(9, 4, width=16, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    inside = ["attention/query", "attention/key", "attention/value", "attention/out"]
    inside += ["mlp/expand", "mlp/contract"]
    assert whitened(params) == {f"blocks/{i}/{name}/kernel" for i in (0, 1) for name in inside}
    reasons = {leaf.path: leaf.reason for leaf in infer_axes(params).leaves if leaf.axes is None}
    biases = {f"blocks/{i}/attention/{name}/bias" for i in (0, 1) for name in ("query", "key")}
    assert biases < reasons.keys()
    assert reasons["head/kernel"].startswith("output head")
    assert reasons["token_embedding/embedding"].startswith("embedding")
    shapes = nnx.eval_shape(lambda: DecoderTransformer(9, 4, width=16, rngs=nnx.Rngs(0)))
    for same in (model, shapes, nnx.to_pure_dict(params)):
        assert infer_axes(same) == infer_axes(params)


@pytest.mark.parametrize(
    ("tree", "expected"),
    [
        ({"lm_head/kernel": (4, 5)}, OUT),
        ({"decoder/logits/kernel": (4, 5)}, OUT),
        ({"readout/weight": (4, 5)}, OUT),
        ({"output_layer/kernel": (4, 5)}, OUT),
        ({"attention/output/kernel": (2, 3, 5), "attention/query/kernel": (5, 2, 3)}, (1, 6, 5)),
        ({"lm_head/kernel": (4, 5), "query/kernel": (4, 2, 3)}, OUT),  # a model without modules
        ({"output/kernel": (4, 5), "query/kernel": (4, 2, 3)}, OUT),
        ({"to_logits/kernel": (4, 5)}, OUT),
        ({"head_proj/kernel": (4, 5)}, OUT),
        ({"output/kernel": (4, 5)}, OUT),
        ({"mlp/output/kernel": (4, 5)}, (1, 4, 5)),
        ({"heading/kernel": (4, 5)}, (1, 4, 5)),
        ({"wte": (4, 5)}, OUT),
        ({"wpe/embedding": (4, 5)}, OUT),
        ({"tok_emb/weight": (4, 5)}, OUT),
        ({"tokens/weight": (4, 5)}, OUT),
        ({"cls_token": (1, 1, 5)}, OUT),
        ({"relative_attention_bias/embedding": (4, 5)}, OUT),
        ({"pos_embedding": (1, 4, 5)}, OUT),
        ({"member/kernel": (4, 5)}, (1, 4, 5)),
        ({"norm/weight": (3, 4, 5)}, OUT),
        ({"x": (4, 5), "bias": (4, 5)}, OUT),
        ({"patch_embedding/kernel": (4, 4, 3, 5), "patch_embedding/bias": (5,)}, (1, 48, 5)),
        ({"Conv_0/kernel": (3, 3, 4, 5)}, (1, 36, 5)),
        ({"convs/1/kernel": (3, 4, 5)}, (1, 12, 5)),
        ({"depthwise_conv/kernel": (3, 3, 1, 5), "depthwise_conv/bias": (5,)}, OUT),
        ({"shortcut/kernel": (1, 1, 4, 5)}, UNKNOWN),
        ({"stack/kernel": (3, 3, 5), "stack/bias": (3, 5)}, UNKNOWN),  # layers, or heads?
        ({"stack/kernel": (3, 4, 5), "stack/bias": (3, 5)}, (3, 4, 5)),
        ({"ConvTranspose_0/kernel": (3, 3, 5, 4), "ConvTranspose_0/bias": (5,)}, UNKNOWN),
        ({"ConvLocal_0/kernel": (8, 12, 6)}, UNKNOWN),
        ({"ConvLocal_0/kernel": (8, 12, 6), "ConvLocal_0/bias": (8, 6)}, (8, 12, 6)),
        ({"GRUCell_0/hr/kernel": (4, 4)}, (1, 4, 4)),
        ({"lora/lora_a": (4, 2)}, (1, 4, 2)),
        ({"0": (7, 4, 2)}, (7, 4, 2)),  # no name: as NumPy has stacks
        ({"layer/weight": (4, 2)}, (1, 2, 4)),  # Equinox: out x in
        ({"conv/weight": (8, 1, 3), "conv/bias": (8, 1)}, (1, 3, 8)),
        ({"layers/0/weight": (3, 4, 5, 5), "layers/0/bias": (3, 1, 1)}, (1, 100, 3)),
        ({"layer/weight": (6, 4, 2), "layer/bias": (6, 4)}, (6, 2, 4)),
        ({"pos/weight": (4, 5)}, OUT),
        ({"lm_head/W": (4, 5)}, OUT),
        ({"embed/table": (4, 5)}, OUT),
        ({"multi_head/wq": (4, 5)}, (1, 4, 5)),
        ({"attn/multi_head/kernel": (4, 5)}, (1, 4, 5)),
        ({"SelfAttention_0/multi_head/kernel": (4, 5)}, (1, 4, 5)),
        ({"embedding_projection/weight": (4, 5)}, (1, 5, 4)),
        ({"mix_tokens/weight": (4, 5)}, (1, 5, 4)),
        ({"embed_tokens/weight": (4, 5)}, OUT),
        ({"word_embeddings/weight": (4, 5)}, OUT),
        ({"Embed_0/w": (4, 5)}, OUT),
        ({"cell/weight_ih": (12, 5), "cell/bias": (12,)}, (1, 5, 12)),
    ],
    ids=str,
)
def test_rules_by_name_and_bias(tree, expected):
    params = {path: jnp.zeros(shape) for path, shape in tree.items()}
    (leaf,) = (leaf for leaf in infer_axes(params).leaves if leaf.path == next(iter(tree)))
    assert (leaf.matrix, leaf.known) == ((expected, True) if expected else (None, expected is OUT))
