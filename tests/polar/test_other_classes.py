"""The polynomial and the sketch classes on the zoo: whole factors, against float64."""

import dataclasses

import captured
import helpers
import matrices
import numpy as np
import pytest
import threadpoolctl
from helpers import factor as factor_on_device

from egd_optax import polar
from egd_optax.polar import _coefficients as coefficients
from egd_optax.polar._linalg import resolve_rtol

# Left out is what follows from tests/polar/test_methods.py: tall matrices are
# transposed wide ones, and a stack is its slices.
OTHERS = [case for case in matrices.zoo() if not case.tags & {"tall", "batched"}]
TABLES = ["polar_express", "dion"]  # the steepest ones; test_coefficients.py has them all
SLOW = pytest.mark.slow
WIDE = [case for case in OTHERS if "wide" in case.tags]  # sketches treat square ones alike
SIX_DIRECTIONS = [kind(6, residual="keep") for kind in (polar.Randomized, polar.SubspaceIteration)]


@pytest.fixture(autouse=True, scope="module")
def one_blas_thread():
    """The references are many small SVDs, which threads slow down, tenfold on busy cores."""
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield


def factor(matrix, method):
    return np.asarray(factor_on_device(matrix, method))


def assert_polynomial(table, matrix, actual, name):
    """Every gain is the composed polynomial's, to float32 round-off, and there is nothing else.

    Known limit, held as such: no rank tolerance, so what round-off leaves in a null direction is
    lifted by up to the polynomial's slope at zero, 1e4 for eight rows of Polar Express.
    """
    gains, s = helpers.gain_matrix(matrix, actual)
    expected = helpers.composed(coefficients.TABLES[table], s / np.linalg.norm(s))
    np.testing.assert_allclose(np.diag(gains), expected, rtol=0, atol=1e-3, err_msg=name)
    # The whole factor: round-off of some eps is amplified by up to the polynomial's slope at zero.
    u, _, vh = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    slope = np.prod([a for a, _, _ in coefficients.TABLES[table]])
    error = np.linalg.norm(actual - (u * expected) @ vh, 2)
    assert error <= 1e-3 + 20 * slope * np.finfo(np.float32).eps, name


def assert_sketch(method, matrix, name):
    """`rank` directions of length 1, or as many as there are, and what `residual` says of the rest.

    Where the spectrum is flat around the rank, which directions are leading is chance; before a gap
    they are found to 1e-2.
    """
    kept = factor(matrix, method)
    dropped = factor(matrix, dataclasses.replace(method, residual="drop"))
    for actual in (kept, dropped):
        gains, s = helpers.gain_matrix(matrix, actual)
        leading = min(method.rank, np.sum(s >= matrices.RESOLVED))
        values = np.linalg.svd(actual.astype(np.float64), compute_uv=False)
        assert np.isfinite(actual).all(), name
        assert np.diag(gains).min() >= -1e-2, name
        assert values[:leading].min() >= 1 - 1e-4, name
        if has_gap(method, s):
            np.testing.assert_allclose(np.diag(gains)[:leading], 1, rtol=0, atol=1e-2, err_msg=name)
    assert values.max() <= 1 + 1e-5, name  # of the last one, without the rest
    assert np.sum(values > 1e-2) <= method.rank, name
    assert_residual_kept(method, matrix, kept, dropped.astype(np.float64), name)


def assert_residual_kept(method, matrix, actual, dropped, name):
    """The factor without the rest, and all that it leaves out over the last value it found."""
    x = matrix.astype(np.float64) / np.abs(matrix).max()
    tall = x.shape[0] > x.shape[1]
    wide, short = (x.T, dropped.T) if tall else (x, dropped)
    u, lengths, _ = np.linalg.svd(short)
    basis = u[:, lengths > 0.5][:, : method.rank]
    found = np.linalg.svd(basis.T @ wide, compute_uv=False)
    if basis.shape[1] < method.rank or found[-1] < 10 * resolve_rtol(None, np.float32) * found[0]:
        return  # of lower rank: the rest is round-off, and a gain of the leading ones is above
    rest = (wide - basis @ (basis.T @ wide)) / found[-1]
    # Round-off of the entries, some eps sigma_1, is divided by the last value as well.
    tolerance = 1e-3 + 50 * np.finfo(np.float32).eps * found[0] / found[-1]
    expected = dropped + (rest.T if tall else rest)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance, err_msg=name)


def has_gap(method, s):
    """Whether the spectrum falls by ten behind the sketch's rank, the condition of its promise."""
    rank = method.rank
    return len(s) > rank and s[rank - 1] > 10 * s[rank] and s[rank - 1] > matrices.RESOLVED


@pytest.mark.parametrize("case", OTHERS, ids=repr)
@pytest.mark.parametrize("table", [TABLES[0], pytest.param(TABLES[1], marks=SLOW)])
def test_polynomial_class_on_the_zoo(case, table):
    actual = factor(case.matrix, polar.NewtonSchulz(table))
    if "zero" in case.tags:
        np.testing.assert_array_equal(actual, case.matrix)
    else:
        assert_polynomial(table, case.matrix, actual, case.name)


@pytest.mark.parametrize("case", WIDE, ids=repr)
@pytest.mark.parametrize(
    "method",
    [SIX_DIRECTIONS[0], pytest.param(SIX_DIRECTIONS[1], marks=SLOW)],
    ids=repr,
)
def test_sketch_class_on_the_zoo(case, method):
    if "zero" in case.tags:
        np.testing.assert_array_equal(factor(case.matrix, method), case.matrix)
    else:
        assert_sketch(method, case.matrix, case.name)


def test_the_zoo_has_gaps_for_the_sketches():
    gaps = [case for case in WIDE if case.name.startswith("gap after six")]
    assert gaps
    for case in gaps:
        assert has_gap(SIX_DIRECTIONS[0], matrices.relative_spectrum(case.matrix))


@SLOW
@pytest.mark.usefixtures("optax_promotes")
def test_captured_gradients_by_the_other_classes():
    """A square one of the transformer by all, the modular network's by the polynomials."""
    square = "transformer, attention output"
    found = captured.modular_network() | {square: captured.transformer()[square]}
    for name, matrix in found.items():
        for table in TABLES:
            assert_polynomial(table, matrix, factor(matrix, polar.NewtonSchulz(table)), name)
    for sketch in SIX_DIRECTIONS:
        assert_sketch(sketch, found[square], square)


def test_float64_is_tighter_in_the_polynomial_class_too():
    """Runs on the Gram matrix may not spend its digits: a thousand eps, 2e-13, and its slope."""
    with helpers.enable_x64(True):
        rng = np.random.default_rng(0)
        u, v = (np.linalg.qr(rng.standard_normal((n, 48)))[0] for n in (48, 160))
        spectrum = np.geomspace(1, 1e-5, 48)
        matrix = (u * spectrum) @ v.T
        rows = polar.polar_express_coefficients(12, lower=1e-6)
        gains, _ = helpers.gain_matrix(matrix, factor(matrix, polar.NewtonSchulz(rows)))
        expected = helpers.composed(rows, spectrum / np.linalg.norm(spectrum))
        np.testing.assert_allclose(np.diag(gains), expected, rtol=0, atol=1e-11)
