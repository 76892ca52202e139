"""The whole optimizer in one call: decay, momentum, whitening, learning rate, and the rest."""

import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax

from egd_optax import _selection as selection
from egd_optax._axes import WITNESS, Axes, check_known, warn_of_nothing
from egd_optax._checks import check_choice, check_number, check_state, check_transformation
from egd_optax._decisions import InferredAxes, LeafAxes
from egd_optax._infer_axes import infer_axes
from egd_optax._scaling import Scale
from egd_optax._transform import scale_by_egd
from egd_optax.polar._method import PolarMethod


def egd(
    learning_rate: optax.ScalarOrSchedule,
    *,
    method: PolarMethod | Callable[[jax.Array], jax.Array] | None = None,
    momentum: float | None = None,
    nesterov: bool = False,
    average: str = "before",
    weight_decay: float = 0.0,
    decay: str = "coupled",
    matrices: str | Sequence[str] | Callable[[Any], Any] | Any = None,
    axes: Axes = None,
    scale: Scale = None,
    others: optax.GradientTransformation | None = None,
    mesh_axes: str | Sequence[str] | None = None,
    mesh_cut: str | None = None,
    max_stack_size: int | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Egalitarian gradient descent: whiten the matrices, SGD for the rest.

    Which leaves are matrices, and along which axes, is guessed by names and shapes, which do for
    stacks of dense layers. For other models `axes=infer_axes(params, loss, batch)` reads it off the
    program. Biases, norms, embeddings and output heads are left to `others`.

    Args:
        learning_rate: step size or schedule. Whitened matrices move by this much in each
            direction, so it is a length, independent of the gradient's.
        method: how polar factors are computed; see `scale_by_egd`.
        momentum: decay rate of an exponential moving average, debiased. None: no momentum, the
            paper.
        nesterov: whether to look one step ahead with the momentum, as Adam's and Muon's do.
        average: "before" (Muon): the average of the gradients is whitened. "after": the gradients
            are whitened, and their average is the step, which is shorter along directions that
            change from one gradient to the next.
        weight_decay: coefficient lambda of the decay, relative to the learning rate; a number.
            `optax.inject_hyperparams` takes schedules.
        decay: "coupled" (the paper): lambda W joins the gradient before momentum and whitening, and
            is whitened with it. "decoupled": W shrinks by learning_rate * lambda beside the step.
        matrices: narrows what is whitened: a path pattern or several (see `matching`), a tree of
            bools like the parameters, or a function from the parameters to one of these.
        axes: `infer_axes(params, loss, batch)`, or what overrides the guess for the leaves that it
            names: `MatrixAxes`, or None to leave a leaf out, in all forms of `scale_by_egd`.
        scale: factor by shape; see `scale_by_egd`.
        others: transformation for the rest, with its own learning rate and decay. None: SGD with
            the same learning rate, decay and momentum.
        mesh_axes: axes of the mesh over which matrices are spread; see `scale_by_egd`.
        mesh_cut: whether the mesh cuts stacks or matrices; see `scale_by_egd`.
        max_stack_size: bound on a stack's working memory; see `scale_by_egd`.

    Returns:
        Transformation to use as an optimizer.

    Raises:
        ValueError: a number out of range; at `init`, leaves whose axes nothing explains, and unless
            leaves are masked a selection that whitens nothing, a pattern without a match; see
            `scale_by_egd`.
        TypeError: `others` is no transformation, a number is none, `nesterov` is no bool.

    Examples:
        >>> import jax.numpy as jnp
        >>> from egd_optax import egd
        >>> params, optimizer = {"kernel": 2 * jnp.eye(2), "bias": jnp.ones(2)}, egd(0.5)
        >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
        >>> print(updates["kernel"].diagonal())
        [-0.5 -0.5]
        >>> # to shorten the plateau before a small network generalizes, all examples in a batch
        >>> plateau = egd(2.7, momentum=0.35, weight_decay=5e-4)
        >>> # in a decoupled way, as Muon and AdamW
        >>> like_muon = egd(0.02, momentum=0.95, nesterov=True, weight_decay=0.1, decay="decoupled")

    References:
        Pasand, Dohmatob, Egalitarian Gradient Descent, ICLR 2026, arXiv 2510.04930.
    """
    _check_numbers(learning_rate, momentum, nesterov, weight_decay)
    check_choice("decay", decay, ("coupled", "decoupled"))
    check_choice("average", average, ("before", "after"))
    if average == "after" and momentum is None:
        raise ValueError('average="after" needs a momentum, such as momentum=0.75, got None.')
    if others is not None:
        check_transformation("others", others)
    whitening = functools.partial(
        scale_by_egd,
        method,
        scale=scale,
        mesh_axes=mesh_axes,
        mesh_cut=mesh_cut,
        max_stack_size=max_stack_size,
    )
    whitening(axes=axes)  # raises now where an argument is wrong, not at `init`
    static = isinstance(weight_decay, int | float | np.ndarray | np.generic)
    none = static and weight_decay == 0
    nothing = optax.identity()
    decaying = nothing if none else optax.add_decayed_weights(weight_decay)
    before, after = (decaying, nothing) if decay == "coupled" else (nothing, decaying)
    moving = _moving_average(momentum, nesterov)
    learn = optax.scale_by_learning_rate(learning_rate)
    rest = optax.chain(before, moving, after, learn) if others is None else others

    def decided(tree: Any, chosen: InferredAxes) -> optax.GradientTransformationExtraArgs:
        """Return the optimizer of these leaves: which are matrices is static."""
        steps = (moving, whitening(axes=chosen))[:: 1 if average == "before" else -1]
        whole = optax.chain(before, *steps, after, learn)
        labels = _labels(chosen, tree)  # in a function: a module is a tree that can be called
        return optax.partition({"matrices": whole, "others": rest}, lambda _: labels)

    def init(params):
        chosen = _chosen(params, axes, matrices)
        warn_of_nothing("egd", chosen, stacklevel=2)
        return decided(params, chosen).init(params)

    def update(updates, state, params=None, **extra_args):
        chosen = _chosen(updates, axes, matrices)
        return decided(updates, chosen).update(updates, state, params, **extra_args)

    return optax.GradientTransformationExtraArgs(init, update)


def _moving_average(momentum: float | None, nesterov: bool) -> optax.GradientTransformation:
    """Return the debiased average, which Nesterov's look-ahead mixes with the gradient again.

    State and updates keep their dtypes where the two, or an injected momentum, have others.
    """
    if momentum is None:
        return optax.identity()
    average = optax.ema(momentum, debias=False)

    def update(updates, state, params=None):
        check_state("egd's average", average.init, updates, state, dtypes=False)
        fresh = optax.tree_utils.tree_cast_like(updates, state.ema)
        _, new = average.update(fresh, state, params)
        new = new._replace(ema=optax.tree_utils.tree_cast_like(new.ema, state.ema))
        count = new.count.astype(float)
        if nesterov:
            old = _scaled(momentum / (1 - momentum ** (count + 1)), new.ema)
            fresh = _scaled((1 - momentum) / (1 - momentum**count), fresh)
            step = jax.tree.map(lambda x, y: x + y, old, fresh)
        else:
            step = _scaled(1 / (1 - momentum**count), new.ema)
        return optax.tree_utils.tree_cast_like(step, updates), new

    return optax.GradientTransformation(average.init, update)


def _scaled(factor: jax.Array, tree: Any) -> Any:
    """Return the tree times a factor, in the dtypes of its leaves."""
    return jax.tree.map(lambda leaf: factor.astype(leaf.dtype) * leaf, tree)


def _chosen(tree: Any, axes: Axes, matrices: Any) -> InferredAxes:
    """Return the decisions about all leaves; raise where they cannot be what the user wants."""
    if selection.is_placeholder(tree):
        return InferredAxes((), 0)
    selection.check_arrays(tree)
    inferred, selected = infer_axes(tree, overrides=axes), selection.selected_paths(tree, matrices)
    leaves = tuple(
        LeafAxes(leaf.path, leaf.shape, None, "not selected by `matrices`")
        if leaf.path not in selected and (leaf.axes or not leaf.known)
        else leaf
        for leaf in inferred.leaves
    )
    chosen = InferredAxes(leaves, inferred.rest)
    if witness := WITNESS.get():
        witness.planned(chosen)
    check_known(chosen, axes)
    whitened = [leaf.path for leaf in leaves if leaf.axes]
    partial = selection.is_partial(tree)  # a group of a partition may be without any
    named = [] if partial else selection.patterns_of(matrices)
    idle = [p for p in named if not any(re.search(p, path) for path in whitened)]
    asked = leaves or (inferred.rest and not (matrices is None and axes is None))
    if idle or (asked and not whitened and not partial):
        kept = [leaf for leaf in leaves if not idle or re.search(idle[0], leaf.path)]
        why = selection.listed([f"{leaf.path}: {leaf.reason}" for leaf in kept])
        raise ValueError(
            f"egd would whiten nothing {f'of matrices={idle[0]!r}' if idle else 'here'}. Left out, "
            f"of the leaves of two axes or more: {why}. To whiten one, name it in axes=, or in "
            f"overrides= of infer_axes: {{{kept[0].path if kept else 'kernel'!r}: "
            "MatrixAxes(0, 1)}; or widen `matrices`."
        )
    return chosen


def _labels(chosen: InferredAxes, tree: Any) -> Any:
    """Return the tree of "matrices" and "others"."""
    if selection.is_placeholder(tree):
        return tree
    paths = [path for path, _ in selection.leaves_with_path(tree)]
    labels = ["matrices" if chosen.get(path) else "others" for path in paths]
    return jax.tree.unflatten(jax.tree.structure(tree), labels)


def _check_numbers(learning_rate: Any, momentum: Any, nesterov: Any, weight_decay: Any) -> None:
    """Raise on what is no number or out of range; `inject_hyperparams` hands over arrays."""
    if not callable(learning_rate):
        check_number("learning_rate", learning_rate, instead=" or a schedule")
    check_number("weight_decay", weight_decay, instead=" (schedules: optax.inject_hyperparams)")
    if not isinstance(nesterov, bool | np.bool_):
        raise TypeError(f"nesterov must be True or False, got {nesterov!r}.")
    if nesterov and momentum is None:
        raise ValueError("nesterov=True needs a momentum, such as momentum=0.9, got None.")
    if momentum is not None:
        check_number("momentum", momentum, 1, " or None (schedules: optax.inject_hyperparams)")
