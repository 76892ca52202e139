"""The exact class: every singular direction of every matrix of the zoo, against float64."""

import captured
import helpers
import jax.numpy as jnp
import matrices
import numpy as np
import pytest
import threadpoolctl
from helpers import factor as factor_on_device
from hypothesis import given, settings
from hypothesis import strategies as st

from egd_optax import polar
from egd_optax.polar._linalg import resolve_rtol

ZOO = matrices.zoo()
# What follows from tests/polar/test_methods.py is left out: tall matrices are transposed wide ones,
# and Auto is one of these methods.
CASES = [case for case in ZOO if "tall" not in case.tags]
EXACT = [polar.SVD(), polar.Halley()]
# Promises of the class by dtype: (share of sigma_1, largest |gain - 1| above it); (share, spectral
# norm of the factor below it); no gain beyond 1 by more than `above`; orthogonality of the kept
# directions. LAPACK's SVD in the same dtype keeps them with room to spare.
PROMISE = {
    np.float32: {
        "gains": [(1e-3, 1e-5), (2e-5, 2e-3)],
        "null": (1e-6, 1e-2),
        "above": 1e-5,
        "orthogonality": 1e-4,
    },
    np.float64: {
        "gains": [(1e-6, 1e-11), (4e-14, 2e-3)],
        "null": (1.9e-15, 1e-2),
        "above": 1e-11,
        "orthogonality": 1e-4,
    },
}


@pytest.fixture(autouse=True, scope="module")
def one_blas_thread():
    """The references are many small SVDs, which threads slow down, tenfold on busy cores."""
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture(params=EXACT, ids=repr)
def method(request):
    return request.param


def factor(matrix, method):
    return np.asarray(factor_on_device(matrix, method))


def results(case, method):
    """(case, factor, gain matrix, relative spectrum) of each matrix of a case; zero gives zero."""
    for part, actual in case.slices(factor(case.matrix, method)):
        if "zero" in part.tags:
            np.testing.assert_array_equal(actual, part.matrix)
        else:
            yield part, actual, *helpers.gain_matrix(part.matrix, actual)


def assert_exact(matrix, actual, name="", rounding=0.0):
    """Hold every direction of `actual` to the promise of the matrix's precision.

    What is neither promised nor null keeps a gain within [0, 1]. `rounding` is the unit round-off
    of a factor that was shortened to 16 bits. A complex gain counts by its real part.
    """
    promise = PROMISE[np.float64 if matrix.dtype == np.float64 else np.float32]
    u, s, vh = np.linalg.svd(in_double(matrix), full_matrices=False)
    s = s / s.max()
    left, right = u.conj().T @ in_double(actual), in_double(actual) @ vh.conj().T
    each = np.real(np.diag(left @ vh.conj().T))
    noise, null = promise["null"]
    assert each.min() >= -null, f"{name}: a gain below 0"
    assert each.max() <= 1 + promise["above"] + rounding, f"{name}: a gain above 1"
    for share, bound in promise["gains"]:
        worst = np.abs(each - 1)[s >= share].max()
        assert worst <= bound + rounding, f"{name}: gains above {share:g} sigma_1"
    # Over whole rows and columns of the factor, not within the thin SVD: nothing may hide outside.
    # But directions that are not null turn into those that are by up to some eps sigma_1 / sigma_i.
    real = s >= noise
    for side, basis in ((left, vh[real]), (right.conj().T, u.conj().T[real])):
        below, kept = side[s < noise], side[s >= share]
        below = below - below @ basis.conj().T @ basis
        assert np.linalg.norm(below, 2) <= null if below.size else True, f"{name}: null directions"
        error = np.abs(kept @ kept.conj().T - np.eye(len(kept))).max()
        assert error <= promise["orthogonality"] + 2 * rounding, f"{name}: orthogonality"
    values = np.linalg.svd(in_double(actual), compute_uv=False)
    assert values.max() <= 1 + promise["orthogonality"] + 2 * rounding, f"{name}: too long"


def in_double(matrix):
    """The same numbers in double precision."""
    return matrix.astype(np.complex128 if np.iscomplexobj(matrix) else np.float64)


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_zoo(method, case):
    for part, actual, _, _ in results(case, method):
        assert_exact(part.matrix, actual, part.name)


def test_zoo_is_what_it_says():
    """A wrong ruler measures nothing: every tag, rank and condition, measured on the case itself.

    A condition is rounded with the matrix: the entries' round-off moves sigma_n by 1e-8 sigma_1.
    """
    assert len({case.name for case in ZOO}) == len(ZOO)
    truths = matrices.SHAPE_TAGS | matrices.TAGS
    assert set.union(*(case.tags for case in ZOO)) == set(truths)
    for case in ZOO:
        known = matrices.SHAPE_TAGS if case.parts else truths
        assert {tag for tag, holds in known.items() if holds(case.matrix)} == case.tags, case
        if not case.parts:
            s = matrices.relative_spectrum(case.matrix)
            assert np.sum(s > 1e-7) == case.rank, case
        if case.condition is not None:
            np.testing.assert_allclose(s[case.rank - 1], 1 / case.condition, rtol=1e-4, atol=2e-8)
    of_parts = set.union(*(part.tags for part in ZOO[-1].parts))
    assert {"tiny", "huge", "zero", "deficient", "unresolved"} <= of_parts


@pytest.mark.parametrize(
    "source",
    [
        captured.modular_network,
        pytest.param(captured.transformer, marks=pytest.mark.slow),
        pytest.param(captured.recipe, marks=pytest.mark.slow),
    ],
)
@pytest.mark.usefixtures("optax_promotes")
def test_captured_gradients(method, source):
    """Real ones: what lies below 2e-5 sigma_1 may go either way, the rest is promised."""
    for name, matrix in source().items():
        assert_exact(matrix, factor(matrix, method), name)


@pytest.mark.slow
@pytest.mark.parametrize("task", [captured.SMALL, captured.PAPER], ids=repr)
@pytest.mark.usefixtures("optax_promotes")
def test_the_default_tolerance_lies_between_directions_and_round_off_of_real_gradients(task):
    """Above 2 rtol they are kept, below rtol / 10 null; see docs/primers.md."""
    rtol = resolve_rtol(None, np.float32)
    rank = 2 * task.p - 1
    for matrix in captured.gradients(task, decay=0.0).values():
        s = matrices.relative_spectrum(matrix)
        assert s[rank - 1] >= 0.05
        assert s[rank] <= 1e-7
    for name in ("query", "key", "value", "attention output", "head"):
        s = matrices.relative_spectrum(captured.transformer()[f"transformer, {name}"])
        assert not np.any((s > rtol / 10) & (s < 2 * rtol)), name
        assert s[-1] <= rtol / 10


def test_float64_is_tighter(method):
    with helpers.enable_x64(True):
        for spectrum in (np.geomspace(1, 1e-6, 48), np.geomspace(1, 1e-13, 48)):
            rng = np.random.default_rng(0)
            u = np.linalg.qr(rng.standard_normal((48, 48)))[0]
            v = np.linalg.qr(rng.standard_normal((160, 48)))[0]
            matrix = (u * spectrum) @ v.T
            assert_exact(matrix, factor(matrix, method))
        low = rng.standard_normal((48, 12)) @ rng.standard_normal((12, 160))
        assert_exact(low, factor(low, method))


def test_largest_value_hidden_from_the_power_iteration(method):
    """One direction at 1, the rest at .8, along the axis that the start vectors touch least."""
    start = np.random.default_rng(0).standard_normal((512, 4))
    diagonal = np.full(512, 0.8, np.float32)
    diagonal[np.argmin(np.linalg.norm(start, axis=1))] = 1.0
    assert_exact(np.diag(diagonal), factor(np.diag(diagonal), method))


@pytest.mark.parametrize("shape", [(194, 512), (512, 97)])
def test_layers_of_the_modular_network(method, shape):
    """Random matrices of its shapes, condition 1e3: 1e-3 in Frobenius norm, on the range if low."""
    matrix = matrices.with_spectrum(shape, np.logspace(0, -3, min(shape)))
    actual = factor(matrix, method)
    assert helpers.relative_error(actual, helpers.polar64(matrix)) <= 1e-3
    low = matrices.product(shape, rank=20)
    u, _, vh = np.linalg.svd(low.astype(np.float64), full_matrices=False)
    assert helpers.relative_error(factor(low, method), u[:, :20] @ vh[:20]) <= 1e-3


def test_rtol_cuts_directions(method):
    spectrum = np.r_[np.ones(8), np.full(8, 3e-2), np.full(48, 1e-4)]
    matrix = matrices.with_spectrum((64, 64), spectrum)
    gains, _ = helpers.gain_matrix(matrix, factor(matrix, type(method)(rtol=1e-2)))
    np.testing.assert_allclose(np.diag(gains)[:16], 1, rtol=0, atol=1e-5)
    assert np.linalg.norm(gains[16:, 16:], 2) <= 1e-2


SPECTRA = st.lists(st.floats(-4.0, 0.0), min_size=24, max_size=24).map(
    lambda exponents: 10.0 ** np.array([0.0, *exponents[1:]])
)


def random_matrix(spectrum, seed):
    return matrices.with_spectrum((24, 40), spectrum, seed)


def orthogonal(size, seed):
    rng = np.random.default_rng(seed)
    return np.linalg.qr(rng.standard_normal((size, size)))[0].astype(np.float32)


@pytest.mark.parametrize("method", [polar.SVD(), polar.Halley(), polar.NewtonSchulz()], ids=repr)
@given(spectrum=SPECTRA, seed=st.integers(0, 2**16), scale=st.integers(-90, 90))
@settings(max_examples=25, deadline=None)
def test_algebra_of_the_polar_factor(method, spectrum, seed, scale):
    """Scale, sign, transpose and orthogonal equivariance, on spectra down to 1e-4.

    Turning a matrix perturbs it by some eps sigma_1, hence its factor by as many eps sigma_1 /
    sigma_n, in norm: 1e-3 each.
    """
    matrix = random_matrix(spectrum, seed)
    expected = factor(matrix, method)
    np.testing.assert_array_equal(factor(-matrix * np.float32(2.0**scale), method), -expected)
    np.testing.assert_array_equal(factor(matrix.T, method), expected.T)
    left, right = orthogonal(24, seed), orthogonal(40, seed + 1)
    turned = factor(left @ matrix @ right, method)
    tolerance = 1e-4 + 40 * np.finfo(np.float32).eps / spectrum.min()
    assert np.linalg.norm(turned - left @ expected @ right, 2) <= tolerance


def hold_to_the_promise(shape, dtype, seeds):
    """Every exact method on random matrices of `dtype`: no NaN, no gain outside the promise."""
    short = np.finfo(np.float32).bits > jnp.finfo(dtype).bits
    rounding = float(jnp.finfo(dtype).eps) / 2 if short else 0.0
    with helpers.enable_x64(dtype is np.float64):
        for seed in seeds:
            matrix = matrices.at_random(np.random.default_rng(seed), shape, dtype)
            for method in EXACT:
                actual = factor(matrix, method)
                name = f"{method} on {shape} from seed {seed}"
                assert actual.dtype == matrix.dtype
                assert np.isfinite(actual).all(), name
                precise = (x.astype(np.float32) if short else x for x in (matrix, actual))
                assert_exact(*precise, name, rounding)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", matrices.DECADES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("shape", [(1, 7), (16, 16), (24, 64), (64, 24), (97, 97), (48, 200)])
def test_a_thousand_random_matrices_of_each_dtype(shape, dtype):
    """Shapes, spectra, ranks and scales at random: 5 dtypes, 6 shapes, 170 matrices each."""
    hold_to_the_promise(shape, dtype, range(170))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", matrices.DECADES, ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize(("shape", "count"), [((260, 300), 6), ((601, 700), 2)])
def test_large_random_matrices_of_each_dtype(shape, count, dtype):
    """Sizes that the blocks of `Halley` divide unevenly; few, for the reference takes seconds."""
    hold_to_the_promise(shape, dtype, range(1000, 1000 + count))
