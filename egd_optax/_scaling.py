"""Scale factors for whitened updates: factor(m, n) rules, each with its source."""

import functools
import math
from collections.abc import Callable

import jax

from egd_optax._checks import check_number, check_static

Scale = str | Callable[[int, int], float] | None

RULES: dict[str | None, Callable[[int, int], float]] = {
    None: lambda m, n: 1.0,
    # sqrt(max(1, fan_out / fan_in)): Muon's width rule (Jordan et al. 2024).
    "muon": lambda m, n: math.sqrt(max(1.0, n / m)),
    # AdamW's update size (Liu et al. 2025, arXiv 2502.16982).
    "consistent_rms": lambda m, n: 0.2 * math.sqrt(max(m, n)),
}


def scale_rule(scale: Scale) -> Callable[[int, int], float]:
    """Return the rule for whitened m x n matrices (fan_in x fan_out), or raise."""
    check_static("scale", scale)
    if callable(scale):
        return functools.partial(_checked, scale)
    if not (scale is None or isinstance(scale, str)) or scale not in RULES:
        names = ", ".join(map(str, RULES))
        raise ValueError(f"scale must be {names} or a function (m, n) -> factor, got {scale!r}.")
    return RULES[scale]


def _checked(rule: Callable[[int, int], float], m: int, n: int) -> float:
    """Return what the rule gives, an array or a Python number, which leaves dtypes alone."""
    factor = rule(m, n)
    check_number(f"scale's factor for {m} x {n} matrices", factor)
    return factor if isinstance(factor, jax.Array) else float(factor)
