"""One factor against its matrix: gains per direction, rank, condition, stable rank."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from egd_optax._checks import as_array, check_rtol
from egd_optax.polar import _lapack
from egd_optax.polar._dtypes import resolve_rtol
from egd_optax.polar._linalg import adjoint, product
from egd_optax.polar._oriented import orient
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
    polar factor, sigma_i in the matrix itself. It takes an SVD: for diagnosis, not for every step.

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
    matrix, factor = replicated(matrix), replicated(factor)
    oriented = orient(matrix)
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
        null_gain=_spectral_norm(jnp.where(kept[:, None], 0, rows)),
        orthogonality_error=_spectral_norm(product(on_range, adjoint(on_range)) - identity),
        **spectral_figures(s, least),
        dropped_energy=jnp.sum(jnp.where(gains < 0.5, s**2, 0)) / jnp.sum(s**2),
    )
    usable = oriented.usable & jnp.all(jnp.isfinite(factor))
    return jax.tree.map(lambda x: jnp.where(usable, x.astype(s.dtype), jnp.nan), report)


def _spectral_norm(x: jax.Array) -> jax.Array:
    return jnp.max(_lapack.svd(x)[1])


def spectral_figures(s: jax.Array, rtol: float) -> dict[str, jax.Array]:
    """Return rank, condition and stable rank of descending singular values `s`."""
    rank = jnp.sum(s > rtol * s[0])
    return {
        "rank": rank,
        "condition": s[0] / s[jnp.maximum(rank - 1, 0)],
        "stable_rank": jnp.sum((s / s[0]) ** 2),
    }
