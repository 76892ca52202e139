"""The dtype to compute in, and the rank tolerance of a dtype."""

import jax
import jax.numpy as jnp

# A product formed in floating point leaves round-off up to about 10 eps sigma_1, and the exact
# methods resolve directions from 2 rtol on; tests/polar/test_accuracy.py holds both.
_RTOL_IN_EPS = 84.0


def working_dtype(dtype: jax.typing.DTypeLike) -> jax.typing.DTypeLike:
    """Return the dtype to compute in: `dtype` itself, or float32 for shorter ones."""
    return dtype if jnp.finfo(dtype).bits >= 32 else jnp.float32


def resolve_rtol(rtol: float | None, dtype: jax.typing.DTypeLike) -> float:
    """Return `rtol`, or for None the default rank tolerance of a matrix stored in `dtype`.

    84 eps from 32 bits on: 1e-5 in float32, 1.9e-14 in float64. eps for shorter dtypes, where only
    the rounding of the entries counts, eps / 2 each: it moves singular values by at most about
    .85 eps / 2 sigma_1, the norm of the rounding of a matrix with a flat spectrum.
    """
    eps = float(jnp.finfo(dtype).eps)
    default = _RTOL_IN_EPS * eps if jnp.finfo(dtype).bits >= 32 else eps
    return default if rtol is None else rtol
