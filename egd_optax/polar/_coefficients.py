"""Coefficient tables of the polynomial iteration, and the derivation of Polar Express.

A row (a, b, c, ...) is the step p(x) = a x + b x^3 + c x^5 + ... on every singular value.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.polynomial import Chebyshev, Polynomial

from egd_optax._checks import check_at_least, is_number

Row = tuple[float, ...]
Rows = tuple[Row, ...]


def polar_express_coefficients(
    steps: int | Sequence[int],
    *,
    lower: float = 1e-3,
    safety: float = 1.01,
    cushion: float = 0.02407327424182761,
) -> Rows:
    """Derive the rows of Polar Express: a greedy composition of minimax odd polynomials.

    Each row minimizes max |1 - p(x)| over the interval that the rows before it map [lower, 1] to.

    Args:
        steps: number of quintic rows, at least 1; or the degree of each row, such as (9, 9, 13):
            odd, from 3 to 13. The terms of longer rows cancel more than float32 has digits.
        lower: relative singular value from which the gains are to be near 1, in (0, 1).
        safety: rows but the last are those for x / safety, so that singular values up to `safety`
            do not explode under round-off. 1 for none.
        cushion: least ratio of the interval's ends that a row is optimized for; keeps early rows
            from overshooting in low precision. 0 for none: with five steps these are the rows of
            CANS (Grishina et al. 2025, arXiv 2506.10935) to four decimals.

    Returns:
        A row (a, b, c, ...) of a x + b x^3 + c x^5 + ... for each step, as `NewtonSchulz` takes
        them.

    Raises:
        ValueError: an argument outside its range.

    References:
        Amsel, Persson, Musco, Gower, The Polar Express, 2025, arXiv 2505.16932.
    """
    degrees = _degrees(steps)
    numbers = all(map(is_number, (lower, safety, cushion)))
    if not (numbers and 0 < lower < 1 and 1 <= safety < 2 and 0 <= cushion < 1):
        raise ValueError(
            "lower needs (0, 1), safety [1, 2), cushion [0, 1), "
            f"got {lower!r}, {safety!r}, {cushion!r}."
        )
    rows, low, high = [], lower, 1.0
    for degree in degrees:
        row, error = _minimax(max(low, cushion * high), high, degree)
        image = row @ low ** np.arange(1, degree + 1, 2)  # the least one; 1 + error is the largest
        center = (image + 1 + error) / 2
        row, low, high = row / center, image / center, (1 + error) / center
        rows.append(row)
    safe = [row / safety ** np.arange(1, 2 * len(row), 2) for row in rows[:-1]]
    return tuple(tuple(map(float, row)) for row in (*safe, rows[-1]))


def _degrees(steps: int | Sequence[int]) -> Sequence[int]:
    if not isinstance(steps, Sequence | np.ndarray):
        check_at_least("steps", steps, 1)
        return (5,) * steps
    degrees = [int(degree) for degree in steps if degree in range(3, 14, 2)]
    if not degrees or len(degrees) < len(steps):
        raise ValueError(f"steps must be a number, or odd degrees from 3 to 13, got {steps!r}.")
    return degrees


def _minimax(low: float, high: float, degree: int) -> tuple[np.ndarray, float]:
    """Return the odd polynomial of `degree` nearest to 1 on [low, high], and its largest error.

    Remez exchange: the ends and the inner extrema of the error. Polynomials are x q(t), where t
    runs from -1 to 1 with x^2, for plain powers are ill-conditioned on short intervals.
    """
    terms = (degree + 1) // 2
    if (1 - (low / high) ** 2) ** terms < 1e-15:  # the equations turn singular; Pade's is as good
        q = sum(math.comb(2 * k, k) / 4**k * Polynomial([1, -1]) ** k for k in range(terms))
        return q.coef / high ** np.arange(1, degree + 1, 2), 0.0
    middle, half = (high**2 + low**2) / 2, (high**2 - low**2) / 2
    square = Chebyshev([middle, half])  # x^2 as a function of t
    points = (low + high) / 2 - (high - low) / 2 * np.cos(np.pi * np.arange(terms + 1) / terms)
    for _ in range(50):
        t = (points**2 - middle) / half
        basis = points[:, None] * np.polynomial.chebyshev.chebvander(t, terms - 1)
        system = np.column_stack([basis, (-1.0) ** np.arange(terms + 1)])
        *numbers, error = np.linalg.solve(system, np.ones(terms + 1))
        q = Chebyshev(numbers)
        # dp/dx = q + x dq/dt dt/dx, and dt/dx = 2 x / half
        extrema = np.asarray((q + 2 / half * square * q.deriv()).roots(), complex)
        if extrema.imag.any() or np.abs(extrema).max() > 1:  # round-off is all of the error
            break
        inner = np.sqrt(square(np.sort(extrema.real)))
        if np.allclose(inner, points[1:-1], rtol=1e-9, atol=0):  # their square counts
            break
        points[1:-1] = inner
    powers = Chebyshev(numbers, domain=[low**2, high**2]).convert(kind=Polynomial).coef
    return powers, abs(float(error))


TABLES: dict[str, Rows] = {
    "polar_express": polar_express_coefficients(8),
    # From every value on, the worst gain is no farther from 1 than that of "standard".
    "three_steps": polar_express_coefficients((9, 9, 13), lower=1.8e-3),
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
