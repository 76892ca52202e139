"""The exact class: every singular direction of every matrix of the zoo, against float64."""

import captured
import jax
import jax.numpy as jnp
import matrices
import numpy as np
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st

from egd_optax import polar
from egd_optax.polar import _coefficients as coefficients

EXACT = [polar.SVD(), polar.Gram(), polar.Auto()]
ZOO = matrices.zoo()

# Promises of the class by dtype: (share of sigma_1, largest |gain - 1| above it), null gain below
# `null`, and orthogonality. LAPACK's SVD in the same dtype keeps them with room to spare.
PROMISE = {
    np.float32: {"gains": [(1e-3, 1e-5), (2e-5, 2e-3)], "null": 1e-2, "orthogonality": 1e-4},
    np.float64: {"gains": [(1e-6, 1e-11), (4e-14, 2e-3)], "null": 1e-2, "orthogonality": 1e-4},
}


@pytest.fixture(params=EXACT, ids=repr)
def method(request):
    return request.param


def factor(matrix, method):
    return np.asarray(jax.jit(polar.polar_factor, static_argnums=1)(jnp.asarray(matrix), method))


@pytest.mark.parametrize("case", ZOO, ids=repr)
def test_polynomial_class_on_the_zoo(case):
    """Eight steps of Polar Express do what the composed polynomial does, to float32 round-off.

    Known limit, tested as such: no rank tolerance, so what round-off leaves in a null direction is
    lifted by up to the polynomial's slope at zero, 1e4 for these rows.
    """
    actual = factor(case.matrix, polar.NewtonSchulz())
    gains, s = reference.gain_matrix(case.matrix, actual)
    relative = s / np.linalg.norm(s)
    expected = coefficients.compose(coefficients.TABLES["polar_express"].rows, relative)
    np.testing.assert_allclose(np.diag(gains), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("case", ZOO, ids=repr)
@pytest.mark.parametrize("method", [polar.Randomized(6, tail="keep"), polar.Streaming(6)], ids=repr)
def test_sketch_class_on_the_zoo(case, method):
    """No gain outside [0, 1], and at most `rank` directions at 1 where the tail is dropped.

    Where the spectrum is flat around the rank, which directions are leading is chance; with a gap
    they are found to 1e-2 (test_polar.py).
    """
    actual = factor(case.matrix, method)
    values = np.linalg.svd(actual.astype(np.float64), compute_uv=False)
    assert np.isfinite(actual).all()
    if method.tail == "drop":
        assert values.max() <= 1 + 1e-5
        assert np.sum(values > 1e-2) <= 6
    gains, s = reference.gain_matrix(case.matrix, actual)
    assert np.diag(gains).min() >= -1e-2
    if len(s) > 6 and s[5] > 10 * s[6] and case.rank is None:
        np.testing.assert_allclose(np.diag(gains)[:6], 1, rtol=0, atol=1e-2)


def assert_exact(matrix, actual, rank=None):
    """Hold `actual` to the promise of the matrix's dtype; what is at stake is in the message."""
    promise = PROMISE[matrix.dtype.type]
    gains, s = reference.gain_matrix(matrix, actual)
    rank = len(s) if rank is None else rank
    error = np.abs(np.diag(gains) - 1)[:rank]
    for share, bound in promise["gains"]:
        assert error[s[:rank] >= share].max(initial=0) <= bound, f"gains above {share:g} sigma_1"
    if rank < len(s):
        assert np.linalg.norm(gains[rank:, rank:], 2) <= promise["null"], "null directions"
    kept = gains[:rank][s[:rank] >= promise["gains"][-1][0]]
    identity = np.eye(len(kept))
    np.testing.assert_allclose(kept @ kept.T, identity, rtol=0, atol=promise["orthogonality"])


@pytest.mark.parametrize("case", ZOO, ids=repr)
def test_zoo(method, case):
    assert_exact(case.matrix, factor(case.matrix, method), case.rank)


def test_zoo_is_what_it_says():
    """A wrong ruler measures nothing: ranks and least singular values of the cases themselves."""
    for case in ZOO:
        s = np.linalg.svd(case.matrix.astype(np.float64), compute_uv=False)
        rank = len(s) if case.rank is None else case.rank
        assert (s[rank - 1] >= 2e-5 * s[0]) == case.resolved, case
        assert case.rank is None or s[rank:].max(initial=0) <= 1e-6 * s[0], case


@pytest.mark.parametrize("source", [captured.modular_network, captured.transformer])
@pytest.mark.usefixtures("optax_promotes")
def test_captured_gradients(method, source):
    """Real ones: what lies below 2e-5 sigma_1 may go either way, the rest is promised."""
    for name, matrix in source().items():
        gains, s = reference.gain_matrix(matrix, factor(matrix, method))
        assert np.diag(gains).min() > -1e-2, name
        assert np.diag(gains).max() < 1 + 1e-5, name
        assert_exact_above(gains, s, name)


def assert_exact_above(gains, s, name):
    for share, bound in PROMISE[np.float32]["gains"]:
        assert np.abs(np.diag(gains) - 1)[s >= share].max() <= bound, name


def test_float64_is_tighter(method):
    with jax.enable_x64(True):
        for spectrum in (np.geomspace(1, 1e-6, 48), np.geomspace(1, 1e-13, 48)):
            rng = np.random.default_rng(0)
            u = np.linalg.qr(rng.standard_normal((48, 48)))[0]
            v = np.linalg.qr(rng.standard_normal((160, 48)))[0]
            matrix = (u * spectrum) @ v.T
            assert_exact(matrix, factor(matrix, method))
        low = rng.standard_normal((48, 12)) @ rng.standard_normal((12, 160))
        assert_exact(low, factor(low, method), rank=12)


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
    assert reference.relative_error(actual, reference.polar64(matrix)) <= 1e-3
    low = matrices.product(shape, rank=20)
    u, _, vh = np.linalg.svd(low.astype(np.float64), full_matrices=False)
    assert reference.relative_error(factor(low, method), u[:, :20] @ vh[:20]) <= 1e-3


def test_rtol_cuts_directions(method):
    spectrum = np.r_[np.ones(8), np.full(8, 3e-2), np.full(48, 1e-4)]
    matrix = matrices.with_spectrum((64, 64), spectrum)
    gains, _ = reference.gain_matrix(matrix, factor(matrix, type(method)(rtol=1e-2)))
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


@given(spectrum=SPECTRA, seed=st.integers(0, 2**16), scale=st.integers(-90, 90))
@settings(max_examples=25, deadline=None)
def test_algebra_of_the_polar_factor(spectrum, seed, scale):
    """Scale, sign, transpose and orthogonal equivariance, on spectra down to 1e-4.

    Turning a matrix perturbs it by eps sigma_1, hence its factor by eps sigma_1 / sigma_n: 1e-2.
    """
    matrix, method = random_matrix(spectrum, seed), polar.Gram()
    expected = factor(matrix, method)
    np.testing.assert_array_equal(factor(-matrix * np.float32(2.0**scale), method), -expected)
    np.testing.assert_array_equal(factor(matrix.T, method), expected.T)
    left, right = orthogonal(24, seed), orthogonal(40, seed + 1)
    turned = factor(left @ matrix @ right, method)
    np.testing.assert_allclose(turned, left @ expected @ right, rtol=0, atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16], ids=["float32", "bfloat16"])
def test_a_thousand_random_matrices(method, dtype):
    """Shapes, spectra, ranks and scales at random: no NaN, no gain outside the promise."""
    rng = np.random.default_rng(0)
    shapes = [(1, 7), (16, 16), (24, 64), (64, 24), (96, 96), (48, 200)]
    for trial in range(1000):
        shape = shapes[trial % len(shapes)]
        k = min(shape)
        rank = int(rng.integers(1, k + 1)) if trial % 3 == 0 else k
        spectrum = 10.0 ** rng.uniform(-rng.uniform(0, 4.5), 0, k)
        spectrum = np.where(np.arange(k) < rank, spectrum, 0) / spectrum[:rank].max()
        scale = np.float32(10.0 ** rng.uniform(-28, 28))
        matrix = matrices.with_spectrum(shape, spectrum, trial) * scale
        matrix = np.asarray(jnp.asarray(matrix, dtype).astype(jnp.float32))
        actual = factor(matrix, method)
        assert np.isfinite(actual).all(), trial
        gains, s = reference.gain_matrix(matrix, actual)
        assert_exact_above(gains, s, trial)
        assert np.abs(np.diag(gains)[s < 1e-6]).max(initial=0) <= 1e-2, trial
