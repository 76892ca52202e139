"""A small convolutional network and a small vision transformer, for images (28, 28, 1)."""

from collections.abc import Callable

import jax
from flax import nnx

CLASSES = 10
SIDE = 28


class CNN(nnx.Module):
    """Average the pixels to 14 x 14, then two strided convolutions, a dense layer and the head."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 16, (3, 3), strides=2, rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.dense = nnx.Linear(4 * 4 * 32, 64, rngs=rngs)
        self.head = nnx.Linear(64, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Return logits (count, 10) of images (count, 28, 28, 1)."""
        x = nnx.avg_pool(images, (2, 2), (2, 2))
        x = nnx.relu(self.second(nnx.relu(self.first(x))))
        return self.head(nnx.relu(self.dense(x.reshape(len(images), -1))))


class Block(nnx.Module):
    """Attention and a two-layer network, each after a norm and beside a residual stream."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)
        self.expand = nnx.Linear(width, 2 * width, rngs=rngs)
        self.contract = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(self, stream: jax.Array) -> jax.Array:
        stream = stream + self.attention(self.attention_norm(stream))
        return stream + self.contract(nnx.gelu(self.expand(self.mlp_norm(stream))))


class ViT(nnx.Module):
    """Sixteen patches of 7 x 7 pixels, two blocks of width 48 with four heads, their mean."""

    def __init__(self, rngs: nnx.Rngs, width: int = 48, heads: int = 4, blocks: int = 2):
        self.patches = nnx.Conv(1, width, (7, 7), strides=7, padding="VALID", rngs=rngs)
        places = jax.random.normal(rngs.params(), (1, 16, width))
        self.places = nnx.Param(0.02 * places)
        self.blocks = nnx.List([Block(width, heads, rngs) for _ in range(blocks)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, CLASSES, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Return logits (count, 10) of images (count, 28, 28, 1)."""
        stream = self.patches(images)
        stream = stream.reshape(len(images), -1, stream.shape[-1]) + self.places[...]
        for block in self.blocks:
            stream = block(stream)
        return self.head(self.norm(stream).mean(axis=1))


NETWORKS: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {"cnn": CNN, "vit": ViT}
TITLES = {"cnn": "A convolutional network", "vit": "A vision transformer"}
