"""Spectra: one factor against its matrix, and a monitor of every leaf in the chain."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from egd_optax._axes import Axes, check_axes, literal_axes
from egd_optax._checks import as_array, check_at_least, check_rtol, check_state
from egd_optax._matrix_view import matrix_views
from egd_optax._selection import by_path
from egd_optax.polar import _lapack
from egd_optax.polar._linalg import adjoint, gram, product, resolve_rtol
from egd_optax.polar._oriented import orient
from egd_optax.polar._stacks import map_stack, replicated


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
    polar factor, sigma_i in the matrix itself.

    Args:
        matrix: real or complex `(m, n)` gradient.
        factor: `(m, n)`, what a method made of it.
        rtol: rank tolerance relative to sigma_1, best the method's. None: 84 eps of the matrix's
            dtype, or eps for a dtype of 16 bits, whose entries are rounded by that much.

    Returns:
        Scalars: least and largest gain over the numerical range; `null_gain`, the spectral norm of
        the factor off that range; `orthogonality_error`, the spectral norm of Q Q^H - I for the
        factor on it; numerical `rank`; `condition` = sigma_1 / sigma_rank; `stable_rank` = sum
        sigma^2 / sigma_1^2; `dropped_energy`, the share of the squared Frobenius norm in directions
        of gain below 1/2. NaN where the matrix is zero, or either is not finite.

    Raises:
        ValueError: shapes that differ or are not `(m, n)`, or `rtol` outside [0, 0.5).
        TypeError: no arrays, or integer entries.

    Examples:
        >>> import jax.numpy as jnp
        >>> from egd_optax.diagnostics import polar_report
        >>> report = polar_report(jnp.diag(jnp.array([2.0, 1.0, 0.0])), jnp.eye(3))
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
    oriented, factor = orient(replicated(matrix)), replicated(factor)
    turned = factor if factor.shape == oriented.x.shape else factor.mT
    u, s, vh = _lapack.svd(oriented.x)
    least = resolve_rtol(rtol, matrix.dtype)
    kept = s > least * s[0]
    rows = product(adjoint(u), turned.astype(u.dtype))
    gains = jnp.real(jnp.sum(rows * jnp.conj(vh), axis=1))
    on_range = jnp.where(kept[:, None], rows, 0)
    identity = jnp.diag(kept.astype(rows.dtype))
    report = PolarReport(
        gain_min=jnp.min(jnp.where(kept, gains, jnp.inf)),
        gain_max=jnp.max(jnp.where(kept, gains, -jnp.inf)),
        null_gain=_lapack.svd(jnp.where(kept[:, None], 0, rows))[1][0],
        orthogonality_error=_lapack.svd(product(on_range, adjoint(on_range)) - identity)[1][0],
        **_spectral_figures(s, least),
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
        below 1.4e-3 sigma_1 in float32. Before the first update all are 0; for zero gradients the
        norm is 0 and the rest NaN.

    Raises:
        ValueError: `every` below 1, wrong `axes`; at `update`, a state made for other leaves.

    Examples:
        >>> import jax.numpy as jnp
        >>> from egd_optax import diagnostics
        >>> gradients, monitor = [jnp.diag(jnp.array([4.0, 2.0]))], diagnostics.spectrum_monitor()
        >>> _, state = monitor.update(gradients, monitor.init(gradients))
        >>> diagnostics.read_spectra(state)[0]["0"].condition.item()
        2.0
    """
    check_at_least("every", every, 1)
    check_axes(axes)
    check_rtol(rtol)
    one = functools.partial(_spectrum, rtol=rtol)

    def init(params):
        views, figures = matrix_views(params, literal_axes(params, axes)), Spectrum._fields
        empty = {v.path: Spectrum(*(jnp.zeros(v.batch, "float32") for _ in figures)) for v in views}
        return SpectrumMonitorState(jnp.zeros((), jnp.int32), by_path(params, empty))

    def update(updates, state, params=None):
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
        state: any optimizer state, chained, masked or injected; of an `nnx.Optimizer`, `opt_state`.

    Returns:
        A dictionary from paths to `Spectrum` for each monitor; an empty list without one.
    """
    nodes = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, SpectrumMonitorState))
    found = [node.spectra for node in nodes if isinstance(node, SpectrumMonitorState)]
    # Plain arrays: nnx keeps a variable around each.
    return [{path: Spectrum(*jax.tree.leaves(x)) for path, x in each.items()} for each in found]


def _spectrum(matrix: jax.Array, rtol: float | None) -> Spectrum:
    oriented = orient(matrix)
    square = _lapack.eigvalsh(gram(oriented.x))[::-1]
    s = jnp.sqrt(jnp.maximum(square, jnp.zeros_like(square)))
    # Eigenvalues of a Gram matrix have errors of a few eps sigma_1^2.
    least = max(resolve_rtol(rtol, matrix.dtype), 4 * float(jnp.finfo(s.dtype).eps) ** 0.5)
    figures = jax.tree.map(lambda x: x.astype("float32"), _spectral_figures(s, least))
    figures = {name: jnp.where(oriented.usable, x, jnp.nan) for name, x in figures.items()}
    largest, unit = (jnp.max(jnp.abs(x)).astype("float32") for x in (matrix, oriented.x))
    norm = jnp.linalg.norm(oriented.x).astype("float32") / unit  # squares of 1e30 do not fit
    return Spectrum(norm=norm * largest, **figures)


def _spectral_figures(s: jax.Array, rtol: float) -> dict[str, jax.Array]:
    """Return rank, condition and stable rank of descending singular values `s`."""
    rank = jnp.sum(s > rtol * s[0])
    return {
        "rank": rank,
        "condition": s[0] / s[jnp.maximum(rank - 1, 0)],
        "stable_rank": jnp.sum((s / s[0]) ** 2),
    }
