"""The ReLU networks of the paper: two layers for arithmetic and parity, more for images."""

import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

# N(0, 1) * sqrt(2 / fan_in), not truncated
HE_NORMAL = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


class VectorReadout(nnx.Module):
    """Map features (..., width) to (...); the kernel is a vector (width,), never whitened."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        scale = (2.0 / width) ** 0.5
        self.kernel = nnx.Param(scale * jax.random.normal(rngs.params(), (width,), jnp.float32))

    def __call__(self, features: jax.Array) -> jax.Array:
        return features @ self.kernel[...]


class TwoLayerMLP(nnx.Module):
    """Compute `relu(x W1 + b1) W2`; leaves `hidden/kernel`, `hidden/bias`, `readout/kernel`.

    Args:
        in_features: length of an input.
        width: number of hidden units.
        out_features: number of outputs, or None for a scalar output from a vector readout.
        bias_scale: standard deviation of the initial hidden bias; 0 starts it at zero.
        rngs: source of the initial values; kernels are N(0, 1) * sqrt(2 / fan_in).

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from egd_optax.models import TwoLayerMLP
        >>> TwoLayerMLP(6, 8, 3, rngs=nnx.Rngs(0))(jnp.ones((5, 6))).shape
        (5, 3)

    References:
        Pasand, Dohmatob, Egalitarian Gradient Descent, ICLR 2026, arXiv 2510.04930.
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
        self.readout = (
            VectorReadout(width, rngs=rngs)
            if out_features is None
            else linear(width, out_features, use_bias=False)
        )

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map inputs (..., in_features) to outputs (..., out_features), or (...)."""
        return self.readout(nnx.relu(self.hidden(inputs)))


class MLP(nnx.Module):
    """Compute a ReLU network of any depth; the paper's for MNIST is `MLP(784, (200, 200), 10)`.

    Leaves are `layers/<i>/kernel` and `layers/<i>/bias`. Every initial value is drawn from
    U(-1 / sqrt(fan_in), 1 / sqrt(fan_in)), biases included: the default of PyTorch's linear layer,
    of which Omnigrok's published set-up takes 8 times.

    Args:
        in_features: length of an input.
        widths: numbers of hidden units, layer by layer; none make a linear model.
        out_features: number of outputs.
        rngs: source of the initial values.

    Examples:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from egd_optax.models import MLP
        >>> MLP(64, (200, 200), 10, rngs=nnx.Rngs(0))(jnp.ones((5, 64))).shape
        (5, 10)

    References:
        Liu, Michaud, Tegmark, Omnigrok, ICLR 2023, arXiv 2210.01117.
    """

    def __init__(
        self, in_features: int, widths: Sequence[int], out_features: int, *, rngs: nnx.Rngs
    ):
        sizes = itertools.pairwise((in_features, *widths, out_features))
        self.layers = nnx.List([_uniform_linear(*pair, rngs) for pair in sizes])

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Map inputs (..., in_features) to outputs (..., out_features)."""
        *hidden, last = self.layers
        for layer in hidden:
            inputs = nnx.relu(layer(inputs))
        return last(inputs)


def _uniform_linear(fan_in: int, fan_out: int, rngs: nnx.Rngs) -> nnx.Linear:
    bound = 1 / fan_in**0.5
    uniform = functools.partial(jax.random.uniform, minval=-bound, maxval=bound)
    return nnx.Linear(fan_in, fan_out, kernel_init=uniform, bias_init=uniform, rngs=rngs)
