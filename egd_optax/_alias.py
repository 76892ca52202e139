"""The whole optimizer in one call: decay, momentum, whitening, learning rate, and the rest."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from egd_optax._matrix_view import Axes
from egd_optax._scaling import Scale
from egd_optax._selection import is_matrix_like, matching
from egd_optax._transform import scale_by_egd
from egd_optax.polar._method import PolarMethod, check_choice


def egd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    method: PolarMethod | Callable[[jax.Array], jax.Array] | None = None,
    momentum: float | None = None,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    decay: str = "coupled",
    matrices: str | Callable[[Any], Any] | Any = None,
    axes: Axes = None,
    scale: Scale = None,
    others: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Egalitarian gradient descent: whiten the matrices, SGD for the rest.

    Args:
        learning_rate: step size or schedule. Whitened matrices move by this much in each
            direction, so it is a length, independent of the gradient's.
        method: how polar factors are computed; see `scale_by_egd`.
        momentum: decay rate of a sum of gradients that is whitened in place of the gradient. The
            whitening removes its scale, so heavy ball and moving average are the same here. None:
            no momentum, the paper.
        nesterov: whether to look one step ahead with the momentum.
        weight_decay: coefficient lambda of the decay, relative to the learning rate.
        decay: "coupled" (the paper): lambda W joins the gradient before momentum and whitening.
            "decoupled": W shrinks by learning_rate * lambda beside the whitened step. They are
            different algorithms: with EGD it is the coupled term that lowers the rank.
        matrices: the leaves to whiten: a path pattern (see `matching`), a tree of bools, or a
            function from the parameters to one. None: all leaves of two axes or more.
        axes: which axes of a leaf make the matrix; see `scale_by_egd`.
        scale: factor by shape; see `scale_by_egd`.
        others: transformation for the rest, with its own learning rate and decay. None: SGD with
            the same learning rate, momentum and decay.

    Returns:
        Transformation to use as an optimizer: `optax.apply_updates(params, updates)`.

    Raises:
        ValueError: unknown `decay`; see `scale_by_egd` and `matching`.

    Example:
        >>> import jax, jax.numpy as jnp, optax
        >>> from egd_optax import egd
        >>> params = {"kernel": 2 * jnp.eye(2), "bias": jnp.ones(2)}
        >>> optimizer = egd(0.5)
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(optax.apply_updates(params, updates)["kernel"])
        [[1.5 0. ]
         [0.  1.5]]

    References:
        Pasand, Dohmatob, Egalitarian Gradient Descent, ICLR 2026, arXiv 2510.04930.
    """
    check_choice("decay", decay, ("coupled", "decoupled"))
    decaying, nothing = optax.add_decayed_weights(weight_decay), optax.identity()
    before, after = (decaying, nothing) if decay == "coupled" else (nothing, decaying)
    remember = nothing if momentum is None else optax.trace(momentum, nesterov)
    learn = optax.scale_by_learning_rate(learning_rate)
    whiten = scale_by_egd(method, axes=axes, scale=scale)
    return optax.partition(
        {
            "matrices": optax.chain(before, remember, whiten, after, learn),
            "others": optax.chain(before, remember, after, learn) if others is None else others,
        },
        lambda params: _labels(matrices, params),
    )


def _labels(matrices: Any, params: Any) -> Any:
    """Return the tree of "matrices" and "others" that `matrices` describes."""
    if matrices is None:
        selected = jax.tree.map(is_matrix_like, params)
    elif isinstance(matrices, str):
        selected = matching(matrices)(params)
    else:
        selected = matrices(params) if callable(matrices) else matrices
    return jax.tree.map(lambda chosen: "matrices" if chosen else "others", selected)
