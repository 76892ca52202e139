"""The whole optimizer in one call: decay, momentum, whitening, learning rate, and the rest."""

import functools
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any

import jax
import optax

from egd_optax._infer_axes import NO_MATRIX, check_axes_used
from egd_optax._matrix_view import Axes, MatrixAxes, axes_of, check_axes, matrix_views
from egd_optax._scaling import Scale
from egd_optax._selection import is_placeholder, matching
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
    matrices: str | Sequence[str] | Callable[[Any], Any] | Any = None,
    axes: Axes = None,
    scale: Scale = None,
    others: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Egalitarian gradient descent: whiten the matrices, SGD for the rest.

    Args:
        learning_rate: step size or schedule. Whitened matrices move by this much in each
            direction, so it is a length, independent of the gradient's.
        method: how polar factors are computed; see `scale_by_egd`.
        momentum: decay rate of a heavy ball, a sum of gradients that is whitened in place of the
            gradient; the whitening removes its scale, so a moving average would do the same. The
            default `others` get the heavy ball, too. None: no momentum, the paper.
        nesterov: whether to look one step ahead with the momentum.
        weight_decay: coefficient lambda of the decay, relative to the learning rate.
        decay: "coupled" (the paper): lambda W joins the gradient before momentum and whitening.
            "decoupled": W shrinks by learning_rate * lambda beside the whitened step. They are
            different algorithms: with EGD it is the coupled term that lowers the rank.
        matrices: the leaves to whiten: a path pattern or several (see `matching`), a tree of
            bools, or a function from the parameters to one. None: all leaves of two axes or more,
            but those that `axes` gives None and, unless a pattern or function in `axes` names
            them, those that Flax calls bias, scale or embedding (the last part of the path),
            whatever their axes. What is not selected, or is no matrix, belongs to `others`.
            Under `optax.inject_hyperparams`, which takes functions for schedules, use a pattern
            or name the argument in `static_args`.
        axes: which axes of a leaf make the matrix; see `scale_by_egd`, and `infer_axes` for a
            Flax model's.
        scale: factor by shape; see `scale_by_egd`.
        others: transformation for the rest, with its own learning rate and decay. None: SGD with
            the same learning rate, momentum and decay.

    Returns:
        Transformation to use as an optimizer: `optax.apply_updates(params, updates)`.

    Raises:
        ValueError: unknown `decay`, a number out of range, `nesterov` without momentum; at
            `init`, `matrices` that select no matrix; see `scale_by_egd` and `matching`.
        TypeError: `others` is no transformation, `learning_rate` no number and no schedule; see
            `scale_by_egd`.

    Examples:
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
    _check_numbers(learning_rate, momentum, nesterov, weight_decay)
    check_axes(axes)
    if not (others is None or hasattr(others, "update")):
        raise TypeError(
            f"others must be a transformation such as optax.adam(1e-3), got {others!r}."
        )
    nothing = optax.identity()
    unused = isinstance(weight_decay, int | float) and weight_decay == 0
    decaying = nothing if unused else optax.add_decayed_weights(weight_decay)
    before, after = (decaying, nothing) if decay == "coupled" else (nothing, decaying)
    remember = nothing if momentum is None else optax.trace(momentum, nesterov)
    learn = optax.scale_by_learning_rate(learning_rate)
    given, axes = axes, _unless_named(axes) if matrices is None else axes
    whiten = scale_by_egd(method, axes=functools.partial(axes_of, axes), scale=scale)

    def labels(params):
        check_axes_used(given, params)
        return _labels(matrices, axes, params)

    return optax.partition(
        {
            "matrices": optax.chain(before, remember, whiten, after, learn),
            "others": optax.chain(before, remember, after, learn) if others is None else others,
        },
        labels,
    )


def _unless_named(axes: Axes) -> Axes:
    """Return axes that leave out biases, scales and embeddings, unless they are named."""
    if isinstance(axes, MatrixAxes):
        return {NO_MATRIX: None, "": axes}
    if axes is None or isinstance(axes, Mapping):
        return {**(axes or {}), NO_MATRIX: None}
    return axes


def _labels(matrices: Any, axes: Axes, params: Any) -> Any:
    """Return the tree of "matrices", what is selected and has a matrix view, and "others"."""
    if is_placeholder(params):
        return params
    selected = _selected(params, _mask(matrices, params))
    views = {view.index for view in matrix_views(selected, axes)}
    leaves, structure = jax.tree.flatten(params)
    if isinstance(matrices, str) and not views:
        raise ValueError(f"matrices={matrices!r} selects no leaf that is a matrix; see `matching`.")
    labels = ["matrices" if index in views else "others" for index in range(len(leaves))]
    return jax.tree.unflatten(structure, labels)


def _selected(params: Any, mask: Any) -> Any:
    """Return the parameters with 0 in place of what the mask leaves out."""
    try:
        return jax.tree.map(lambda leaf, chosen: leaf if chosen else 0, params, mask)
    except ValueError as error:
        raise ValueError(
            "matrices must be a pattern, patterns, a tree of bools like the parameters, or a "
            f"function to one (under inject_hyperparams: name it in static_args), got {mask!r}."
        ) from error


def _mask(matrices: Any, params: Any) -> Any:
    """Return the tree of bools that `matrices` describes."""
    if matrices is None:
        return jax.tree.map(lambda leaf: True, params)
    if isinstance(matrices, str):
        return matching(matrices)(params)
    if isinstance(matrices, list | tuple) and all(isinstance(item, str) for item in matrices):
        return matching(*matrices)(params)
    function = callable(matrices) and jax.tree_util.all_leaves([matrices])  # Equinox calls modules
    return matrices(params) if function else matrices


def _check_numbers(learning_rate: Any, momentum: Any, nesterov: bool, weight_decay: Any) -> None:
    """Raise on numbers out of range; `inject_hyperparams` hands over arrays instead."""
    numeric = isinstance(learning_rate, Real) or hasattr(learning_rate, "dtype")
    if not (numeric or callable(learning_rate)):
        raise TypeError(f"learning_rate must be a number or a schedule, got {learning_rate!r}.")
    if nesterov and momentum is None:
        raise ValueError("nesterov=True needs a momentum, such as momentum=0.9, got None.")
    if isinstance(momentum, int | float) and not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum!r}.")
    if isinstance(weight_decay, int | float) and weight_decay < 0:
        raise ValueError(f"weight_decay must not be negative, got {weight_decay!r}.")
