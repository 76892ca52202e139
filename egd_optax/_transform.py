"""Gradients in, whitened gradients out: the whole data flow."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import optax

from egd_optax._axes import WITNESS, Axes, check_axes, literal_axes, warn_of_nothing
from egd_optax._buckets import plan_buckets, tied
from egd_optax._checks import check_at_least, check_state
from egd_optax._decisions import InferredAxes
from egd_optax._matrix_view import matrix_views
from egd_optax._mesh import check_spread, spread_of
from egd_optax._scaling import Scale, scale_rule
from egd_optax._selection import by_path
from egd_optax.polar._method import PolarMethod, Stateless
from egd_optax.polar._stacks import as_method, init_stack


class ScaleByEGDState(NamedTuple):
    """The method's state for each whitened leaf, by path; nothing for stateless methods."""

    method_states: dict[str, Any]


def scale_by_egd(
    method: PolarMethod | Callable[[jax.Array], jax.Array] | None = None,
    *,
    axes: Axes = None,
    scale: Scale = None,
    mesh_axes: str | Sequence[str] | None = None,
    mesh_cut: str | None = None,
    max_stack_size: int | None = None,
) -> optax.GradientTransformation:
    """Replace each matrix gradient G = U S V^T by its polar factor U V^T.

    All directions of a matrix then learn at the same speed. No learning rate: compose with
    `optax.chain`. Weight decay added before this transformation is whitened with the gradient
    (the paper's recipe), after it it is decoupled.

    Args:
        method: how polar factors are computed, such as `polar.SVD()`, or a function from
            `(m, n)` to `(m, n)`. None: `polar.Auto()`, exact on every backend.
        axes: which axes of a leaf make the matrix. None: those of the leaves of two axes, and an
            error for leaves of more. A `MatrixAxes`: for all leaves of two axes or more. A mapping
            from paths to `MatrixAxes`, or to None for leaves to pass through: a key that is the
            whole path of a leaf or subtree names it, any other is a pattern (`re.search`), and the
            last match wins. A tree of such values like the parameters, or a prefix of it. Or a
            function to one of these, such as `infer_axes`, from the parameters at `init` and from
            the gradients, which may have lost their layers, at `update`: `infer_axes(model)` keeps
            them. Optax's `MuonDimensionNumbers` is taken wherever `MatrixAxes` is.
        scale: factor on whitened leaves of m rows (fan-in) and n columns (fan-out). None: 1, the
            paper. "muon": sqrt(max(1, n / m)), Muon's. "consistent_rms": .2 sqrt(max(m, n)),
            AdamW's update size. Or a function (m, n) -> factor, finite and not negative, which
            `optax.inject_hyperparams` needs in its `static_args`.
        mesh_axes: axes of the mesh of `jax.set_mesh` over which matrices are spread: each device
            gets its share of them whole, whitens them once, and sends them back. None: under
            explicit sharding, the axes that cut a leaf; else the compiler decides. (): it decides
            in any case, which `vmap` and derivatives of the update need. Axes that cut rows or
            columns are crossed in any case; one that cuts a batch axis, experts say, is not.
        mesh_cut: "stack": the devices share the stack's matrices. "matrix": they share each
            matrix, cut along its longer side, and add up its small products. None: "matrix" where
            each device then has less to do, which takes few long matrices, or where one matrix
            has more than 2**30 entries; never where leaves have batch axes, or where the longer
            side is no multiple of the devices. Where no axes are named or used it has no effect.
        max_stack_size: most entries of one stack of equal matrices, a bound on its working memory;
            several stacks may be at work at once. A leaf is never divided: one that is larger by
            itself, such as scanned layers, is a stack alone. None: 2**26, 256 MiB in float32. On a
            mesh a stack has room for a matrix a device.

    Returns:
        Transformation whose updates have the shapes, dtypes and shardings of the gradients.
        Leaves that are 0-D, 1-D, empty, integer, None or masked pass through; low-precision
        leaves are whitened in float32. A matrix with a NaN or Inf becomes non-finite alone. Under
        `jit` with automatic sharding and without `mesh_axes`, leaves of one shape and several
        layouts may come back in one layout; `max_stack_size=1` keeps them apart.

    Raises:
        TypeError: something that is not a method or not axes.
        ValueError: a value out of range; at `init`, a leaf of more than two axes without a name in
            `axes`, axes that do not fit their leaf, or a pattern that matches no leaf; at `update`,
            a state made for other leaves, or a factor of `scale` that is negative or not finite.

    Examples:
        >>> import optax
        >>> from egd_optax import scale_by_egd
        >>> optimizer = optax.chain(optax.add_decayed_weights(1e-4), scale_by_egd(), optax.sgd(0.7))

    References:
        Pasand, Dohmatob, Egalitarian Gradient Descent, ICLR 2026, arXiv 2510.04930. Carlson et al.,
        Preconditioned Spectral Descent, NeurIPS 2015. Jordan et al., Muon, 2024.
    """
    method = as_method(method)
    check_axes(axes)
    check_spread(mesh_axes, mesh_cut)
    rule = scale_rule(scale)
    limit = 2**26 if max_stack_size is None else max_stack_size
    check_at_least("max_stack_size", limit, 1)
    stateless = isinstance(method, Stateless)

    def init(params: optax.Params) -> ScaleByEGDState:
        decided = literal_axes(params, axes)
        warn_of_nothing("scale_by_egd", decided, stacklevel=2)
        if witness := WITNESS.get():
            witness.planned(decided)
        return _first_state(method, decided, params)

    def update(updates, state, params=None):
        decided = literal_axes(updates, axes)
        fresh = functools.partial(_first_state, method, decided)
        check_state("scale_by_egd", fresh, updates, state)
        leaves, structure = jax.tree.flatten(updates)
        views = matrix_views(updates, decided, method.turns)
        before = dict.fromkeys((v.path for v in views), ()) if stateless else state.method_states
        spread = spread_of({v.path: leaves[v.index] for v in views}, mesh_axes, mesh_cut)
        whitened, after = list(leaves), {}
        for bucket in plan_buckets(views, leaves, limit, spread):
            states = [before[view.path] for view in bucket.views]
            found = bucket.whiten(method, rule, leaves, states, spread)
            for view, factor, state in zip(bucket.views, *found, strict=True):
                leaf, after[view.path] = leaves[view.index], state
                whitened[view.index] = tied(factor, leaf)
                if witness := WITNESS.get():
                    witness.whitened(view, leaf, factor / rule(view.m, view.n))
        return jax.tree.unflatten(structure, whitened), ScaleByEGDState({} if stateless else after)

    return optax.GradientTransformation(init, update)


def _first_state(method: PolarMethod, decided: InferredAxes, params: Any) -> ScaleByEGDState:
    """Return the state of leaves before their first update."""
    if isinstance(method, Stateless):
        return ScaleByEGDState({})
    leaves = jax.tree.leaves(params)
    states = {
        view.path: init_stack(method, view.stack_of(leaves[view.index]))
        for view in matrix_views(params, decided, method.turns)
    }
    return ScaleByEGDState(by_path(params, states))
