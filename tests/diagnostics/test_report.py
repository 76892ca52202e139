"""polar_report against factors whose gains are known beforehand."""

import jax.numpy as jnp
import numpy as np
import pytest
from helpers import polar64

from egd_optax import polar
from egd_optax.diagnostics import polar_report

RNG = np.random.default_rng(0)
U, V = (np.linalg.qr(RNG.standard_normal((size, 4)))[0] for size in (4, 6))


def with_gains(gains, dtype=jnp.float32):
    return jnp.asarray((U * np.asarray(gains)) @ V.T, dtype)


def test_report_of_a_true_factor():
    left, right = RNG.standard_normal((48, 20)), RNG.standard_normal((20, 160))
    matrix = jnp.asarray(left * np.logspace(0, -2, 20) @ right, jnp.float32)
    report = polar_report(matrix, jnp.asarray(polar64(matrix), jnp.float32))
    s = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    np.testing.assert_allclose([report.gain_min, report.gain_max], 1, atol=1e-4)
    assert report.null_gain < 1e-3
    assert report.orthogonality_error < 1e-4
    assert report.rank == 20
    np.testing.assert_allclose(report.condition, s[0] / s[19], rtol=1e-3)
    np.testing.assert_allclose(report.stable_rank, np.sum(s**2) / s[0] ** 2, rtol=1e-4)
    assert report.dropped_energy < 1e-12  # only round-off is dropped


@pytest.mark.parametrize("turn", [lambda x: x, jnp.transpose], ids=["wide", "tall"])
def test_report_of_a_wrong_factor_shows_what_is_wrong(turn):
    """The gradient itself, a lost direction, lifted round-off, a sign: each has its figure."""
    spectrum = np.array([4.0, 2.0, 1.0, 0.0])

    def report(gains):
        return polar_report(turn(with_gains(spectrum)), turn(with_gains(gains)))

    itself, lost, lifted = report(spectrum), report([1, 0, 1, 0]), report([1, 1, 1, 1])
    np.testing.assert_allclose([itself.gain_min, itself.gain_max], [1, 4], rtol=1e-5)
    np.testing.assert_allclose(itself.orthogonality_error, 15, rtol=1e-5)
    np.testing.assert_allclose(lost.dropped_energy, 4 / 21, rtol=1e-5)
    np.testing.assert_allclose([itself.null_gain, lifted.null_gain], [0, 1], atol=1e-5)
    np.testing.assert_allclose(report([1, 1, -1, 0]).gain_min, -1, rtol=1e-5)


def test_a_complex_matrix_has_real_gains_of_one():
    """u^H and v^H are conjugates: without them a phase would show as a loss."""
    matrix = jnp.asarray(
        RNG.standard_normal((4, 6)) + 1j * RNG.standard_normal((4, 6)), "complex64"
    )
    report = polar_report(matrix, polar.polar_factor(matrix, polar.SVD()))
    np.testing.assert_allclose([report.gain_min, report.gain_max], 1, atol=1e-5)
    assert report.orthogonality_error < 1e-5


def test_a_matrix_is_judged_by_the_tolerance_of_its_own_dtype():
    """Rounded to bfloat16, rank 2 has round-off of 2^-8 in all directions: still rank 2."""
    matrix = with_gains([4.0, 2.0, 0.0, 0.0], jnp.bfloat16)
    report = polar_report(matrix, polar.polar_factor(matrix))
    assert report.rank == 2
    assert report.condition < 3
    assert polar_report(matrix, matrix, rtol=1e-5).rank > 2
    assert polar_report(matrix.astype(jnp.float32), matrix.astype(jnp.float32)).rank > 2


def test_report_of_nothing_is_nan():
    assert np.isnan(polar_report(jnp.zeros((2, 3)), jnp.zeros((2, 3)))).all()
    assert np.isnan(polar_report(jnp.eye(3), jnp.full((3, 3), jnp.nan))).all()


@pytest.mark.parametrize(
    ("matrix", "factor", "rtol", "error", "says"),
    [
        (jnp.ones((2, 3)), jnp.ones((3, 2)), None, ValueError, r"\(2, 3\) and \(3, 2\)"),
        (jnp.ones((2, 2, 3)), jnp.ones((2, 2, 3)), None, ValueError, "one matrix"),
        (jnp.ones((2, 3), "int32"), jnp.ones((2, 3)), None, TypeError, "floating-point"),
        ({"a": jnp.ones((2, 3))}, jnp.ones((2, 3)), None, TypeError, "jax.tree.map"),
        (jnp.ones((2, 3)), jnp.ones((2, 3)), 0.5, ValueError, r"\[0, 0.5\), .*got 0.5"),
    ],
)
def test_what_is_no_matrix_is_refused(matrix, factor, rtol, error, says):
    with pytest.raises(error, match=says):
        polar_report(matrix, factor, rtol=rtol)
