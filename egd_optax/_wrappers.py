"""A transformation around transformations: switch-off by a metric."""

import numbers
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egd_optax._checks import check_transformation


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
) -> optax.GradientTransformationExtraArgs:
    """Use `inner` until a metric exceeds a threshold, then `after` for good.

    The work of the side that is not in use is skipped (`lax.cond`; under `vmap` both sides run),
    and its state stands still.

    Args:
        inner: transformation before the switch, such as `scale_by_egd()`.
        after: transformation after it, such as `optax.identity()`.
        threshold: the switch happens where metric > threshold. A metric of NaN exceeds nothing.

    Returns:
        Transformation whose `update` takes the keyword `metric`, a scalar, each time. Its updates
        have the dtypes of the gradients.

    Raises:
        TypeError: `inner` or `after` is no transformation, `threshold` no number, or NaN.
        ValueError: at update, no `metric`, or an array of several numbers.

    Examples:
        >>> import optax
        >>> from egd_optax import scale_by_egd, switch_off
        >>> until = switch_off(scale_by_egd(), optax.identity(), threshold=0.95)

    References:
        Pasand, Dohmatob 2025, arXiv 2510.04930, Algorithm 1, where the switch can go back.
    """
    check_transformation("inner", inner)
    check_transformation("after", after)
    traced = isinstance(threshold, jax.Array)  # under `optax.inject_hyperparams`
    if not traced and not (isinstance(threshold, numbers.Real) and threshold == threshold):
        raise TypeError(f"threshold must be a number such as 0.95, got {threshold!r}.")
    inner, after = optax.with_extra_args_support(inner), optax.with_extra_args_support(after)

    def init(params):
        return SwitchOffState(jnp.zeros((), jnp.bool_), inner.init(params), after.init(params))

    def update(updates, state, params=None, *, metric=None, **extra_args):
        if metric is None:
            raise ValueError(
                "switch_off needs the metric that it watches, such as a validation accuracy: "
                "update(updates, state, params, metric=value)."
            )
        metric = jnp.asarray(metric)
        if metric.size != 1:
            raise ValueError(
                f"switch_off needs one number as metric, got shape {metric.shape}; take its mean."
            )
        exceeded = jnp.reshape(metric, ()) > threshold
        switched = jnp.logical_or(state.switched, exceeded)

        def stay(given):
            updates, new = inner.update(given, state.inner, params, metric=metric, **extra_args)
            return _cast(updates, given), _cast(new, state.inner), state.after

        def go_on(given):
            updates, new = after.update(given, state.after, params, metric=metric, **extra_args)
            return _cast(updates, given), state.inner, _cast(new, state.after)

        updates, new_inner, new_after = jax.lax.cond(switched, go_on, stay, updates)
        return updates, SwitchOffState(switched, new_inner, new_after)

    return optax.GradientTransformationExtraArgs(init, update)


def _cast(tree: Any, like: Any) -> Any:
    """Return the tree in the dtypes of another: both sides of a branch must have the same."""

    def one(leaf: Any, old: Any) -> Any:
        given, kind = jnp.result_type(leaf), jnp.result_type(old)
        alike = any(
            jnp.issubdtype(given, one) and jnp.issubdtype(kind, one)
            for one in (jnp.floating, jnp.complexfloating)
        )
        return jnp.asarray(leaf, kind) if alike else leaf  # for others `lax.cond` speaks up

    return jax.tree.map(one, tree, like)
