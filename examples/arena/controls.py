"""Peers without a package that is kept, as small Optax transformations; every number may be traced.

Those for matrices expect matrices alone: `optimizers` hands the other leaves to AdamW.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egd_optax.polar import polar_factor

Number = jax.Array | float
TINY = 1e-30


class Moments(NamedTuple):
    """The number of updates so far, and the averages of them."""

    step: jax.Array
    averages: Any


def average(decay: Number, lookahead: Number) -> optax.GradientTransformation:
    """Average the gradients as `egd_optax.egd` does, debiased; a decay of 0 leaves them alone.

    Args:
        decay: of the moving average.
        lookahead: 1 looks one step ahead, as Nesterov's does, 0 does not.
    """

    def update(updates, state, params=None):
        del params
        count = state.step + 1
        averages = _mixed(decay, state.averages, updates)
        now, then = _filled(decay, count), _filled(decay, count + 1)
        old = (1 - lookahead) / now + lookahead * decay / then
        new = lookahead * (1 - decay) / now
        mixed = jax.tree.map(lambda m, g: old * m + new * g, averages, updates)
        return mixed, Moments(count, averages)

    return optax.GradientTransformation(_no_moments, update)


def either(
    second: Number, one: optax.GradientTransformation, other: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Apply one of two transformations that keep nothing between steps: the other if `second`."""

    def update(updates, state, params=None):
        del params
        if isinstance(second, int):
            return (other if second else one).update(updates, state)
        changed = jax.lax.cond(
            jnp.asarray(second, bool),
            lambda gradients: other.update(gradients, state)[0],
            lambda gradients: one.update(gradients, state)[0],
            updates,
        )
        return changed, state

    return optax.GradientTransformation(one.init, update)


def orthogonal_gradients() -> optax.GradientTransformation:
    """Take from each leaf's gradient its part along the weights, and give it its length back.

    References:
        Prieto et al., Grokking at the Edge of Numerical Stability, 2025, arXiv 2501.04697.
    """

    def across(gradient: jax.Array, weights: jax.Array) -> jax.Array:
        along = jnp.sum(weights * gradient) / (jnp.sum(jnp.square(weights)) + TINY)
        rest = gradient - along * weights
        return rest * (jnp.linalg.norm(gradient) / (jnp.linalg.norm(rest) + TINY))

    return optax.stateless_with_tree_map(across)


def clip_columns(longest: Number, chosen: Any) -> optax.GradientTransformation:
    """Shorten, after the step, the weights into each unit to this norm: the last of a chain.

    Args:
        longest: norm that a column of a Flax kernel (a row of PyTorch's weight) may have.
        chosen: tree of bools, the matrices to clip.

    References:
        "Clip-to-Grok": Lion without decay, rows of the decoder layers clipped to norms of 1 to 2.
    """

    def clip(update: jax.Array, weights: jax.Array) -> jax.Array:
        new = weights + update
        norms = jnp.linalg.norm(new, axis=0, keepdims=True)
        return new * jnp.minimum(1.0, longest / (norms + TINY)) - weights

    def update(updates, state, params):
        clipped = jax.tree.map(
            lambda u, w, wanted: clip(u, w) if wanted else u, updates, params, chosen
        )
        return clipped, state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def hold_norms(ratio: Number, chosen: Any) -> optax.GradientTransformation:
    """Scale, after the step, each matrix to this multiple of its initial norm: last in a chain.

    Args:
        ratio: the norm that is held, relative to the initial one.
        chosen: tree of bools, the matrices to hold.
    """

    def init(params):
        return jax.tree.map(jnp.linalg.norm, params)

    def hold(update: jax.Array, weights: jax.Array, first: jax.Array) -> jax.Array:
        new = weights + update
        return new * (ratio * first / (jnp.linalg.norm(new) + TINY)) - weights

    def update(updates, state, params):
        held = jax.tree.map(
            lambda u, w, n, wanted: hold(u, w, n) if wanted else u, updates, params, state, chosen
        )
        return held, state

    return optax.GradientTransformation(init, update)


def add_nuclear_decay(decay: Number) -> optax.GradientTransformation:
    """Add the polar factor of the weights: all singular values shrink by the same length.

    It is the subgradient of the nuclear norm, the sum of the singular values.

    References:
        Low-Rank Decay, 2026, arXiv 2606.04405, where it is approximated by a polynomial.
    """

    def add(update: jax.Array, weights: jax.Array) -> jax.Array:
        return update + decay * polar_factor(weights)

    def update(updates, state, params):
        return jax.tree.map(add, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def scale_to_whitened() -> optax.GradientTransformation:
    """Scale each matrix to the length of a whitened one, sqrt(min(m, n)): not its directions."""

    def scale(gradient: jax.Array, _) -> jax.Array:
        length = min(gradient.shape) ** 0.5
        return gradient * (length / (jnp.linalg.norm(gradient) + TINY))

    return optax.stateless_with_tree_map(scale)


def weigh_rows(power: Number, decay: Number = 0.9) -> optax.GradientTransformation:
    """Divide each row by the power of its noise, the root mean square of what is new in it.

    The noise of a row is its mean squared distance from its moving average, averaged again with the
    same decay, and counted from a thousandth of the matrix's mean upward. Whitening comes next, so
    only ratios count. Power 0 weighs nothing, 1 makes the rows equally noisy.
    """

    def init(params):
        rows = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[:, :1]), params)
        return Moments(jnp.zeros((), jnp.int32), (jax.tree.map(jnp.zeros_like, params), rows))

    def weigh(gradient: jax.Array, noise: jax.Array) -> jax.Array:
        floored = noise + 1e-3 * jnp.mean(noise)
        relative = jnp.where(floored > 0, floored / (jnp.mean(floored) + TINY), 1.0)
        return gradient * relative ** (-0.5 * power)

    def update(updates, state, params=None):
        del params
        count, (means, noise) = state.step + 1, state.averages
        filled = jnp.maximum(_filled(decay, state.step), 1 - decay)
        expected = jax.tree.map(lambda m: m / filled, means)
        new = jax.tree.map(
            lambda g, m: jnp.where(count > 1, jnp.mean((g - m) ** 2, axis=1, keepdims=True), 0.0),
            updates,
            expected,
        )
        noise = _mixed(decay, noise, new)
        weighed = jax.tree.map(weigh, updates, noise)
        return weighed, Moments(count, (_mixed(decay, means, updates), noise))

    return optax.GradientTransformation(init, update)


def shampoo(decay: Number) -> optax.GradientTransformation:
    """Precondition each matrix on both sides: L^(-1/4) G R^(-1/4).

    L and R are debiased moving averages of G G^T and G^T G, as in distributed Shampoo, so that the
    step has the length of a whitened one (Gupta's sum shrinks it like 1 / sqrt(steps)). Their roots
    are exact, by `eigh` at every step in float32, with eigenvalues counted from 1e-6 of the largest
    upward. A decay of 0 remembers nothing, and is whitening.

    References:
        Gupta, Koren, Singer, Shampoo, ICML 2018, arXiv 1802.09568. Anil et al., Scalable Second
        Order Optimization for Deep Learning, 2020, arXiv 2002.09018.
    """

    def sides(gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
        return gradient @ gradient.T, gradient.T @ gradient

    def init(params):
        return _no_moments([sides(leaf) for leaf in jax.tree.leaves(params)])

    def update(updates, state, params=None):
        del params
        leaves, structure = jax.tree.flatten(updates)
        count = state.step + 1
        averages = _mixed(decay, state.averages, [sides(leaf) for leaf in leaves])
        filled = _filled(decay, count)
        stepped = [
            _root(left / filled) @ leaf @ _root(right / filled)
            for leaf, (left, right) in zip(leaves, averages, strict=True)
        ]
        return jax.tree.unflatten(structure, stepped), Moments(count, averages)

    return optax.GradientTransformation(init, update)


def _root(matrix: jax.Array) -> jax.Array:
    """Return the inverse fourth root of a symmetric positive semidefinite matrix."""
    values, vectors = jnp.linalg.eigh(matrix)
    floored = jnp.maximum(values, 1e-6 * values[-1]) + TINY
    return (vectors * floored[None, :] ** -0.25) @ vectors.T


def _no_moments(tree: Any) -> Moments:
    return Moments(jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, tree))


def _mixed(decay: Number, old: Any, new: Any) -> Any:
    return jax.tree.map(lambda m, g: decay * m + (1 - decay) * g, old, new)


def _filled(decay: Number, count: jax.Array) -> jax.Array:
    """Return the share of an average's weights that `count` updates have filled."""
    return 1 - jnp.asarray(decay, jnp.float32) ** count.astype(jnp.float32)
