"""Coefficient tables of the polynomial iteration, and the derivation of Polar Express.

A row (a, b, c) is the step p(x) = a x + b x^3 + c x^5 on every singular value.
"""

import numpy as np

from egd_optax._checks import check_at_least

Row = tuple[float, float, float]
Rows = tuple[Row, ...]


def polar_express_coefficients(
    steps: int, *, lower: float = 1e-3, safety: float = 1.01, cushion: float = 0.02407327424182761
) -> Rows:
    """Derive the rows of Polar Express: a greedy composition of minimax odd quintics.

    Each row minimizes max |1 - p(x)| over the interval that the rows before it map [lower, 1] to.

    Args:
        steps: number of rows, at least 1.
        lower: relative singular value from which the gains are to be near 1, in (0, 1).
        safety: rows but the last are those for x / safety, so that singular values up to `safety`
            do not explode under round-off. 1 for none.
        cushion: least ratio of the interval's ends that a row is optimized for; keeps early rows
            from overshooting in low precision. 0 for none: with five steps these are the rows of
            CANS (Grishina et al. 2025, arXiv 2506.10935) to four decimals.

    Returns:
        `steps` rows (a, b, c) of a x + b x^3 + c x^5, in order, as `NewtonSchulz` takes them.

    Raises:
        ValueError: an argument outside its range.

    References:
        Amsel, Persson, Musco, Gower, The Polar Express, 2025, arXiv 2505.16932.
    """
    check_at_least("steps", steps, 1)
    if not 0 < lower < 1 or not 1 <= safety < 2 or not 0 <= cushion < 1:
        raise ValueError(
            f"lower needs (0, 1), safety [1, 2), cushion [0, 1), got {lower}, {safety}, {cushion}."
        )
    rows, low, high = [], lower, 1.0
    for _ in range(steps):
        row = np.array(_minimax_quintic(max(low, cushion * high), high))
        row *= 2 / (row @ [low, low**3, low**5] + row @ [high, high**3, high**5])
        low = float(row @ [low, low**3, low**5])
        high = 2 - low
        rows.append(row)
    safe = np.array([safety, safety**3, safety**5])
    rows = [*(row / safe for row in rows[:-1]), rows[-1]]
    return tuple((float(a), float(b), float(c)) for a, b, c in rows)


def _minimax_quintic(low: float, high: float) -> Row:
    """Return the odd quintic nearest to 1 in the maximum norm on [low, high].

    Remez exchange on four points: the ends and the two inner extrema of the error.
    """
    if low > (1 - 5e-6) * high:  # the equations turn singular; the limit is Pade's
        return 15 / 8 / high, -10 / 8 / high**3, 3 / 8 / high**5
    points = np.array([low, (3 * low + high) / 4, (low + 3 * high) / 4, high])
    middle, half = (high**2 + low**2) / 2, (high**2 - low**2) / 2
    a = b = c = 0.0
    for _ in range(50):
        t = (points**2 - middle) / half  # plain powers are ill-conditioned on short intervals
        system = np.stack([points, points * t, points * t**2, [1.0, -1.0, 1.0, -1.0]], axis=1)
        constant, linear, quadratic, _ = np.linalg.solve(system, np.ones(4))
        c = quadratic / half**2
        b = linear / half - 2 * middle * c
        a = constant - middle * (b + middle * c)
        root = np.sqrt(9 * b**2 - 20 * a * c)
        inner = np.sort(np.sqrt([(-3 * b - root) / (10 * c), (-3 * b + root) / (10 * c)]))
        if np.allclose(inner, points[1:3], rtol=1e-15, atol=0):
            break
        points[1:3] = inner
    return float(a), float(b), float(c)


TABLES: dict[str, Rows] = {
    "polar_express": polar_express_coefficients(8),
    # Jordan et al., Muon, 2024: tuned, without parameters to derive them from.
    "standard": ((3.4445, -4.7750, 2.0315),) * 5,
    # You, coefficients for Muon, 2025: tuned, as Jordan's; the "dion" of Optax.
    "dion": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}
TABLES |= {"jordan": TABLES["standard"], "you": TABLES["dion"]}
