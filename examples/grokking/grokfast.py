"""Grokfast, the control that amplifies slow gradients: by a moving average or by a window."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egd_optax.polar._method import check_at_least
from egd_optax.polar._oriented import working_dtype


class GrokfastState(NamedTuple):
    """The number of updates so far; for each leaf its average (EMA) or last gradients (MA)."""

    step: jax.Array
    memory: Any


def grokfast_ema(decay: float = 0.98, strength: float = 2.0) -> optax.GradientTransformation:
    """Amplify slow gradients by their exponential moving average: Grokfast-EMA.

    g_t + strength h_t, where h_t = decay h_(t-1) + (1 - decay) g_t and h_0 = g_0: the average
    starts at the first gradient, as published, not at zero as in `optax.ema`. The first update
    is therefore (1 + strength) g_0. Chain it before the optimizer.

    Args:
        decay: share of the old average in the new one, in [0, 1).
        strength: factor on the average, not negative; the paper's lambda.

    Returns:
        Transformation that keeps shapes and dtypes; integer, None and masked leaves pass
        through. Its state is one copy of the parameters, in their dtypes, and a count.

    Raises:
        ValueError: `decay` or `strength` out of range.

    Examples:
        >>> import jax.numpy as jnp
        >>> from grokking.grokfast import grokfast_ema
        >>> transformation = grokfast_ema(decay=0.5, strength=2.0)
        >>> state = transformation.init(jnp.zeros(()))
        >>> first, state = transformation.update(jnp.float32(1.0), state)
        >>> second, state = transformation.update(jnp.float32(3.0), state)
        >>> print(first, second)
        3.0 7.0

    References:
        Lee, Kang, Kim, Lee, Grokfast: Accelerated Grokking by Amplifying Slow Gradients, 2024,
        arXiv 2405.20233.
    """
    if isinstance(decay, int | float) and not 0 <= decay < 1:
        raise ValueError(f"decay must lie in [0, 1), got {decay!r}; the paper has 0.98.")
    _check_strength(strength)

    def follow(leaf, memory, step):
        precise = jnp.asarray(leaf, working_dtype(memory.dtype))
        kept = jnp.asarray(decay).astype(precise.dtype)
        average = kept * memory.astype(precise.dtype) + (1 - kept) * precise
        average = jnp.where(step == 0, precise, average)
        return _amplify(leaf, strength, average), average.astype(memory.dtype)

    return _with_memory(_zeros_like, follow)


def grokfast_ma(
    window: int = 100, strength: float = 5.0, warmup: bool = True
) -> optax.GradientTransformation:
    """Amplify slow gradients by the mean of the last ones: Grokfast-MA.

    g_t + strength mean(g_(t - window + 1), ..., g_t). Chain it before the optimizer.

    Args:
        window: number of gradients, the present one included, at least 1. Under
            `optax.inject_hyperparams` name it in `static_args`.
        strength: factor on the mean, not negative; the paper's lambda.
        warmup: True (published): gradients pass as they are until the window is full, at
            update number `window`. False: from the first update on, the mean of what there is.

    Returns:
        Transformation that keeps shapes and dtypes; integer, None and masked leaves pass
        through. Its state is `window` copies of the parameters, in their dtypes, and a count
        (`grokfast_ema` has one copy). Each update reads them all, and `jit` copies them
        unless the state is donated (`donate_argnums`) or carried by `scan`.

    Raises:
        ValueError: `window` or `strength` out of range.

    Examples:
        >>> import jax.numpy as jnp
        >>> from grokking.grokfast import grokfast_ma
        >>> transformation = grokfast_ma(window=2, strength=5.0)
        >>> state = transformation.init(jnp.zeros(()))
        >>> first, state = transformation.update(jnp.float32(1.0), state)
        >>> second, state = transformation.update(jnp.float32(3.0), state)
        >>> print(first, second)
        1.0 13.0

    References:
        Lee, Kang, Kim, Lee 2024, as for `grokfast_ema`.
    """
    check_at_least("window", window, 1)
    _check_strength(strength)

    def start(leaf):
        return jnp.broadcast_to(_zeros_like(leaf), (window, *jnp.shape(leaf)))

    def follow(leaf, memory, step):
        memory = memory.at[step % window].set(jnp.asarray(leaf, memory.dtype))
        seen = jnp.minimum(step + 1, window)  # slots not yet filled hold zeros
        total = jnp.zeros_like(memory[0], dtype=working_dtype(memory.dtype))
        # One by one: on CPU, XLA's sum over the leading axis of the buffer is far slower.
        total = jax.lax.fori_loop(0, window, lambda i, s: s + memory[i].astype(s.dtype), total)
        mean = jnp.where(warmup & (seen < window), 0, total / seen.astype(total.dtype))
        return _amplify(leaf, strength, mean), memory

    return _with_memory(start, follow)


def _with_memory(start: Callable, follow: Callable) -> optax.GradientTransformation:
    """Build the transformation from `follow`: leaf, memory, step -> update, memory."""

    def init(params):
        memory = jax.tree.map(lambda leaf: start(leaf) if _is_floating(leaf) else None, params)
        return GrokfastState(jnp.zeros((), jnp.int32), memory)

    def update(updates, state, params=None):
        del params
        leaves, structure = jax.tree.flatten(updates, is_leaf=_is_none)
        memories = jax.tree.leaves(state.memory, is_leaf=_is_none)
        pairs = [
            follow(leaf, memory, state.step) if _is_floating(leaf) else (leaf, memory)
            for leaf, memory in zip(leaves, memories, strict=True)
        ]
        amplified, memory = (jax.tree.unflatten(structure, [p[i] for p in pairs]) for i in (0, 1))
        return amplified, GrokfastState(optax.safe_increment(state.step), memory)

    return optax.GradientTransformation(init, update)


def _amplify(leaf: Any, strength: Any, slow: jax.Array) -> jax.Array:
    """Return leaf + strength * slow in the leaf's dtype, added up in that of `slow`."""
    factor = jnp.asarray(strength).astype(slow.dtype)
    return (jnp.asarray(leaf, slow.dtype) + factor * slow).astype(jnp.result_type(leaf))


def _zeros_like(leaf: Any) -> jax.Array:
    return jnp.zeros_like(leaf, dtype=jnp.result_type(leaf))


def _is_none(leaf: Any) -> bool:
    return leaf is None


def _is_floating(leaf: Any) -> bool:
    return leaf is not None and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _check_strength(strength: Any) -> None:
    """Raise ValueError on a negative number; `inject_hyperparams` hands over arrays instead."""
    if isinstance(strength, int | float) and strength < 0:
        raise ValueError(f"strength must not be negative, got {strength!r}; 0 amplifies nothing.")
