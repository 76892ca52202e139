"""What a whitening did: gains per direction, rank, condition, stable rank; and a monitor of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egd_optax._matrix_view import Axes, check_axes, matrix_views
from egd_optax._selection import by_path
from egd_optax.polar._linalg import adjoint, gram, product
from egd_optax.polar._method import as_array, check_at_least, check_rtol
from egd_optax.polar._oriented import orient, resolve_rtol
from egd_optax.polar._sharding import replicated


class PolarReport(NamedTuple):
    """Figures of a polar factor; scalars, see `polar_report`."""

    gain_min: jax.Array
    gain_max: jax.Array
    null_gain: jax.Array
    orthogonality_error: jax.Array
    rank: jax.Array
    condition: jax.Array
    stable_rank: jax.Array
    dropped_energy: jax.Array


def polar_report(matrix: jax.Array, factor: jax.Array, *, rtol: float | None = None) -> PolarReport:
    """Report how far `factor` is from the polar factor of `matrix`, direction by direction.

    With U S V^H the SVD of `matrix`, the gain of direction i is g_i = u_i^H factor v_i: 1 in the
    polar factor, sigma_i in the matrix itself. The report takes an SVD: for diagnosis, not for
    every step.

    Args:
        matrix: real or complex `(m, n)` gradient.
        factor: `(m, n)`, what a method made of it.
        rtol: rank tolerance relative to sigma_1. None: the methods' default; give
            the one that the method was given.

    Returns:
        Scalars: least and largest gain over the numerical range; `null_gain`, the spectral norm of
        the factor off that range; `orthogonality_error`, the spectral norm of Q Q^H - I for the
        factor on the range; numerical `rank`; `condition` = sigma_1 / sigma_rank; `stable_rank` =
        sum sigma^2 / sigma_1^2; `dropped_energy` of the squared Frobenius norm that lies in
        directions of gain below 1/2. NaN where the matrix is zero, or
        either is not finite.

    Raises:
        ValueError: shapes that differ or are not `(m, n)`, or `rtol` outside [0, 0.5).
        TypeError: no arrays, or integer entries.

    Examples:
        >>> import jax.numpy as jnp
        >>> from egd_optax.diagnostics import polar_report
        >>> gradient = jnp.diag(jnp.array([2.0, 1.0, 0.0]))
        >>> report = polar_report(gradient, jnp.eye(3))
        >>> float(report.condition), int(report.rank), float(report.null_gain)
        (2.0, 2, 1.0)
    """
    check_rtol(rtol)
    matrix, factor = as_array(matrix, "polar_report"), as_array(factor, "polar_report")
    if not jnp.issubdtype(matrix.dtype, jnp.inexact):
        raise TypeError(f"polar_report needs a floating-point matrix, got {matrix.dtype}.")
    if matrix.ndim != 2 or matrix.shape != factor.shape or matrix.size == 0:
        raise ValueError(
            "polar_report needs one matrix and its factor, both (m, n), got "
            f"{matrix.shape} and {factor.shape}; reshape other leaves to rows x columns."
        )
    matrix, factor = replicated(matrix), replicated(factor)
    oriented = orient(matrix)
    turned = factor if factor.shape == oriented.x.shape else factor.mT
    u, s, vh = jnp.linalg.svd(oriented.x, full_matrices=False)
    kept = s > resolve_rtol(rtol, s.dtype) * s[0]
    rows = product(adjoint(u), turned.astype(u.dtype))
    gains = jnp.real(jnp.sum(rows * jnp.conj(vh), axis=1))
    on_range = jnp.where(kept[:, None], rows, 0)
    identity = jnp.diag(kept.astype(rows.dtype))
    report = PolarReport(
        gain_min=jnp.min(jnp.where(kept, gains, jnp.inf)),
        gain_max=jnp.max(jnp.where(kept, gains, -jnp.inf)),
        null_gain=jnp.linalg.norm(jnp.where(kept[:, None], 0, rows), 2),
        orthogonality_error=jnp.linalg.norm(product(on_range, adjoint(on_range)) - identity, 2),
        **_spectral_figures(s, rtol),
        dropped_energy=jnp.sum(jnp.where(gains < 0.5, s**2, 0)) / jnp.sum(s**2),
    )
    usable = oriented.usable & jnp.all(jnp.isfinite(factor))
    return jax.tree.map(lambda x: jnp.where(usable, x.astype(s.dtype), jnp.nan), report)


class Spectrum(NamedTuple):
    """Figures of a leaf's matrices, each `(batch,)` float32; see `spectrum_monitor`."""

    norm: jax.Array
    rank: jax.Array
    condition: jax.Array
    stable_rank: jax.Array


class SpectrumMonitorState(NamedTuple):
    """Updates seen so far, and the latest figures by path of the leaf."""

    step: jax.Array
    spectra: dict[str, Spectrum]


def spectrum_monitor(
    every: int = 10, *, axes: Axes = None, rtol: float | None = None
) -> optax.GradientTransformation:
    """Keep figures of each matrix leaf's spectrum in the state and leave the updates alone.

    Chain one before the whitening to watch the gradient and one after it as the proof that it ran:
    there the condition is 1 and the stable rank is the rank. Read them with `read_spectra`.

    Args:
        every: number of updates from one measurement to the next; the others cost nothing.
        axes: which axes of a leaf make the matrix; see `scale_by_egd`.
        rtol: rank tolerance relative to sigma_1. None: the methods' default.

    Returns:
        Transformation whose state holds a `Spectrum` for each matrix leaf: Frobenius `norm`,
        numerical `rank`, `condition` = sigma_1 / sigma_rank and `stable_rank` = sum sigma^2 /
        sigma_1^2. They come from the eigenvalues of the Gram matrix, cheap enough to leave on
        (every ten steps two to four per cent of the modular run's time with one BLAS thread on
        CPU; with more, whose idle threads slow down what follows, a third to a half of a run's with
        `Halley`) but blind below 1.4e-3 sigma_1 in float32: rank and condition count what lies above.
        The monitor after an exact whitening shows the true rank, and `polar_report` sees all.
        Before the first update and for zero gradients the norm is 0 and the rest NaN.

    Raises:
        ValueError: `every` below 1; see `scale_by_egd` for `axes`.

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

    def init(params):
        nothing = {view.path: _empty(view.batch) for view in matrix_views(params, axes)}
        return SpectrumMonitorState(jnp.zeros((), jnp.int32), by_path(params, nothing))

    def measure(leaves, views):
        one = jax.vmap(lambda matrix: _spectrum(matrix, rtol))
        return {view.path: one(view.to_stack(replicated(leaves[view.index]))) for view in views}

    def update(updates, state, params=None):
        del params
        leaves, views = jax.tree.leaves(updates), matrix_views(updates, axes)
        spectra = jax.lax.cond(
            state.step % every == 0,
            lambda leaves: measure(leaves, views),
            lambda leaves: state.spectra,
            leaves,
        )
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
    return [{path: _bare(figures) for path, figures in node.spectra.items()} for node in found]


def _bare(figures: Spectrum) -> Spectrum:
    """Return the figures as arrays: nnx keeps a variable around each."""
    return Spectrum(*jax.tree.leaves(figures))


# Eigenvalues of a Gram matrix have errors of a few eps sigma_1^2.
_GRAM_RESOLUTION = 4.0


def _empty(batch: int) -> Spectrum:
    values = {"norm": 0.0, "rank": jnp.nan, "condition": jnp.nan, "stable_rank": jnp.nan}
    # An array each: one buffer in several places could not be donated.
    return Spectrum(**{name: jnp.full(batch, value, "float32") for name, value in values.items()})


def _spectrum(matrix: jax.Array, rtol: float | None) -> Spectrum:
    oriented = orient(matrix)
    square = jnp.linalg.eigvalsh(gram(oriented.x))[::-1]
    s = jnp.sqrt(jnp.maximum(square, jnp.zeros_like(square)))
    resolution = _GRAM_RESOLUTION * float(jnp.finfo(s.dtype).eps) ** 0.5
    figures = {
        name: jnp.where(oriented.usable, value.astype(jnp.float32), jnp.nan)
        for name, value in _spectral_figures(
            s, max(resolve_rtol(rtol, s.dtype), resolution)
        ).items()
    }
    largest = jnp.max(jnp.abs(matrix)).astype(jnp.float32)  # squares of 1e-30 or 1e30 do not fit
    unit = jnp.max(jnp.abs(oriented.x)).astype(jnp.float32)
    norm = jnp.linalg.norm(oriented.x).astype(jnp.float32) / unit * largest
    return Spectrum(norm=norm, **figures)


def _spectral_figures(s: jax.Array, rtol: float | None) -> dict[str, jax.Array]:
    """Return rank, condition and stable rank of descending singular values `s`."""
    rank = jnp.sum(s > resolve_rtol(rtol, s.dtype) * s[0])
    return {
        "rank": rank,
        "condition": s[0] / s[jnp.maximum(rank - 1, 0)],
        "stable_rank": jnp.sum((s / s[0]) ** 2),
    }
