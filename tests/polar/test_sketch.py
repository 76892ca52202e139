"""The sketches: the leading directions, and what becomes of the rest."""

import helpers
import jax
import jax.numpy as jnp
import matrices
import numpy as np
import pytest
from helpers import factor

from egd_optax import polar


def test_randomized_whitens_the_leading_directions():
    spectrum = np.r_[np.logspace(0, -1, 8), np.full(40, 1e-2)]
    matrix = matrices.with_spectrum((48, 160), spectrum)
    dropped, _ = helpers.gain_matrix(matrix, factor(matrix, polar.Randomized(8)))
    expected = np.diag(np.r_[np.ones(8), np.zeros(40)])
    np.testing.assert_allclose(dropped, expected, rtol=0, atol=1e-2)
    kept, _ = helpers.gain_matrix(matrix, factor(matrix, polar.Randomized(8, residual="keep")))
    expected = np.diag(np.r_[np.ones(8), spectrum[8:] / spectrum[7]])
    np.testing.assert_allclose(kept, expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("method", [polar.Randomized, polar.SubspaceIteration])
def test_the_residual_continues_a_steep_spectrum(method):
    """Over four decades directions are still in order, and the residual hangs on the last one."""
    spectrum = np.logspace(0, -4, 48)
    matrix = matrices.with_spectrum((48, 160), spectrum)
    update = jax.jit(method(40, oversample=8, residual="keep").update)
    actual, _ = update(matrix, method(40).init(jnp.asarray(matrix)))
    gains, _ = helpers.gain_matrix(matrix, actual)
    expected = np.r_[np.ones(40), spectrum[40:] / spectrum[39]]
    np.testing.assert_allclose(np.diag(gains), expected, rtol=0, atol=1e-2)


def test_randomized_rank_beyond_the_matrix_is_exact():
    matrix = matrices.with_spectrum((48, 160), np.logspace(0, -2, 48))
    actual = factor(matrix, polar.Randomized(1000))
    assert helpers.relative_error(actual, helpers.polar64(matrix)) <= 1e-3


def test_randomized_draws_a_fresh_sketch_each_step():
    method = polar.Randomized(4, oversample=0, power_iterations=0, seed=3)
    matrix = jnp.asarray(matrices.with_spectrum((48, 160), np.ones(48)))
    update = jax.jit(method.update)
    first, state = update(matrix, method.init(matrix))
    again, _ = update(matrix, method.init(matrix))
    second, _ = update(matrix, state)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).max() > 1e-2


def turning(step, angle=0.02, shape=(48, 160)):
    """A matrix whose singular directions turn by `angle` radians a step."""
    rng = np.random.default_rng(5)
    spectrum = np.r_[np.logspace(0, -1, 8), np.full(40, 3e-2)]
    left, right = (np.linalg.qr(rng.standard_normal((k, k)))[0] for k in shape)
    c, s = np.cos(step * angle), np.sin(step * angle)
    turn = np.kron(np.eye(24), [[c, -s], [s, c]])[rng.permutation(48)]
    return ((left @ turn * spectrum) @ right[:48]).astype(np.float32)


def test_subspace_iteration_follows_a_turning_subspace():
    """After five steps at 0.02 radians a step, the leading gains are within 1e-2 of 1."""
    method = polar.SubspaceIteration(8)
    update = jax.jit(method.update)
    state = method.init(jnp.zeros((48, 160)))
    for step in range(12):
        matrix = turning(step)
        actual, state = update(matrix, state)
        if step >= 5:
            gains, _ = helpers.gain_matrix(matrix, actual)
            np.testing.assert_allclose(np.diag(gains)[:8], 1, rtol=0, atol=1e-2)
            assert np.linalg.norm(gains[8:, 8:], 2) <= 0.1


def test_subspace_iteration_finds_directions_that_its_basis_has_never_seen():
    """Rows of sparse tokens: a support disjoint from the last one leaves nothing to follow."""
    method = polar.SubspaceIteration(8)
    update = jax.jit(method.update)
    state = method.init(jnp.zeros((48, 160)))
    for rows in (slice(0, 10), slice(30, 38)):
        matrix = np.zeros((48, 160), np.float32)
        matrix[rows] = matrices.with_spectrum((48, 160), np.ones(48))[rows]
        for _ in range(4):
            actual, state = update(matrix, state)
    gains, _ = helpers.gain_matrix(matrix, actual)
    np.testing.assert_allclose(np.diag(gains)[:8], 1, rtol=0, atol=1e-2)


def test_subspace_iteration_survives_a_zero_and_a_non_finite_step():
    method = polar.SubspaceIteration(8)
    update = jax.jit(method.update)
    _, state = update(turning(0), method.init(jnp.zeros((48, 160))))
    for bad in (np.zeros((48, 160), np.float32), np.full((48, 160), np.nan, np.float32)):
        _, after = update(bad, state)
        np.testing.assert_array_equal(after.basis, state.basis)


@pytest.mark.parametrize("kind", [polar.Randomized, polar.SubspaceIteration])
def test_rtol_cuts_directions(kind):
    """Of eight directions five lie above 2 rtol: the others give nothing, and divide nothing."""
    spectrum = np.r_[np.ones(5), np.full(43, 1e-3)]
    matrix = matrices.with_spectrum((48, 160), spectrum)
    for residual in ("drop", "keep"):
        method = kind(8, residual=residual, rtol=0.05)
        gains, _ = helpers.gain_matrix(matrix, factor(matrix, method))
        np.testing.assert_allclose(np.diag(gains)[:5], 1, rtol=0, atol=1e-3)
        # The filter of `Halley` leaves 1e-2 below rtol / 10.
        assert np.linalg.norm(gains[5:, 5:], 2) <= 1e-2


def test_subspace_iteration_follows_nothing_below_rtol():
    """A direction below rtol gives its place to a random column, so another basis comes of it."""
    matrix = jnp.asarray(matrices.with_spectrum((48, 160), np.r_[np.ones(5), np.full(43, 1e-3)]))
    bases = []
    for rtol in (None, 0.05):
        method = polar.SubspaceIteration(8, oversample=0, rtol=rtol)
        update = jax.jit(method.update)
        state = method.init(matrix)
        for _ in range(3):
            _, state = update(matrix, state)
        bases.append(np.asarray(state.basis))
    distance = bases[0][:, :3] - bases[1][:, :3] @ (bases[1][:, :3].T @ bases[0][:, :3])
    assert np.linalg.norm(distance, 2) > 0.1
