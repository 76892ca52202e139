"""Transformations around transformations: switch-off by a metric, blend-in by a schedule.

"Every k-th step" is not among them: `optax.conditionally_transform` does it, see
docs/guides/switch-off.md.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egd_optax.polar._oriented import working_dtype


class SwitchOffState(NamedTuple):
    """Whether the switch has happened, and the states on its two sides."""

    switched: jax.Array
    inner: Any
    after: Any


def switch_off(
    inner: optax.GradientTransformation,
    after: optax.GradientTransformation,
    *,
    threshold: float,
    latch: bool = True,
) -> optax.GradientTransformationExtraArgs:
    """Use `inner` until a metric exceeds a threshold, then `after`.

    The work of the side that is not in use is skipped (`lax.cond`; under `vmap` both sides
    run), and its state stands still. Give the metric to every update, in any loop:
    `update(gradients, state, params, metric=accuracy)`, or with Flax's `nnx.Optimizer`
    `update(model, gradients, metric=accuracy)`.

    Args:
        inner: transformation before the switch, such as `scale_by_egd()`.
        after: transformation after it, such as `optax.identity()`.
        threshold: the switch happens where metric > threshold; unit of the metric.
        latch: True: once switched, always switched. False (the paper's code): each update
            looks at its metric anew.

    Returns:
        Transformation whose `update` takes the keyword `metric`, a scalar. Its state holds
        `switched` and the states of both sides.

    Raises:
        ValueError: at update, no `metric`.

    Examples:
        >>> import optax
        >>> from egd_optax import scale_by_egd, switch_off
        >>> optimizer = optax.chain(
        ...     switch_off(scale_by_egd(), optax.identity(), threshold=0.95), optax.sgd(0.7)
        ... )

    References:
        Pasand, Dohmatob 2025, arXiv 2510.04930, Algorithm 1.
    """
    inner, after = optax.with_extra_args_support(inner), optax.with_extra_args_support(after)

    def init(params):
        return SwitchOffState(jnp.zeros((), jnp.bool_), inner.init(params), after.init(params))

    def update(updates, state, params=None, *, metric=None, **extra_args):
        if metric is None:
            raise ValueError(
                "switch_off needs the metric that it watches: call update(updates, state, params, "
                "metric=value), such as the last validation accuracy."
            )
        exceeded = jnp.reshape(jnp.asarray(metric), ()) > threshold
        switched = jnp.logical_or(state.switched, exceeded) if latch else exceeded

        def stay(updates):
            updates, new = inner.update(updates, state.inner, params, metric=metric, **extra_args)
            return updates, new, state.after

        def go_on(updates):
            updates, new = after.update(updates, state.after, params, metric=metric, **extra_args)
            return updates, state.inner, new

        updates, new_inner, new_after = jax.lax.cond(switched, go_on, stay, updates)
        return updates, SwitchOffState(switched, new_inner, new_after)

    return optax.GradientTransformationExtraArgs(init, update)


class BlendInState(NamedTuple):
    """The number of updates so far, and the inner state."""

    step: jax.Array
    inner: Any


def blend_in(
    inner: optax.GradientTransformation, weight: optax.ScalarOrSchedule
) -> optax.GradientTransformationExtraArgs:
    """Mix the gradient g with its transformation: (1 - a) g + a inner(g).

    With a schedule that rises from 0 to 1, training begins on the gradient itself and ends
    on `inner`. `inner` runs at every step, so its state is warm when it takes over.

    Args:
        inner: transformation to blend in, such as `scale_by_egd()`.
        weight: a in [0, 1], or a schedule from the number of updates so far to it, such as
            `optax.linear_schedule(0.0, 1.0, steps)`: 0 at the first update, 1 after `steps`.

    Returns:
        Transformation whose updates have the dtypes of inner's; low-precision leaves are mixed
        in float32. Where a is 1, the updates are inner's bit for bit. Integer leaves are
        inner's throughout; None and masked ones pass through. State: the count and inner's.

    Raises:
        ValueError: a number outside [0, 1].

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import blend_in
        >>> transformation = blend_in(optax.scale(3.0), optax.linear_schedule(0.0, 1.0, 2))
        >>> state = transformation.init(jnp.ones(()))
        >>> for _ in range(3):
        ...     updates, state = transformation.update(jnp.ones(()), state)
        ...     print(updates)
        1.0
        2.0
        3.0

    References:
        The inner transformation for EGD: Pasand, Dohmatob 2025, arXiv 2510.04930. The ramp is
        this package's own.
    """
    if isinstance(weight, int | float) and not 0 <= weight <= 1:
        raise ValueError(
            f"weight is inner's share and must lie in [0, 1], got {weight!r}. For a ramp over "
            "steps pass optax.linear_schedule(0.0, 1.0, steps)."
        )
    inner = optax.with_extra_args_support(inner)

    def init(params):
        return BlendInState(jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates, state, params=None, **extra_args):
        share = jnp.asarray(weight(state.step) if callable(weight) else weight)
        after, new_inner = inner.update(updates, state.inner, params, **extra_args)
        blended = jax.tree.map(functools.partial(_blend, share), updates, after)
        return blended, BlendInState(optax.safe_increment(state.step), new_inner)

    return optax.GradientTransformationExtraArgs(init, update)


def _blend(share: jax.Array, before: jax.Array, after: jax.Array) -> jax.Array:
    """Return (1 - share) before + share after, and `after` itself where share is 1."""
    dtype = jnp.result_type(after)
    if not jnp.issubdtype(dtype, jnp.inexact):
        return after
    precise = working_dtype(dtype)
    share = share.astype(precise)
    mixed = (1 - share) * jnp.asarray(before, precise) + share * jnp.asarray(after, precise)
    return jnp.where(share == 1, after, mixed.astype(dtype))
