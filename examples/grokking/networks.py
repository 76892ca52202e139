"""The ReLU network of any depth, for images."""

import functools
import itertools
from collections.abc import Sequence

import jax
from flax import nnx


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
