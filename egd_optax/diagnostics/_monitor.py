"""Figures of each leaf's spectrum, kept in an optimizer's state."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egd_optax._axes import Axes, check_axes, literal_axes
from egd_optax._checks import check_at_least, check_rtol, check_state
from egd_optax._matrix_view import matrix_views
from egd_optax._selection import by_path
from egd_optax.diagnostics._report import spectral_figures
from egd_optax.polar import _lapack
from egd_optax.polar._dtypes import resolve_rtol
from egd_optax.polar._linalg import gram
from egd_optax.polar._oriented import orient
from egd_optax.polar._sharding import replicated
from egd_optax.polar._stacks import map_stack


class Spectrum(NamedTuple):
    """Figures of a leaf's matrices, each `(batch,)` float32; see `spectrum_monitor`."""

    norm: jax.Array
    rank: jax.Array
    condition: jax.Array
    stable_rank: jax.Array


_NOTHING = (0.0, jnp.nan, jnp.nan, jnp.nan)


class SpectrumMonitorState(NamedTuple):
    """Updates seen so far, and the latest figures by path of the leaf."""

    step: jax.Array
    spectra: dict[str, Spectrum]


def spectrum_monitor(
    every: int = 10, *, axes: Axes = None, rtol: float | None = None
) -> optax.GradientTransformation:
    """Keep figures of each matrix leaf's spectrum in the state and leave the updates alone.

    Chain one before the whitening to watch the gradient, and one right after it: there the
    condition is 1 and the stable rank is the rank. Around `egd` a decoupled decay and a learning
    rate come in between; `check_whitening` looks inside. Read the figures with `read_spectra`.

    Args:
        every: number of updates from one measurement to the next; the others cost nothing.
        axes: which axes of a leaf make the matrix; see `scale_by_egd`.
        rtol: rank tolerance relative to sigma_1; see `polar_report`.

    Returns:
        Transformation whose state holds a `Spectrum` for each leaf: Frobenius `norm`; `rank`,
        `condition` and `stable_rank` as in `polar_report`, from the Gram matrix, which is blind
        below 1.4e-3 sigma_1 in float32. Before the first update and for zero gradients the norm is
        0 and the rest NaN.

    Raises:
        ValueError: `every` below 1; see `scale_by_egd` for `axes`; at `update`, a state made for
            other leaves.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import diagnostics, scale_by_egd
        >>> monitor = diagnostics.spectrum_monitor()
        >>> optimizer = optax.chain(monitor, scale_by_egd(), monitor)
        >>> gradients = {"kernel": jnp.diag(jnp.array([4.0, 2.0]))}
        >>> _, state = optimizer.update(gradients, optimizer.init(gradients))
        >>> [figures["kernel"].condition.item() for figures in diagnostics.read_spectra(state)]
        [2.0, 1.0]
    """
    check_at_least("every", every, 1)
    check_axes(axes)
    check_rtol(rtol)
    one = functools.partial(_spectrum, rtol=rtol)

    def init(params):
        views = matrix_views(params, literal_axes(params, axes))
        # An array for each figure: one buffer in several places could not be donated.
        nothing = {
            view.path: Spectrum(*(jnp.full(view.batch, x, "float32") for x in _NOTHING))
            for view in views
        }
        return SpectrumMonitorState(jnp.zeros((), jnp.int32), by_path(params, nothing))

    def update(updates, state, params=None):
        del params
        check_state("spectrum_monitor", init, updates, state)

        def measure(leaves):
            views = matrix_views(updates, literal_axes(updates, axes))
            stacks = {view.path: view.to_stack(replicated(leaves[view.index])) for view in views}
            return {path: map_stack(one, stack) for path, stack in stacks.items()}

        due, leaves = state.step % every == 0, jax.tree.leaves(updates)
        spectra = jax.lax.cond(due, measure, lambda _: state.spectra, leaves)
        return updates, SpectrumMonitorState(optax.safe_increment(state.step), spectra)

    return optax.GradientTransformation(init, update)


def read_spectra(state: Any) -> list[dict[str, Spectrum]]:
    """Return the figures of all spectrum monitors within an optimizer's state, in chain order.

    Args:
        state: any optimizer state: chained, masked, partitioned, injected.

    Returns:
        A dictionary from the leaf's path to its `Spectrum`, of arrays, for each monitor; empty
        without one. Pass the state itself: of an `nnx.Optimizer`, its `opt_state`.
    """

    def is_monitor(node):
        return isinstance(node, SpectrumMonitorState)

    found = filter(is_monitor, jax.tree.leaves(state, is_leaf=is_monitor))
    # Plain arrays: nnx keeps a variable around each.
    return [{path: Spectrum(*jax.tree.leaves(x)) for path, x in m.spectra.items()} for m in found]


def _spectrum(matrix: jax.Array, rtol: float | None) -> Spectrum:
    oriented = orient(matrix)
    square = _lapack.eigvalsh(gram(oriented.x))[::-1]
    s = jnp.sqrt(jnp.maximum(square, jnp.zeros_like(square)))
    # Eigenvalues of a Gram matrix have errors of a few eps sigma_1^2.
    least = max(resolve_rtol(rtol, matrix.dtype), 4 * float(jnp.finfo(s.dtype).eps) ** 0.5)
    figures = jax.tree.map(lambda x: x.astype("float32"), spectral_figures(s, least))
    figures = {name: jnp.where(oriented.usable, x, jnp.nan) for name, x in figures.items()}
    largest, unit = (jnp.max(jnp.abs(x)).astype("float32") for x in (matrix, oriented.x))
    norm = jnp.linalg.norm(oriented.x).astype("float32") / unit  # squares of 1e30 do not fit
    return Spectrum(norm=norm * largest, **figures)
