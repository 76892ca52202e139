"""Two questions of whoever trains: what will be whitened, and was it?"""

import contextvars
import functools
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from egd_optax._axes import WITNESS
from egd_optax._checks import check_transformation
from egd_optax._decisions import InferredAxes, LeafAxes, aligned, matrix_text
from egd_optax._matrix_view import MatrixView
from egd_optax._selection import check_arrays, is_matrix_like, leaves_by_path, listed
from egd_optax.polar import _lapack
from egd_optax.polar._linalg import working_dtype
from egd_optax.polar._stacks import map_stack, replicated

# Singular values of a factor: the tables' gains lie in .47 to 1.21, what was dropped lies below.
_LEAST, _LARGEST = 0.4, 1.3


class LeafCheck(NamedTuple):
    """What one update did to one leaf.

    Attributes:
        axes: the decision about the leaf.
        whitened: whether all of its matrices came out with their singular values alike.
        directions: least number of whitened directions of a matrix.
        gains: least and largest singular value of the factors among these directions.
        reason: why, in words.
    """

    axes: LeafAxes
    whitened: bool
    directions: int
    gains: tuple[float, float]
    reason: str


class WhiteningCheck(dict[str, LeafCheck]):
    """A `LeafCheck` by path, for each leaf of two axes or more; prints as a table."""

    @property
    def failed(self) -> list[str]:
        """Paths of the leaves that were to be whitened and were not."""
        return [path for path, leaf in self.items() if leaf.axes.axes and not leaf.whitened]

    def __repr__(self) -> str:
        failed = self.failed
        planned = len(failed) + sum(leaf.whitened for leaf in self.values())
        rows = [("leaf", "shape", "matrix", "whitened", "why")]
        for path, leaf in sorted(self.items(), key=lambda item: item[0] not in failed):
            verdict = "NO" if path in failed else "yes" if leaf.whitened else "-"
            about = path, str(leaf.axes.shape), matrix_text(leaf.axes)
            rows.append((*about, verdict, leaf.reason))
        done = f"Whitened: {planned - len(failed)} of {planned} leaves."
        return "\n".join([done, *aligned(rows)])


def whitening_plan(optimizer: Any, params: Any) -> InferredAxes:
    """Return what an optimizer will whiten, leaf by leaf, before any training.

    Args:
        optimizer: any Optax transformation with a whitening inside, however it is wrapped
            (chained, masked, partitioned, injected); or an `nnx.Optimizer`.
        params: what its `init` gets, arrays or shapes; for an `nnx.Optimizer`, the model.

    Returns:
        `InferredAxes`, which prints as a table: the matrix of each leaf, or why it is left out.

    Raises:
        TypeError: no transformation, or a leaf that is no array.
        ValueError: what the optimizer's `init` refuses.
    """
    optimizer, params, *_ = _plain(optimizer, params, None, None)
    witness, inside = _Witness(), contextvars.copy_context()
    fresh = functools.partial(optimizer.init)  # a function that has no trace yet
    inside.run(witness.look_on, jax.eval_shape, fresh, params)
    return witness.plan_of(params)


def check_whitening(
    optimizer: Any, params: Any, gradients: Any = None, state: Any = None, **extra_args: Any
) -> WhiteningCheck:
    """Run one more update beside the training, and tell leaf by leaf whether it whitened.

    It looks at the factors themselves, before scale, learning rate and decay, and changes nothing.

    Args:
        optimizer: see `whitening_plan`; its `update` as it is, not under `jax.jit`.
        params: the parameters; for an `nnx.Optimizer`, the model.
        gradients: of the same structure. None: random ones, N(0, 1); leaves that are no real or
            complex numbers are their own.
        state: after some steps; an `nnx.Optimizer` brings its own. None: that of `init`.
        **extra_args: what else its `update` takes, such as `metric` for `switch_off`.

    Returns:
        `WhiteningCheck`, a dictionary from paths to `LeafCheck`, which prints as a table. `.failed`
        lists what was to be whitened and was not; a sketch whitens some directions only.

    Raises:
        TypeError: no transformation, or a leaf that is no array.
        ValueError: the optimizer whitens none of the parameters, or refuses them.

    Examples:
        >>> import jax.numpy as jnp
        >>> from egd_optax import diagnostics, egd
        >>> check = diagnostics.check_whitening(egd(0.1), {"kernel": jnp.ones((2, 8))})
        >>> check.failed, check["kernel"].directions
        ([], 2)
    """
    optimizer, params, gradients, state = _plain(optimizer, params, gradients, state)
    if gradients is None:
        gradients = jax.tree.map(functools.partial(_drawn, np.random.default_rng(0)), params)
    witness, inside = _Witness(), contextvars.copy_context()

    def one_update(params, gradients, state):
        first = optimizer.init(params)  # shows the plan, also where there is a state
        update = optax.with_extra_args_support(optimizer).update
        return update(gradients, first if state is None else state, params, **extra_args)

    arguments = params, gradients, state
    jax.block_until_ready(inside.run(witness.look_on, jax.jit(one_update), *arguments))
    jax.effects_barrier()
    leaves = witness.plan_of(params).leaves
    if not any(leaf.axes for leaf in leaves):
        reasons = listed([f"{leaf.path}: {leaf.reason}" for leaf in leaves])
        raise ValueError(
            f"This optimizer whitens none of these leaves: {reasons}. Only `egd` and "
            "`scale_by_egd` are seen here; name leaves in their `axes`."
        )
    return WhiteningCheck({leaf.path: witness.check_of(leaf) for leaf in leaves})


class _Witness:
    """Keeps what is decided and the singular values of the factors, by path."""

    def __init__(self) -> None:
        self._plan: dict[str, LeafAxes] = {}
        self._seen: dict[str, tuple[np.ndarray, np.ndarray]] = {}  # of gradients and factors

    def look_on(self, function: Callable, *arguments: Any) -> Any:
        """Call a function, and see what is whitened in it."""
        WITNESS.set(self)
        return function(*arguments)

    def planned(self, decided: InferredAxes) -> None:
        for leaf in decided.leaves:
            if leaf.axes is not None or leaf.path not in self._plan:
                self._plan[leaf.path] = leaf

    def whitened(self, view: MatrixView, leaf: jax.Array, factor: jax.Array) -> None:
        stacks = (view.to_stack(replicated(x)) for x in (leaf, factor))
        values = [map_stack(_singular_values, stack) for stack in stacks]
        jax.debug.callback(functools.partial(self._keep, view.path), *values)

    def _keep(self, path: str, before: jax.Array, values: jax.Array) -> None:
        self._seen[path] = np.asarray(before), np.asarray(values)

    def plan_of(self, params: Any) -> InferredAxes:
        """Return what is known of all leaves, those that no whitening was given included.

        A wrapper may have handed on a tree of its own, as `optax.lookahead` does: its paths follow.
        """
        leaves = leaves_by_path(params)
        matrices = {path: leaf.shape for path, leaf in leaves.items() if is_matrix_like(leaf)}
        rows = [
            self._plan.get(path) or LeafAxes(path, shape, None, "no whitening is given this leaf")
            for path, shape in matrices.items()
        ]
        rows += [leaf for path, leaf in self._plan.items() if path not in matrices and leaf.axes]
        return InferredAxes(rows, len(leaves) - len(matrices))

    def check_of(self, leaf: LeafAxes) -> LeafCheck:
        """Return what the update did to a leaf."""
        before, values = self._seen.get(leaf.path, (np.zeros((0, 0)),) * 2)
        kept, zero = values >= _LEAST, (before == 0).all(axis=-1)
        if leaf.axes is not None and kept.any(axis=-1).all() and not zero.any() and kept.size:
            gains = float(values[kept].min()), float(values.max())
            directions = int(kept.sum(axis=-1).min())
            counted = f"{directions} of {values.shape[-1]} directions"
            reason = f"{counted}, gains {gains[0]:.4f} to {gains[1]:.4f}"
            if same := _is_proportional(before, values):
                reason += ", as in the gradient itself"
            return LeafCheck(leaf, gains[1] <= _LARGEST and not same, directions, gains, reason)
        odd = "near zero" if np.isfinite(values).all() else "not finite"
        reason = "a gradient is zero" if zero.any() else f"a gradient or its factor is {odd}"
        if leaf.axes is None or leaf.path not in self._seen:
            reason = leaf.reason if leaf.axes is None else "did not run: is it switched off?"
        return LeafCheck(leaf, False, 0, (np.nan, np.nan), reason)


def _is_proportional(before: np.ndarray, values: np.ndarray) -> bool:
    """Return whether a matrix has its gradient's singular values, which differ, up to a scale."""
    before, values = (x / x[:, :1] for x in (before, values))
    differ = ((before > 0.05) & (before < 0.9)).any(axis=-1)
    return bool((differ & (np.abs(before - values) < 0.01).all(axis=-1)).any())


def _drawn(generator: np.random.Generator, leaf: Any) -> Any:
    """Return random entries like a leaf's; integers and keys as they are."""
    if not jnp.issubdtype(dtype := jnp.result_type(leaf), jnp.inexact):
        return leaf
    return jnp.asarray(generator.standard_normal(np.shape(leaf)), dtype)


def _singular_values(factor: jax.Array) -> jax.Array:
    wide = factor if factor.shape[0] <= factor.shape[1] else factor.mT
    return _lapack.svd(wide.astype(working_dtype(wide.dtype)))[1]


def _plain(optimizer: Any, params: Any, gradients: Any, state: Any) -> tuple[Any, Any, Any, Any]:
    """Return Optax's transformation and plain trees; an nnx.Optimizer brings its own state."""
    nnx = sys.modules.get("flax.nnx")
    if nnx is None or not isinstance(optimizer, nnx.Optimizer):
        check_transformation("optimizer", optimizer)
        check_arrays(params)
        return optimizer, params, gradients, state
    pure = getattr(nnx, "as_pure", None) or nnx.pure
    trees = (params, gradients)
    held = [None if tree is None else pure(nnx.state(tree, optimizer.wrt)) for tree in trees]
    return optimizer.tx, *held, pure(optimizer.opt_state if state is None else state)
