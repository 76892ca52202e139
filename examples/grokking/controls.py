"""Controls that whitening is compared with, as small Optax transformations and methods."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

Method = Callable[[jax.Array], jax.Array]


class Memory(NamedTuple):
    """The number of updates so far, and the memory of them."""

    step: jax.Array
    memory: Any


def grokfast_ema(decay: float = 0.98, strength: float = 2.0) -> optax.GradientTransformation:
    """Amplify slow gradients: g + strength * average, an average that starts at the first g.

    References:
        Lee, Kang, Kim, Lee, Grokfast: Accelerated Grokking by Amplifying Slow Gradients, 2024,
        arXiv 2405.20233.
    """

    def init(params):
        return Memory(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None):
        del params
        kept = jnp.float32(decay)
        average = jax.tree.map(
            lambda g, old: jnp.where(state.step == 0, g, kept * old + (1 - kept) * g),
            updates,
            state.memory,
        )
        amplified = jax.tree.map(lambda g, slow: g + strength * slow, updates, average)
        return amplified, Memory(state.step + 1, average)

    return optax.GradientTransformation(init, update)


def grokfast_ma(window: int = 100, strength: float = 5.0) -> optax.GradientTransformation:
    """Amplify slow gradients by the mean of the last `window`, from update `window` on.

    References:
        Lee, Kang, Kim, Lee 2024, as for `grokfast_ema`.
    """

    def init(params):
        slots = jax.tree.map(lambda leaf: jnp.zeros((window, *leaf.shape), leaf.dtype), params)
        return Memory(jnp.zeros((), jnp.int32), slots)

    def update(updates, state, params=None):
        del params
        slot, full = state.step % window, state.step + 1 >= window
        memory = jax.tree.map(lambda old, g: old.at[slot].set(g), state.memory, updates)
        amplified = jax.tree.map(
            lambda g, slots: g + strength * jnp.where(full, _sum(slots) / window, 0.0),
            updates,
            memory,
        )
        return amplified, Memory(state.step + 1, memory)

    return optax.GradientTransformation(init, update)


def normalize_columns(floor: float = 0.01) -> optax.GradientTransformation:
    """Divide each column (the weights into one unit) by its norm, or by `floor` if that is more.

    References:
        Pasand, Dohmatob 2025, arXiv 2510.04930, section 5.
    """
    return optax.stateless_with_tree_map(
        lambda g, _: g / jnp.maximum(jnp.linalg.norm(g, axis=0, keepdims=True), floor)
    )


def blend_in(inner: optax.GradientTransformation, steps: int) -> optax.GradientTransformation:
    """Mix (1 - a) g + a inner(g), where a rises from 0 to 1 over `steps` updates."""
    ramp = optax.linear_schedule(0.0, 1.0, steps)

    def init(params):
        return Memory(jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates, state, params=None):
        share = ramp(state.step)
        changed, memory = inner.update(updates, state.memory, params)
        mixed = jax.tree.map(lambda g, w: (1 - share) * g + share * w, updates, changed)
        return mixed, Memory(state.step + 1, memory)

    return optax.GradientTransformation(init, update)


def fractional(exponent: float) -> Method:
    """Return the method that maps U S V^T to U S^exponent V^T: 1 is SGD, 0 is EGD."""

    def gains(s: jax.Array) -> jax.Array:
        known = s > 1e-5 * s[0]
        return jnp.where(known, jnp.where(known, s, 1) ** exponent, 0)

    return _spectral(gains)


def floored(floor: float) -> Method:
    """Return the method of the published code, U S / max(S, floor) V^T: an absolute floor."""
    if not floor > 0:
        raise ValueError(f"floor must be positive, got {floor}; the published code has 1e-6")
    return _spectral(lambda s: s / jnp.maximum(s, floor))


def _spectral(gains: Callable[[jax.Array], jax.Array]) -> Method:
    def method(matrix: jax.Array) -> jax.Array:
        u, s, vh = jnp.linalg.svd(matrix, full_matrices=False)
        return (u * gains(s)[None, :]) @ vh

    return method


def _sum(slots: jax.Array) -> jax.Array:
    """Sum over the leading axis, one by one: on CPU far faster than XLA's sum over it."""
    return jax.lax.fori_loop(0, len(slots), lambda i, s: s + slots[i], jnp.zeros_like(slots[0]))
