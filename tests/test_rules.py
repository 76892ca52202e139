"""infer_axes: against the linear maps of Flax's own layers."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training.train_state import TrainState

from egd_optax import MatrixAxes, egd, infer_axes, polar, scale_by_egd
from egd_optax._matrix_view import matrix_views
from egd_optax._selection import leaf_path
from egd_optax.models import DecoderTransformer

RNGS = nnx.Rngs(0)


def normal(*shape):
    return jax.random.normal(jax.random.key(1), shape)


def views(params, axes=None):
    """The whitened leaves as stacks of matrices, by path."""
    leaves = jax.tree.leaves(params)
    return {
        view.path: np.asarray(view.to_stack(leaves[view.index]))
        for view in matrix_views(params, infer_axes(params) if axes is None else axes)
    }


def whitened(params):
    return {leaf.path for leaf in infer_axes(params).leaves if leaf.axes is not None}


def attention(**options):
    return nnx.MultiHeadAttention(2, 8, 6, out_features=10, decode=False, rngs=RNGS, **options)


def stacked(layers, inputs, outputs):
    return nnx.vmap(lambda key: nnx.Linear(inputs, outputs, rngs=nnx.Rngs(key)))(
        jax.random.split(jax.random.key(0), layers)
    )


def centre(convolution, x):
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
    "ConvTranspose": (convolution(nnx.ConvTranspose), "kernel", centre, (1, 3, 2, 4)),
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
    """Attention by bias or name; a bare (3, 8, 8) kernel could be anything, and is left out."""
    x = normal(1, 4, 8)
    params = jax.eval_shape(Scanned(use_bias).init, jax.random.key(0), x)["params"]
    matrices = {leaf.path: leaf.matrix for leaf in infer_axes(params).leaves if leaf.axes}
    names = {f"mha/{name}/kernel" for name in ("query", "key", "value", "out")}
    assert matrices == dict.fromkeys(names, (3, 8, 8))
    own = infer_axes(params, {"dense/kernel": MatrixAxes(1, 2)}).leaves[0]
    assert (own.path, own.matrix, own.why) == ("dense/kernel", (3, 8, 8), "yours")


def test_what_is_left_out_of_a_transformer():
    """The model, its state, a plain dictionary and shapes give one proposal."""
    model = DecoderTransformer(9, 4, width=16, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    inside = ["attention/query", "attention/key", "attention/value", "attention/out"]
    inside += ["mlp/expand", "mlp/contract"]
    assert whitened(params) == {f"blocks/{i}/{name}/kernel" for i in (0, 1) for name in inside}
    reasons = {leaf.path: leaf.why for leaf in infer_axes(params).leaves if leaf.axes is None}
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
        ({"lm_head/kernel": (4, 5)}, False),
        ({"decoder/logits/kernel": (4, 5)}, False),
        ({"attention/output/kernel": (2, 3, 5), "attention/query/kernel": (5, 2, 3)}, True),
        ({"heading/kernel": (4, 5)}, True),
        ({"pos_embedding": (1, 4, 5)}, False),
        ({"patch_embedding/kernel": (4, 4, 3, 5), "patch_embedding/bias": (5,)}, True),
        ({"Conv_0/kernel": (3, 3, 4, 5)}, True),
        ({"convs/1/kernel": (3, 4, 5)}, True),
        ({"depthwise_conv/kernel": (3, 3, 1, 5), "depthwise_conv/bias": (5,)}, False),
        ({"shortcut/kernel": (1, 1, 4, 5)}, False),
        ({"stack/kernel": (3, 3, 5), "stack/bias": (3, 5)}, False),  # layers, or heads?
        ({"ConvTranspose_0/kernel": (3, 3, 5, 4), "ConvTranspose_0/bias": (5,)}, False),
        ({"ConvLocal_0/kernel": (8, 12, 6)}, False),
        ({"ConvLocal_0/kernel": (8, 12, 6), "ConvLocal_0/bias": (8, 6)}, True),
        ({"GRUCell_0/hr/kernel": (4, 4)}, True),
        ({"lora/lora_a": (4, 2)}, True),
    ],
    ids=str,
)
def test_rules_by_name_and_bias(tree, expected):
    params = {path: jnp.zeros(shape) for path, shape in tree.items()}
    assert (next(iter(tree)) in whitened(params)) == expected


def assert_half_steps(before, after, axes):
    """Whitened leaves, and they alone, moved by half in every direction of their matrix."""
    moved = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), before, after)
    stacks = views(moved, axes)
    for path, leaf in jax.tree_util.tree_leaves_with_path(moved):
        if leaf_path(path) in stacks:
            lengths = np.linalg.svd(stacks[leaf_path(path)], compute_uv=False)
            np.testing.assert_allclose(lengths, 0.5, rtol=1e-4)
        else:
            np.testing.assert_allclose(leaf, 0.25, rtol=1e-4)


def half_steps(axes):
    """Half a step for the matrices, a quarter for each entry of the rest."""
    quarter = optax.stateless(lambda grads, _: jax.tree.map(lambda g: g * 0 - 0.25, grads))
    return egd(0.5, axes=axes, method=polar.SVD(), others=quarter)


def gradients(params):
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, np.float32), params)


def test_a_step_of_nnx_optimizer():
    model = DecoderTransformer(9, 4, layers=1, width=8, heads=2, rngs=nnx.Rngs(0))
    before = jax.tree.map(np.array, nnx.state(model, nnx.Param))
    axes = infer_axes(model)
    trainer = nnx.Optimizer(model, half_steps(axes), wrt=nnx.Param)
    nnx.jit(lambda trainer, model, grads: trainer.update(model, grads))(
        trainer, model, gradients(before)
    )
    assert_half_steps(before, nnx.state(model, nnx.Param), axes)


def test_a_step_of_a_linen_train_state():
    class CNN(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.BatchNorm(True)(nn.Conv(8, (2, 2), use_bias=False)(x))
            return nn.Dense(5, name="head")(nn.Dense(6)(x.reshape(len(x), -1)))

    model, x = CNN(), normal(2, 4, 4, 3)
    params = model.init(jax.random.key(0), x)["params"]
    axes = infer_axes(params, {"head": MatrixAxes(0, 1), "Dense_0": None})
    state = TrainState.create(apply_fn=model.apply, params=params, tx=half_steps(axes))
    step = jax.jit(lambda state, grads: state.apply_gradients(grads=grads))
    after = step(state, gradients(params)).params
    assert set(views(params, axes)) == {"Conv_0/kernel", "head/kernel"}
    assert_half_steps(params, after, axes)


def test_the_table_says_what_why_and_how_to_change_it():
    params = nnx.state(DecoderTransformer(9, 4, width=16, rngs=nnx.Rngs(0)), nnx.Param)
    table = str(infer_axes(params, {"1/mlp/expand": None}))
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert lines[0] == "leaf shape axes matrix why"
    assert "blocks/*/mlp/contract/kernel (2) (64, 16) 0 x 1 64 x 16 matrix: in x out" in lines
    out = "(4, 4, 16) (0, 1) x 2 16 x 16 attention: (heads head_dim) x out"
    assert f"blocks/*/attention/out/kernel (2) {out}" in lines
    assert "blocks/1/mlp/expand/kernel (16, 64) - - yours" in lines
    assert "Whitened: 11. Left out: 10. No matrices: 16." in lines
    assert lines[-1].startswith("infer_axes(params, {")


@pytest.mark.parametrize(
    ("overrides", "error", "says"),
    [
        ({"haed": None}, ValueError, r"'haed' matches no leaf .* 'head/kernel'"),
        ({"head": MatrixAxes(0, 2)}, ValueError, "do not fit leaf 'head/kernel'"),
        ({"head": (0, 1)}, TypeError, "MatrixAxes"),
        (MatrixAxes(0, 1), TypeError, "overrides must be a mapping"),
    ],
)
def test_bad_overrides_are_refused(overrides, error, says):
    with pytest.raises(error, match=says):
        infer_axes({"head": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}, overrides)


@pytest.mark.parametrize("make", [functools.partial(egd, 0.1), scale_by_egd], ids=["egd", "chain"])
def test_a_misspelt_pattern_in_axes_is_an_error(make):
    params = {"hidden": {"kernel": jnp.ones((2, 8))}, "head": {"kernel": jnp.ones((8, 3))}}
    with pytest.raises(ValueError, match="'haed' matches no leaf of these: 'head/kernel', 'hidden"):
        make(axes={"haed": None}).init(params)
    make(axes={"head": None}).init(params)
    part = optax.masked(make(axes={"head": None}), {"hidden": True, "head": False})
    part.init(params)
    make(axes=infer_axes({**params, "frozen": params["hidden"]})).init(params)
