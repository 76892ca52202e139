"""The decoder-only transformer, its loss, and text from it."""

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from egd_optax.models.transformer import NORMAL, Block
from language.config import VOCABULARY, Config

Params: TypeAlias = Any
TEMPERATURE = 0.8


class LanguageModel(nnx.Module):
    """Predict each byte of a text from those before it.

    The blocks are those of `egd_optax.models.DecoderTransformer`. Scanned, they are one block whose
    leaves have the layers in front, and which is compiled once. A tied head is the embedding's
    table, which then starts as small as a head does.

    Args:
        config: layers, width, heads, context, `scanned` and `tied`.
        rngs: source of the initial values.
    """

    def __init__(self, config: Config, rngs: nnx.Rngs):
        width = config.width
        start = nnx.initializers.normal(width**-0.5) if config.tied else NORMAL
        self.token_embedding = nnx.Embed(VOCABULARY, width, embedding_init=start, rngs=rngs)
        self.position_embedding = nnx.Embed(config.context, width, embedding_init=start, rngs=rngs)

        def block(rngs: nnx.Rngs) -> Block:
            return Block(width, config.heads, rngs=rngs)

        self.blocks: Block | nnx.List[Block]
        if config.scanned:
            self.blocks = nnx.split_rngs(splits=config.layers)(nnx.vmap(block))(rngs)
        else:
            self.blocks = nnx.List([block(rngs) for _ in range(config.layers)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        head = functools.partial(nnx.Linear, width, VOCABULARY, use_bias=False, rngs=rngs)
        self.head = None if config.tied else head()

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Map bytes (batch, length) to logits (batch, length, 256) of the byte after each."""
        mask = nnx.make_causal_mask(tokens)
        places = self.position_embedding(jnp.arange(tokens.shape[-1]))
        stream = self.token_embedding(tokens) + places[None]
        if isinstance(self.blocks, Block):
            layers = nnx.scan(
                lambda block, stream: block(stream, mask),
                in_axes=(0, nnx.Carry),
                out_axes=nnx.Carry,
            )
            stream = layers(self.blocks, stream)
        else:
            for block in self.blocks:
                stream = block(stream, mask)
        stream = self.norm(stream)
        return self.token_embedding.attend(stream) if self.head is None else self.head(stream)


class Network:
    """The model as functions of its parameters, a tree of dicts and arrays.

    Args:
        config: what it is made of.
    """

    def __init__(self, config: Config):
        self.config = config
        self.graph, state = nnx.split(nnx.eval_shape(lambda: LanguageModel(config, nnx.Rngs(0))))
        self.shapes: Params = nnx.to_pure_dict(state)

    def init(self, seed: int | jax.Array) -> Params:
        """Return initial parameters."""
        model = LanguageModel(self.config, nnx.Rngs(jax.random.key(seed)))
        return nnx.to_pure_dict(nnx.state(model))

    def logits(self, params: Params, tokens: jax.Array) -> jax.Array:
        """Return the logits, computed in the config's dtype."""
        cast = jax.tree.map(lambda leaf: leaf.astype(self.config.dtype), params)
        return nnx.merge(self.graph, cast)(tokens)

    def loss(self, params: Params, tokens: jax.Array) -> jax.Array:
        """Return the mean cross-entropy of windows (batch, context + 1), in nats a byte."""
        logits = self.logits(params, tokens[:, :-1]).astype(jnp.float32)
        targets = tokens[:, 1:]
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    def continued(self, params: Params, text: np.ndarray, count: int, seed: int) -> bytes:
        """Return so many bytes after a text as long as the context, drawn one by one."""

        def step(window: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
            logits = self.logits(params, window[None])[0, -1].astype(jnp.float32)
            new = jax.random.categorical(key, logits / TEMPERATURE)
            return jnp.append(window[1:], new.astype(window.dtype)), new

        keys = jax.random.split(jax.random.key(seed), count)
        _, drawn = jax.jit(functools.partial(jax.lax.scan, step))(jnp.asarray(text), keys)
        return np.asarray(drawn, np.uint8).tobytes()
