"""The small decoder-only transformer of Grokfast's experiment (arXiv 2405.20233)."""

import jax
import jax.numpy as jnp
from flax import nnx

EXPANSION = 4  # of the feed-forward network
NORMAL = nnx.initializers.normal(1.0)


class FeedForward(nnx.Module):
    """GELU network applied at each position, `expand` then `contract`."""

    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.expand = nnx.Linear(width, EXPANSION * width, rngs=rngs)
        self.contract = nnx.Linear(EXPANSION * width, width, rngs=rngs)

    def __call__(self, stream: jax.Array) -> jax.Array:
        return self.contract(nnx.gelu(self.expand(stream)))


class Block(nnx.Module):
    """Pre-norm residual block: causal self-attention, then the feed-forward network.

    Only the positions `at` are computed; attention still reads all of them.
    """

    def __init__(self, width: int, heads: int, *, rngs: nnx.Rngs):
        self.attention_norm = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.mlp_norm = nnx.LayerNorm(width, rngs=rngs)
        self.mlp = FeedForward(width, rngs=rngs)

    def __call__(self, stream: jax.Array, mask: jax.Array, at: slice = slice(None)) -> jax.Array:
        normed = self.attention_norm(stream)
        attended = self.attention(normed[:, at], normed, mask=mask[..., at, :])
        stream = stream[:, at] + attended
        return stream + self.mlp(self.mlp_norm(stream))


class DecoderTransformer(nnx.Module):
    """Predict the token that follows a sequence, from its last position.

    Args:
        vocabulary: number of tokens.
        length: longest sequence, the number of learned positions.
        layers: number of blocks.
        width: width of the residual stream; a multiple of `heads`.
        heads: attention heads of a block.
        rngs: source of the initial values.

    Raises:
        ValueError: `layers` is below 1; `width` is not a multiple of `heads`; at a call: a sequence
            is too long.
    """

    def __init__(
        self,
        vocabulary: int,
        length: int,
        *,
        layers: int = 2,
        width: int = 128,
        heads: int = 4,
        rngs: nnx.Rngs,
    ):
        if layers < 1:
            raise ValueError(f"layers must be at least 1, got {layers}; raise it")
        if width % heads:
            raise ValueError(f"width must be a multiple of heads, got {width} and {heads}")
        self.length = length
        self.token_embedding = nnx.Embed(vocabulary, width, embedding_init=NORMAL, rngs=rngs)
        self.position_embedding = nnx.Embed(length, width, embedding_init=NORMAL, rngs=rngs)
        self.blocks = nnx.List([Block(width, heads, rngs=rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, vocabulary, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Map integer tokens (batch, length) to logits (batch, vocabulary) of the next token."""
        return self.head(self.features(tokens, slice(-1, None))[:, 0])

    def features(self, tokens: jax.Array, at: slice = slice(None)) -> jax.Array:
        """Return the normalized residual stream (batch, positions, width) at the positions `at`."""
        length = tokens.shape[-1]
        if length > self.length:
            raise ValueError(f"a sequence has at most {self.length} tokens, got {length}")
        mask = nnx.make_causal_mask(tokens)
        stream = self.token_embedding(tokens) + self.position_embedding(jnp.arange(length))[None]
        *blocks, last = self.blocks
        for block in blocks:
            stream = block(stream, mask)
        return self.norm(last(stream, mask, at))  # nothing after it looks at other positions
