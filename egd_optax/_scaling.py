"""Scale factors for whitened updates: factor(m, n) rules, each with its source."""

import math
from collections.abc import Callable

Scale = str | Callable[[int, int], float] | None


RULES: dict[str, Callable[[int, int], float]] = {
    # sqrt(max(1, fan_out / fan_in)): Muon's width rule (Jordan et al. 2024).
    "muon": lambda m, n: math.sqrt(max(1.0, n / m)),
    # AdamW's update size (Liu et al. 2025, arXiv 2502.16982).
    "consistent_rms": lambda m, n: 0.2 * math.sqrt(max(m, n)),
}


def check_scale(scale: Scale) -> None:
    """Raise ValueError unless `scale` is None, a rule's name or a function (m, n) -> factor."""
    if not (scale is None or callable(scale) or scale in RULES):
        raise ValueError(
            f"scale must be None, one of {', '.join(RULES)}, or a function (m, n) -> factor, "
            f"got {scale!r}."
        )


def scale_factor(scale: Scale, m: int, n: int) -> float:
    """Return the factor for whitened m x n matrices (fan_in x fan_out): 1 for None."""
    if scale is None:
        return 1.0
    return (RULES[scale] if isinstance(scale, str) else scale)(m, n)
