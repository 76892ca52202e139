"""The polynomial and the sketch classes, and what surrounds the kernels of all methods."""

import jax
import jax.numpy as jnp
import matrices
import numpy as np
import pytest
import reference

from egd_optax import polar
from egd_optax.polar import _coefficients as coefficients

EXACT = [polar.SVD(), polar.Gram(), polar.Auto()]
METHODS = [
    *EXACT,
    polar.NewtonSchulz(),
    polar.Randomized(8, tail="keep"),
    polar.Streaming(8),
]


def factor(matrix, method):
    return jax.jit(polar.polar_factor, static_argnums=1)(jnp.asarray(matrix), method)


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("scale", [2.0**-100, 1e-30, 1e30])
def test_scale_invariance(method, scale):
    matrix = matrices.with_spectrum((48, 160), np.logspace(0, -2, 48))
    expected = factor(matrix, method)
    actual = factor(matrix * np.float32(scale), method)
    # Scaling by a power of two is exact; by another number it perturbs entries by eps.
    tolerance = 0 if scale == 2.0**-100 else 2e-4
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_tall_is_transposed_wide(method):
    matrix = matrices.with_spectrum((48, 160), np.logspace(0, -2, 48))
    np.testing.assert_array_equal(factor(matrix.T, method), factor(matrix, method).T)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_zero_and_non_finite_slices_leave_their_neighbours_alone(method):
    good = matrices.with_spectrum((48, 160), np.logspace(0, -2, 48))
    bad = [good.copy(), good.copy()]
    bad[0][3, 4], bad[1][0, 0] = np.nan, -np.inf
    actual = factor(np.stack([good, np.zeros_like(good), *bad]), method)
    np.testing.assert_allclose(actual[0], factor(good, method), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(actual[1], np.zeros_like(good))
    assert np.isnan(actual[2:]).all()


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_low_precision_is_whitened_in_float32(method, dtype):
    matrix = jnp.asarray(matrices.with_spectrum((48, 160), np.logspace(0, -1, 48)), dtype)
    actual = factor(matrix, method)
    assert actual.dtype == dtype
    expected = factor(matrix.astype(jnp.float32), method).astype(dtype)
    np.testing.assert_array_equal(actual.astype(jnp.float32), expected.astype(jnp.float32))


@pytest.mark.parametrize("method", EXACT, ids=repr)
def test_complex(method):
    real, imaginary = (matrices.with_spectrum((24, 40), np.ones(24), seed=s) for s in (0, 1))
    matrix = (real + 1j * imaginary).astype(np.complex64)
    u, _, vh = np.linalg.svd(matrix.astype(np.complex128), full_matrices=False)
    np.testing.assert_allclose(factor(matrix, method), u @ vh, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", coefficients.TABLES)
def test_polynomial_gains_lie_in_the_tables_interval(name):
    table = coefficients.TABLES[name]
    x = np.logspace(np.log10(table.lower), 0, 100_001)
    low, high = table.gains
    composed = coefficients.compose(table.rows, x)
    assert low <= composed.min()
    assert composed.max() <= high
    spectrum = np.logspace(0, -1.5, 48)
    matrix = matrices.with_spectrum((48, 160), spectrum)
    gains, _ = reference.gain_matrix(matrix, factor(matrix, polar.NewtonSchulz(name)))
    expected = coefficients.compose(table.rows, spectrum / np.linalg.norm(spectrum))
    np.testing.assert_allclose(np.diag(gains), expected, rtol=0, atol=1e-3)


def test_polar_express_is_the_published_table():
    """Derived again from its parameters: Amsel et al. 2025, rows 1, 5 and the limit, undivided."""
    rows = coefficients.polar_express(9, safety=1.0)
    published = (8.28721201814563, -23.595886519098837, 17.300387312530933)
    np.testing.assert_allclose(rows[0], published, rtol=1e-12)
    published = (2.300652019954817, -1.6689039845749493, 0.4188073119525673)
    np.testing.assert_allclose(rows[4], published, rtol=1e-9)
    np.testing.assert_allclose(rows[8], (1.875, -1.25, 0.375), rtol=1e-12)


@pytest.mark.parametrize(("steps", "lower"), [(7, 1e-3), (9, 1e-4), (12, 1e-6)])
def test_generated_tables_reach_1e_6(steps, lower):
    rows = polar.polar_express(steps, lower=lower)
    assert (
        np.abs(coefficients.compose(rows, np.logspace(np.log10(lower), 0, 10_001)) - 1).max() < 1e-6
    )


def test_more_steps_repeat_the_last_row_and_fewer_take_the_first():
    rows = coefficients.TABLES["cans"].rows
    assert polar.NewtonSchulz("cans", steps=7).rows == (*rows, rows[-1], rows[-1])
    assert polar.NewtonSchulz("cans", steps=2).rows == rows[:2]


def test_randomized_whitens_the_leading_directions():
    spectrum = np.r_[np.logspace(0, -1, 8), np.full(40, 1e-2)]
    matrix = matrices.with_spectrum((48, 160), spectrum)
    dropped, _ = reference.gain_matrix(matrix, factor(matrix, polar.Randomized(8)))
    expected = np.diag(np.r_[np.ones(8), np.zeros(40)])
    np.testing.assert_allclose(dropped, expected, rtol=0, atol=1e-2)
    kept, _ = reference.gain_matrix(matrix, factor(matrix, polar.Randomized(8, tail="keep")))
    expected = np.diag(np.r_[np.ones(8), spectrum[8:] / spectrum[7]])
    np.testing.assert_allclose(kept, expected, rtol=0, atol=1e-2)


@pytest.mark.parametrize("method", [polar.Randomized, polar.Streaming])
def test_the_tail_continues_a_steep_spectrum(method):
    """Over four decades the sketch still orders its directions, and the tail hangs on the last."""
    spectrum = np.logspace(0, -4, 48)
    matrix = matrices.with_spectrum((48, 160), spectrum)
    update = jax.jit(method(40, oversample=8, tail="keep").update)
    actual, _ = update(matrix, method(40).init(jnp.asarray(matrix)))
    gains, _ = reference.gain_matrix(matrix, actual)
    expected = np.r_[np.ones(40), spectrum[40:] / spectrum[39]]
    np.testing.assert_allclose(np.diag(gains), expected, rtol=0, atol=1e-2)


def test_randomized_rank_beyond_the_matrix_is_exact():
    matrix = matrices.with_spectrum((48, 160), np.logspace(0, -2, 48))
    actual = factor(matrix, polar.Randomized(1000))
    assert reference.relative_error(actual, reference.polar64(matrix)) <= 1e-3


def test_randomized_draws_a_fresh_sketch_each_step():
    method = polar.Randomized(4, oversample=0, power_iterations=0, seed=3)
    matrix = jnp.asarray(matrices.with_spectrum((48, 160), np.ones(48)))
    first, state = method.update(matrix, method.init(matrix))
    again, _ = method.update(matrix, method.init(matrix))
    second, _ = method.update(matrix, state)
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


def test_streaming_follows_a_turning_subspace():
    """After five steps at 0.02 radians a step, the leading gains are within 1e-2 of 1."""
    method = polar.Streaming(8)
    update = jax.jit(method.update)
    state = method.init(jnp.zeros((48, 160)))
    for step in range(12):
        matrix = turning(step)
        actual, state = update(matrix, state)
        if step >= 5:
            gains, _ = reference.gain_matrix(matrix, actual)
            np.testing.assert_allclose(np.diag(gains)[:8], 1, rtol=0, atol=1e-2)
            assert np.linalg.norm(gains[8:, 8:], 2) <= 0.1


def test_streaming_finds_directions_that_its_basis_has_never_seen():
    """Rows of sparse tokens: a support disjoint from the last one leaves nothing to follow."""
    method = polar.Streaming(8)
    update = jax.jit(method.update)
    state = method.init(jnp.zeros((48, 160)))
    for rows in (slice(0, 10), slice(30, 38)):
        matrix = np.zeros((48, 160), np.float32)
        matrix[rows] = matrices.with_spectrum((48, 160), np.ones(48))[rows]
        for _ in range(4):
            actual, state = update(matrix, state)
    gains, _ = reference.gain_matrix(matrix, actual)
    np.testing.assert_allclose(np.diag(gains)[:8], 1, rtol=0, atol=1e-2)


def test_streaming_survives_a_zero_and_a_non_finite_step():
    method = polar.Streaming(8)
    update = jax.jit(method.update)
    _, state = update(turning(0), method.init(jnp.zeros((48, 160))))
    for bad in (np.zeros((48, 160), np.float32), np.full((48, 160), np.nan, np.float32)):
        _, after = update(bad, state)
        np.testing.assert_array_equal(after.basis, state.basis)


def test_batched_equals_each_slice():
    stack = np.stack(
        [matrices.with_spectrum((48, 160), np.logspace(0, -2, 48), s) for s in (1, 2, 3)]
    )
    for method in METHODS:
        actual = factor(stack.reshape(1, 3, 48, 160), method)[0]
        expected = np.stack([factor(matrix, method) for matrix in stack])
        np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: polar.SVD(rtol=-1e-3), "rtol .* got -0.001"),
        (lambda: polar.SVD(rtol="x"), "rtol .* got 'x'"),
        (lambda: polar.Randomized(2, seed=2**32), "below 2"),
        (lambda: polar.NewtonSchulz(dtype=jnp.int32), "floating-point"),
        (lambda: polar.Auto(rtol=1.0), "rtol .* got 1.0"),
        (lambda: polar.Gram(rtol=float("nan")), "rtol"),
        (lambda: polar.NewtonSchulz("muon"), "polar_express, jordan, you, cans, got 'muon'"),
        (lambda: polar.NewtonSchulz(steps=0), "steps .* at least 1, got 0"),
        (lambda: polar.NewtonSchulz(((1.0, 2.0),)), "rows"),
        (lambda: polar.Randomized(0), "rank .* at least 1, got 0"),
        (lambda: polar.Randomized(4, tail="none"), "tail must be one of drop, keep"),
        (lambda: polar.polar_factor(jnp.ones(3)), r"\(\*batch, m, n\), got .*\(3,\)"),
        (lambda: polar.polar_express(0), "steps >= 1"),
    ],
)
def test_bad_values_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_bad_types_are_refused():
    with pytest.raises(TypeError, match="int32"):
        polar.polar_factor(jnp.ones((2, 2), jnp.int32))
    with pytest.raises(TypeError, match="got 'svd'"):
        polar.polar_factor(jnp.ones((2, 2)), "svd")
    with pytest.raises(TypeError, match=r"write SVD\(\)"):
        polar.polar_factor(jnp.ones((2, 2)), polar.SVD)
    with pytest.raises(ValueError, match=r"keep the shape \(2, 2\)"):
        polar.polar_factor(jnp.ones((2, 2)), lambda g: g[0])
