"""The two-layer ReLU network of the paper, for arithmetic and parity."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

# N(0, 1) * sqrt(2 / fan_in), not truncated
HE_NORMAL = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


class TwoLayerMLP(nnx.Module):
    """Compute `relu(x W1 + b1) W2`; leaves `hidden/kernel`, `hidden/bias`, `readout/kernel`.

    Args:
        in_features: length of an input.
        width: number of hidden units.
        out_features: number of outputs, or None for a scalar output from a vector readout.
        bias_scale: standard deviation of the initial hidden bias; 0 starts it at zero.
        rngs: source of the initial values; kernels are N(0, 1) * sqrt(2 / fan_in).
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        out_features: int | None,
        *,
        bias_scale: float = 0.0,
        rngs: nnx.Rngs,
    ):
        linear = functools.partial(nnx.Linear, kernel_init=HE_NORMAL, rngs=rngs)
        self.hidden = linear(in_features, width, bias_init=nnx.initializers.normal(bias_scale))
        self.readout: Any
        if out_features is None:  # a vector is never whitened
            kernel = jax.random.normal(rngs.params(), (width,), jnp.float32)
            self.readout = nnx.Dict(kernel=nnx.Param((2.0 / width) ** 0.5 * kernel))
        else:
            self.readout = linear(width, out_features, use_bias=False)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map inputs (..., in_features) to outputs (..., out_features), or (...)."""
        return nnx.relu(self.hidden(inputs)) @ self.readout.kernel[...]
