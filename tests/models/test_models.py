"""The reference models compute what their docstrings print, from the values they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from egd_optax.models import DecoderTransformer, TwoLayerMLP

pytestmark = pytest.mark.usefixtures("quick_compilation")


def parameters(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(parameters(model)))


@pytest.mark.parametrize("out_features", [3, None])
@pytest.mark.parametrize("leading", [(5,), (2, 5), ()])
def test_mlp_is_its_formula(out_features, leading):
    model = TwoLayerMLP(6, 16, out_features, bias_scale=0.5, rngs=nnx.Rngs(1))
    inputs = np.random.default_rng(0).normal(size=(*leading, 6))
    values = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters(model))
    hidden = np.maximum(inputs @ values["hidden"]["kernel"] + values["hidden"]["bias"], 0)
    outputs = model(jnp.asarray(inputs, jnp.float32))
    np.testing.assert_allclose(outputs, hidden @ values["readout"]["kernel"], rtol=1e-5, atol=1e-5)


def test_mlp_leaf_paths_and_shapes():
    shapes = jax.tree.map(jnp.shape, parameters(TwoLayerMLP(6, 16, 3, rngs=nnx.Rngs(0))))
    assert shapes == {"hidden": {"bias": (16,), "kernel": (6, 16)}, "readout": {"kernel": (16, 3)}}
    vector = parameters(TwoLayerMLP(6, 16, None, rngs=nnx.Rngs(0)))
    assert vector["readout"]["kernel"].shape == (16,)


@pytest.mark.parametrize("out_features", [500, None])
def test_mlp_initial_scales(out_features):
    fan_in, width, bias_scale = 300, 40_000 if out_features is None else 400, 0.25
    model = TwoLayerMLP(fan_in, width, out_features, bias_scale=bias_scale, rngs=nnx.Rngs(0))
    values = parameters(model)
    expected = {
        "hidden": {"kernel": (2 / fan_in) ** 0.5, "bias": bias_scale},
        "readout": {"kernel": (2 / width) ** 0.5},
    }
    scales = jax.tree.map(lambda leaf: float(jnp.std(leaf)), values)
    # The standard deviation of n draws is off by 1 / sqrt(2 n): 3.5 % for the 400 biases; x4.
    jax.tree.map(
        lambda leaf, scale, wanted: np.testing.assert_allclose(
            scale, wanted, rtol=4 / (2 * leaf.size) ** 0.5
        ),
        values,
        scales,
        expected,
    )
    assert float(jnp.max(jnp.abs(values["hidden"]["kernel"]))) > 3.5 * (2 / fan_in) ** 0.5


def test_mlp_bias_starts_at_zero_by_default():
    assert not parameters(TwoLayerMLP(6, 16, 3, rngs=nnx.Rngs(0)))["hidden"]["bias"].any()


@pytest.mark.parametrize(("layers", "width", "heads"), [(2, 16, 4), (1, 12, 3)])
def test_transformer_parameter_count(layers, width, heads):
    vocabulary, length = 9, 5
    attention = 4 * width * width + 4 * width
    feed_forward = 8 * width * width + 5 * width
    norms = 2 * 2 * width
    embeddings = (vocabulary + length) * width
    model = nnx.eval_shape(
        lambda: DecoderTransformer(
            vocabulary, length, layers=layers, width=width, heads=heads, rngs=nnx.Rngs(0)
        )
    )
    blocks = layers * (attention + feed_forward + norms)
    assert count(model) == embeddings + blocks + 2 * width + width * vocabulary


@pytest.fixture(scope="module")
def transformer():
    return DecoderTransformer(9, 6, width=16, rngs=nnx.Rngs(0))


def test_transformer_is_causal_and_answers_at_the_last_position(transformer):
    tokens = jnp.asarray([[1, 2, 3, 4, 5, 6], [1, 2, 3, 8, 5, 6]])
    features = transformer.features(tokens)
    difference = np.max(np.abs(np.asarray(features[0] - features[1])), axis=-1)
    np.testing.assert_array_equal(difference[:3], 0.0)
    assert np.all(difference[3:] > 1e-4)
    last = transformer.head(features)[:, -1]
    np.testing.assert_allclose(transformer(tokens), last, rtol=1e-6, atol=1e-6)


def normalized(x, norm):
    centered = x - x.mean(-1, keepdims=True)
    scaled = centered / np.sqrt((centered**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * norm["scale"] + norm["bias"]


def gelu(x):
    return x / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def test_transformer_is_its_formula(transformer):
    """Pre-norm blocks: causal attention of several heads, then a tanh-GELU network."""
    tokens = np.random.default_rng(0).integers(9, size=(3, 6))
    values = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters(transformer))
    x = values["token_embedding"]["embedding"][tokens] + values["position_embedding"]["embedding"]
    for block in values["blocks"].values():
        attention, inputs = block["attention"], normalized(x, block["attention_norm"])
        query, key, value = (
            np.einsum("bld,dhe->bhle", inputs, attention[name]["kernel"])
            + attention[name]["bias"][None, :, None]
            for name in ("query", "key", "value")
        )
        scores = np.exp(query @ key.swapaxes(-1, -2) / np.sqrt(query.shape[-1]))
        scores *= np.tril(np.ones((6, 6)))
        heads = scores / scores.sum(-1, keepdims=True) @ value
        out = attention["out"]
        x = x + np.einsum("bhle,hed->bld", heads, out["kernel"]) + out["bias"]
        first, second = block["mlp"]["expand"], block["mlp"]["contract"]
        hidden = gelu(normalized(x, block["mlp_norm"]) @ first["kernel"] + first["bias"])
        x = x + hidden @ second["kernel"] + second["bias"]
    expected = normalized(x, values["norm"])[:, -1] @ values["head"]["kernel"]
    np.testing.assert_allclose(transformer(jnp.asarray(tokens)), expected, rtol=1e-4, atol=1e-4)


def test_transformer_refuses_what_does_not_fit(transformer):
    with pytest.raises(ValueError, match="multiple of heads"):
        DecoderTransformer(9, 4, width=10, heads=4, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="at most 6 tokens, got 7"):
        transformer(jnp.zeros((1, 7), jnp.int32))
