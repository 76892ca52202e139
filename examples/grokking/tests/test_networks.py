"""The network for images computes its formula, from uniform initial values."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from grokking.networks import MLP


def layers_of(model):
    return list(nnx.to_pure_dict(nnx.state(model, nnx.Param))["layers"].values())


@pytest.mark.parametrize("widths", [(), (16,), (16, 8, 12)])
def test_deep_mlp_is_its_formula(widths):
    model = MLP(6, widths, 3, rngs=nnx.Rngs(1))
    values = np.random.default_rng(0).normal(size=(2, 5, 6))
    outputs = model(jnp.asarray(values, jnp.float32))
    layers = layers_of(model)
    for number, layer in enumerate(layers):
        kernel, bias = (np.asarray(layer[name], np.float64) for name in ("kernel", "bias"))
        values = values @ kernel + bias
        if number < len(layers) - 1:
            values = np.maximum(values, 0)
    np.testing.assert_allclose(outputs, values, rtol=1e-5, atol=1e-5)


def test_deep_mlp_starts_from_uniform_values():
    layers = layers_of(MLP(400, (300, 200), 50, rngs=nnx.Rngs(0)))
    for layer, fan_in in zip(layers, (400, 300, 200), strict=True):
        bound = 1 / fan_in**0.5
        for leaf in layer.values():
            assert float(jnp.max(jnp.abs(leaf))) <= bound
            # The extremes of n uniform draws miss the bounds by about 2 bound / n; ten times that.
            for extreme in (float(jnp.max(leaf)), -float(jnp.min(leaf))):
                assert extreme > bound * (1 - 20 / leaf.size)
            # The mean of n draws is off by bound / sqrt(3 n), the deviation by .45 of that; x4.
            assert abs(float(jnp.mean(leaf))) < 4 * bound / (3 * leaf.size) ** 0.5
            np.testing.assert_allclose(
                float(jnp.std(leaf)), bound / 3**0.5, rtol=4 * 0.45 / leaf.size**0.5
            )
