"""polar_report and spectrum_monitor against spectra that are known beforehand."""

import jax
import jax.numpy as jnp
import matrices
import numpy as np
import optax
import pytest
import reference
from flax import nnx

from egd_optax import diagnostics, egd, matching, polar, scale_by_egd

MATRIX = jnp.asarray(matrices.product((48, 160), 20, decades=2.0))


def test_report_of_a_true_factor():
    report = diagnostics.polar_report(MATRIX, reference.polar64(MATRIX).astype(np.float32))
    s = np.linalg.svd(np.asarray(MATRIX, np.float64), compute_uv=False)
    np.testing.assert_allclose([report.gain_min, report.gain_max], 1, atol=1e-4)
    assert report.null_gain < 1e-3
    assert report.orthogonality_error < 1e-4
    assert report.rank == 20
    np.testing.assert_allclose(report.condition, s[0] / s[19], rtol=1e-3)
    np.testing.assert_allclose(report.stable_rank, np.sum(s**2) / s[0] ** 2, rtol=1e-4)
    assert report.dropped_energy < 1e-12  # only round-off is dropped


def test_report_of_a_wrong_factor_shows_what_is_wrong():
    """The gradient itself, a lost direction, lifted round-off: each has its figure."""
    spectrum = np.array([4.0, 2.0, 1.0, 0.0])
    u, _, vh = np.linalg.svd(matrices.with_spectrum((4, 6), np.ones(4)))
    turn = vh[:4]
    matrix = jnp.asarray((u * spectrum) @ turn, jnp.float32)

    def report(gains):
        return diagnostics.polar_report(matrix, jnp.asarray((u * gains) @ turn, jnp.float32))

    itself, lost, lifted = report(spectrum), report([1, 0, 1, 0]), report([1, 1, 1, 1])
    np.testing.assert_allclose([itself.gain_min, itself.gain_max], [1, 4], rtol=1e-5)
    np.testing.assert_allclose(itself.orthogonality_error, 15, rtol=1e-5)
    np.testing.assert_allclose(lost.dropped_energy, 4 / 21, rtol=1e-5)
    np.testing.assert_allclose([itself.null_gain, lifted.null_gain], [0, 1], atol=1e-5)


def test_report_of_nothing_is_nan():
    assert np.isnan(diagnostics.polar_report(jnp.zeros((2, 3)), jnp.zeros((2, 3)))).all()
    assert np.isnan(diagnostics.polar_report(jnp.eye(3), jnp.full((3, 3), jnp.nan))).all()
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 2\)"):
        diagnostics.polar_report(jnp.ones((2, 3)), jnp.ones((3, 2)))


def test_monitor_proves_that_the_whitening_ran():
    """Around the whitening, inside masks and chains, updates untouched, read back in order."""
    monitor = diagnostics.spectrum_monitor(every=1)
    optimizer = optax.chain(
        optax.masked(optax.chain(monitor, scale_by_egd(polar.SVD()), monitor), matching("kernel")),
        optax.sgd(0.1),
    )
    grads = {"kernel": MATRIX, "bias": jnp.ones(3)}
    updates, state = jax.jit(optimizer.update)(grads, optimizer.init(grads))
    expected = -0.1 * polar.polar_factor(MATRIX, polar.SVD())
    np.testing.assert_allclose(updates["kernel"], expected, rtol=0, atol=1e-6)
    before, after = (reading["kernel"] for reading in diagnostics.read_spectra(state))
    assert before.rank.item() == after.rank.item() == 20
    np.testing.assert_allclose(after.condition, 1, rtol=1e-3)
    np.testing.assert_allclose(after.stable_rank, 20, rtol=1e-3)
    assert before.condition.item() > 10
    np.testing.assert_allclose(before.norm, np.linalg.norm(MATRIX), rtol=1e-5)


def test_monitor_measures_every_k_updates():
    monitor = diagnostics.spectrum_monitor(every=3)
    state = monitor.init([MATRIX])
    assert np.isnan(state.spectra["0"].condition).all()
    norms = []
    for step in range(5):
        _, state = jax.jit(monitor.update)([(step + 1.0) * MATRIX], state)
        norms.append(state.spectra["0"].norm.item() / np.linalg.norm(MATRIX))
    np.testing.assert_allclose(norms, [1, 1, 1, 4, 4], rtol=1e-5)


@pytest.mark.parametrize("transform", [lambda f: f, nnx.jit], ids=["eager", "jit"])
def test_readings_of_an_nnx_optimizer_are_arrays(transform):
    """Its state holds variables; what is read back are the arrays that plain Optax would give."""
    monitor = diagnostics.spectrum_monitor()
    model = nnx.Linear(3, 4, use_bias=False, rngs=nnx.Rngs(0))
    trainer = nnx.Optimizer(model, optax.chain(monitor, optax.sgd(0.1)), wrt=nnx.Param)
    grads = {"kernel": jnp.diag(jnp.array([4.0, 2.0, 1.0, 1.0]))[:3]}
    transform(lambda model, trainer, grads: trainer.update(model, grads))(
        model, trainer, nnx.State({"kernel": nnx.Param(grads["kernel"])})
    )
    _, state = monitor.update(grads, monitor.init(grads))
    (actual,), (expected,) = (
        diagnostics.read_spectra(trainer.opt_state),
        diagnostics.read_spectra(state),
    )
    assert all(type(value) is type(grads["kernel"]) for value in actual["kernel"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), actual, expected)


def test_no_monitor_no_readings():
    params = {"kernel": jnp.ones((2, 3))}
    assert diagnostics.read_spectra(egd(0.1).init(params)) == []
