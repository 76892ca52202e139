"""Coefficient tables are what their sources say, and keep what they promise."""

import helpers
import matrices
import numpy as np
import pytest
from helpers import factor

from egd_optax import polar
from egd_optax.polar import _coefficients as coefficients
from egd_optax.polar._newton_schulz import _runs

# Rows, and what the composed polynomial keeps to from 1e-3 to 1.01.
CANS = (
    (8.4703, -25.1081, 18.6293),
    (4.1828, -3.1087, 0.5806),
    (3.9619, -2.9541, 0.5630),
    (3.2866, -2.4647, 0.5074),
    (2.2737, -1.6447, 0.4162),
)  # Grishina, Smirnov, Rakhuba 2025, before the division by 1.01
PROMISES = {
    "polar_express": ("polar_express", (1 - 1e-6, 1 + 1e-6)),
    "standard": ("standard", (0.47, 1.21)),
    "dion": ("dion", (0.47, 1.15)),
    "three_steps": ("three_steps", (0.49, 1.17)),
    "cans": (polar.polar_express_coefficients(5, cushion=0.0), (0.86, 1.12)),
}


@pytest.mark.parametrize("name", PROMISES)
def test_polynomial_gains_lie_in_the_tables_interval(name):
    """Also above 1, where round-off may lift the norm: published rows can explode there."""
    table, (low, high) = PROMISES[name]
    method = polar.NewtonSchulz(table)
    x = np.concatenate([np.logspace(-3, 0, 100_001), np.linspace(1, 1.01, 10_001)])
    gains = helpers.composed(method.rows, x)
    assert low <= gains.min()
    assert gains.max() <= high
    spectrum = np.logspace(0, -1.5, 48)
    matrix = matrices.with_spectrum((48, 160), spectrum)
    gains, _ = helpers.gain_matrix(matrix, factor(matrix, method))
    expected = helpers.composed(method.rows, spectrum / np.linalg.norm(spectrum))
    np.testing.assert_allclose(np.diag(gains), expected, rtol=0, atol=1e-3)


def test_every_table_has_its_promise():
    assert {*coefficients.TABLES} == {*PROMISES, "jordan", "you"} - {"cans"}


# Amsel et al. 2025: lower 1e-3, cushion .02407, undivided; the limit for ever after.
PUBLISHED = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845749493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)


def test_polar_express_is_the_published_table():
    """Every row, derived again from its parameters and as shipped: for x / 1.01, the last for x."""
    derived = coefficients.polar_express_coefficients(9, safety=1.0)
    np.testing.assert_allclose(derived[0], PUBLISHED[0], rtol=1e-12)
    np.testing.assert_allclose(derived[8], PUBLISHED[7], rtol=1e-12)
    np.testing.assert_allclose(derived[:7], PUBLISHED[:7], rtol=1e-10)
    *divided, last = coefficients.TABLES["polar_express"]
    np.testing.assert_allclose(divided * 1.01 ** np.array([1, 3, 5]), PUBLISHED[:7], rtol=1e-10)
    np.testing.assert_allclose(last, PUBLISHED[7], rtol=1e-8)  # it has not quite converged


def test_without_a_cushion_five_rows_are_those_of_cans():
    derived = coefficients.polar_express_coefficients(5, lower=1e-3, safety=1.0, cushion=0.0)
    np.testing.assert_allclose(derived, CANS, rtol=0, atol=5.1e-5)


@pytest.mark.parametrize(("steps", "lower"), [(7, 1e-3), (9, 1e-4), (12, 1e-6)])
def test_generated_tables_reach_1e_6(steps, lower):
    rows = polar.polar_express_coefficients(steps, lower=lower)
    assert np.abs(helpers.composed(rows, np.logspace(np.log10(lower), 0, 10_001)) - 1).max() < 1e-6


@pytest.mark.parametrize("degree", [3, 5, 7, 9, 13])
def test_a_row_is_the_best_polynomial_of_its_degree(degree):
    """Chebyshev: the error of the best one has equal extrema of alternating signs, one a term and
    one more."""
    (row,) = polar.polar_express_coefficients((degree,), lower=0.1, safety=1.0, cushion=0.0)
    errors = helpers.composed([row], np.linspace(0.1, 1, 100_001)) - 1
    lobes = np.split(errors, np.flatnonzero(np.diff(np.sign(errors))) + 1)
    extrema = [np.abs(lobe).max() for lobe in lobes]
    assert len(row) == (degree + 1) // 2
    assert len(extrema) == len(row) + 1
    np.testing.assert_allclose(extrema, extrema[0], rtol=1e-4)  # the grid's resolution


@pytest.mark.parametrize("degree", [5, 7, 9, 11, 13])
def test_rows_of_any_interval(degree):
    """Down to round-off, where extrema are noise: finite, and no farther from 1 than cubics."""
    for lower in (*np.geomspace(1e-6, 0.99, 10), 1 - 1e-3, 1 - 1e-4, 1 - 1e-6):
        x = np.linspace(lower, 1, 1001)
        for count in (1, 3):
            ours, cubics = (
                polar.polar_express_coefficients((d,) * count, lower=lower, safety=1, cushion=0)
                for d in (degree, 3)
            )
            worst, bound = (np.abs(helpers.composed(rows, x) - 1).max() for rows in (ours, cubics))
            assert worst <= bound + 1e-9, (lower, count)  # round-off of high powers


def test_the_worst_gain_of_three_steps_is_no_farther_from_one_than_of_the_standard_five():
    """From every value on: so their factors are at least as good as Muon's."""
    x = np.geomspace(1e-6, 1, 100_001)
    worst = {
        name: np.maximum.accumulate(
            np.abs(helpers.composed(coefficients.TABLES[name], x) - 1)[::-1]
        )
        for name in ("three_steps", "standard")
    }
    assert np.all(worst["three_steps"] <= worst["standard"])


def test_one_run_serves_the_three_steps_where_matrices_are_wide():
    """Three Gram matrices would cost what the steps save."""
    rows = coefficients.TABLES["three_steps"]
    counts = [len(_runs(rows, shape, np.float32)) for shape in ((64, 112), (64, 64))]
    assert counts == [1, 3]
