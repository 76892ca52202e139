"""spectrum_monitor against spectra that are known beforehand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import gradient

from egd_optax import MatrixAxes, diagnostics, egd, matching, polar, scale_by_egd

pytestmark = pytest.mark.usefixtures("quick_compilation")

MATRIX = gradient((16, 40))


def test_monitors_around_the_whitening_read_both_sides():
    """Inside masks and chains, updates untouched, read back in order."""
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
    assert before.rank.item() == after.rank.item() == 16
    np.testing.assert_allclose(before.condition, 100, rtol=1e-2)
    np.testing.assert_allclose(before.norm, np.linalg.norm(MATRIX), rtol=1e-5)
    np.testing.assert_allclose(before.stable_rank, np.sum(np.logspace(0, -4, 16)), rtol=1e-3)
    np.testing.assert_allclose(after.condition, 1, rtol=1e-3)
    np.testing.assert_allclose(after.stable_rank, 16, rtol=1e-3)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize("axes", [MatrixAxes(0, 1), MatrixAxes(1, 0)])
def test_figures_depend_on_neither_scale_nor_orientation_nor_neighbors(scale, axes):
    stack = jnp.stack([MATRIX, jnp.zeros_like(MATRIX), 7 * MATRIX], axis=-1) * scale
    monitor = diagnostics.spectrum_monitor(axes=axes)
    _, state = jax.jit(monitor.update)([stack], monitor.init([stack]))
    ((figures,),) = (read.values() for read in diagnostics.read_spectra(state))
    np.testing.assert_allclose(
        figures.norm / (scale * np.linalg.norm(MATRIX)), [1, 0, 7], rtol=1e-5
    )
    np.testing.assert_allclose(figures.rank, [16, np.nan, 16])
    np.testing.assert_allclose(figures.condition, [100, np.nan, 100], rtol=1e-2)


def test_a_monitor_measures_every_k_updates():
    monitor = diagnostics.spectrum_monitor(every=3)
    with jax.debug_nans(True):  # whoever looks for a NaN may have a monitor, too
        state = monitor.init([MATRIX])
    assert not state.spectra["0"].condition.any()
    norms, update = [], jax.jit(monitor.update)
    for step in range(5):
        _, state = update([(step + 1.0) * MATRIX], state)
        norms.append(state.spectra["0"].norm.item() / np.linalg.norm(MATRIX))
    np.testing.assert_allclose(norms, [1, 1, 1, 4, 4], rtol=1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_a_leaf_is_judged_by_the_tolerance_of_its_own_dtype(dtype):
    """Rank 40 stays rank 40 however its entries are rounded; float32's tolerance sees bfloat16's.

    A flat spectrum is the worst case: the rounding is .25 % of sigma_1.
    """
    u, v = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (2, 64, 40)))[0]
    leaf = (u @ v.T).astype(dtype)
    ranks = []
    for monitor in (diagnostics.spectrum_monitor(), diagnostics.spectrum_monitor(rtol=1e-5)):
        _, state = monitor.update([leaf], monitor.init([leaf]))
        ranks.append(diagnostics.read_spectra(state)[0]["0"].rank.item())
    assert ranks[0] == 40
    assert (ranks[1] > 40) == (dtype == "bfloat16")


@pytest.mark.parametrize("transform", [lambda f: f, nnx.jit], ids=["eager", "jit"])
def test_readings_of_an_nnx_optimizer_are_arrays(transform):
    """Its state holds variables; the figures are the arrays that plain Optax would give."""
    monitor = diagnostics.spectrum_monitor()
    model = nnx.Linear(3, 4, use_bias=False, rngs=nnx.Rngs(0))
    trainer = nnx.Optimizer(model, optax.chain(monitor, optax.sgd(0.1)), wrt=nnx.Param)
    grads = {"kernel": jnp.diag(jnp.array([4.0, 2.0, 1.0, 1.0]))[:3]}
    transform(lambda model, trainer, grads: trainer.update(model, grads))(
        model, trainer, nnx.State({"kernel": nnx.Param(grads["kernel"])})
    )
    _, state = monitor.update(grads, monitor.init(grads))
    (actual,), (expected,) = map(diagnostics.read_spectra, (trainer.opt_state, state))
    assert all(type(value) is type(grads["kernel"]) for value in actual["kernel"])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), actual, expected)


def test_without_a_monitor_there_are_no_readings():
    assert diagnostics.read_spectra(egd(0.1).init({"kernel": jnp.ones((2, 3))})) == []


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: diagnostics.spectrum_monitor(0), "every must be .* at least 1, got 0"),
        (lambda: diagnostics.spectrum_monitor(rtol=1.0), r"\[0, 0.5\)"),
        (lambda: diagnostics.spectrum_monitor().init([jnp.ones((2, 3, 4))]), "axes="),
    ],
)
def test_bad_arguments_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()
