"""Promises that every method keeps, whatever its accuracy; arguments that are refused."""

import helpers
import jax
import jax.numpy as jnp
import matrices
import numpy as np
import pytest
from helpers import DISTINCT, EXACT, SKETCHES, factor
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from egd_optax import diagnostics, polar


@pytest.mark.parametrize("method", [*SKETCHES, polar.NewtonSchulz()], ids=repr)
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_scale_invariance(method, scale):
    """Scaling by a power of two is exact; the zoo of test_accuracy.py has the exact methods."""
    matrix = matrices.with_spectrum((48, 160), np.logspace(0, -2, 48))
    actual = factor(matrix * np.float32(scale), method)
    np.testing.assert_array_equal(actual, factor(matrix, method))


@pytest.mark.parametrize("method", DISTINCT, ids=repr)
def test_tall_is_transposed_wide(method):
    matrix = matrices.with_spectrum((48, 160), np.logspace(0, -2, 48))
    np.testing.assert_array_equal(factor(matrix.T, method), factor(matrix, method).T)


@pytest.mark.parametrize("method", DISTINCT, ids=repr)
def test_zero_and_non_finite_slices_leave_their_neighbors_alone(method):
    good = matrices.with_spectrum((48, 160), np.logspace(0, -2, 48))
    bad = [good.copy(), good.copy()]
    bad[0][3, 4], bad[1][0, 0] = np.nan, -np.inf
    actual = factor(np.stack([good, np.zeros_like(good), *bad]), method)
    np.testing.assert_allclose(actual[0], factor(good, method), rtol=0, atol=1e-5)
    np.testing.assert_array_equal(actual[1], np.zeros_like(good))
    assert np.isnan(actual[2:]).all()


@pytest.mark.parametrize(
    ("method", "dtype"),
    [*((method, jnp.bfloat16) for method in DISTINCT), (polar.Halley(), jnp.float16)],
    ids=repr,
)
def test_low_precision_is_whitened_in_float32(method, dtype):
    matrix = jnp.asarray(matrices.with_spectrum((48, 160), np.logspace(0, -1, 48)), dtype)
    actual = factor(matrix, method)
    assert actual.dtype == dtype
    expected = factor(matrix.astype(jnp.float32), method).astype(dtype)
    np.testing.assert_array_equal(actual.astype(jnp.float32), expected.astype(jnp.float32))


def test_tolerance_that_a_single_pass_serves():
    """With rtol .45 `Halley` makes one pass, which has to scale the matrix, too."""
    spectrum = np.append(np.linspace(1, 0.95, 24), 1e-3)
    actual = factor(37 * matrices.with_spectrum((25, 40), spectrum), polar.Halley(rtol=0.45))
    gains = np.linalg.svd(actual, compute_uv=False)
    np.testing.assert_allclose(gains, np.append(np.ones(24), 0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", EXACT, ids=repr)
def test_complex(method):
    real, imaginary = (matrices.with_spectrum((24, 40), np.ones(24), seed=s) for s in (0, 1))
    matrix = (real + 1j * imaginary).astype(np.complex64)
    u, _, vh = np.linalg.svd(matrix.astype(np.complex128), full_matrices=False)
    np.testing.assert_allclose(factor(matrix, method), u @ vh, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "spec"),
    [
        (polar.Halley(), ("a", "b")),
        *(
            pytest.param(method, spec, marks=pytest.mark.slow)
            for method, spec in (
                (polar.Halley(), ("a", None)),
                (polar.Halley(), (None, "b")),
                (polar.SVD(), ("a", "b")),
                (polar.SubspaceIteration(8), ("a", "b")),
            )
        ),
    ],
    ids=repr,
)
def test_explicit_sharding_comes_back(method, spec):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    plain = matrices.with_spectrum((24, 40), np.logspace(0, -2, 24))
    sharded = jax.device_put(plain, NamedSharding(mesh, PartitionSpec(*spec)))
    actual = factor(sharded, method)
    assert actual.sharding == sharded.sharding
    np.testing.assert_allclose(actual, factor(plain, method), rtol=0, atol=1e-4)
    report = diagnostics.polar_report(sharded, actual)
    assert abs(report.condition - 100) < 0.1


@pytest.mark.parametrize("method", [polar.SVD(), polar.Halley()], ids=repr)
def test_a_vmap_over_an_axis_that_is_cut_keeps_the_cut(method):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    plain = np.stack([matrices.with_spectrum((24, 40), np.ones(24), seed=i) for i in range(4)])
    sharded = jax.device_put(plain, NamedSharding(mesh, PartitionSpec("a", None, "b")))
    with jax.set_mesh(mesh):
        actual = jax.jit(jax.vmap(lambda matrix: polar.polar_factor(matrix, method)))(sharded)
    assert actual.sharding == sharded.sharding
    np.testing.assert_allclose(actual, plain, rtol=0, atol=1e-5)  # each its own factor


@pytest.mark.parametrize("method", [polar.SVD(), polar.Halley(), polar.NewtonSchulz()], ids=repr)
@pytest.mark.parametrize("batched", [False, True])
def test_derivatives_are_those_of_the_polar_factor(method, batched):
    """Along a random direction, against central differences of the SVD in float64."""
    matrix = matrices.with_spectrum((12, 20), np.linspace(1, 0.5, 12))
    rng = np.random.default_rng(1)
    direction, weights = rng.standard_normal((2, 12, 20)).astype(np.float32)

    def loss(x):
        stack = jnp.stack([x, 2 * x])
        factors = jax.vmap(lambda one: polar.polar_factor(one, method))(stack)
        return jnp.sum(weights * (factors[1] if batched else polar.polar_factor(x, method)))

    step = 1e-6 * np.float64(direction)
    up, down = (helpers.polar64(np.float64(matrix) + s) for s in (step, -step))
    expected = np.sum(weights * (up - down)) / 2e-6
    actual = jnp.sum(jax.jit(jax.grad(loss))(jnp.asarray(matrix)) * direction)
    np.testing.assert_allclose(actual, expected, rtol=1e-3)


@pytest.mark.parametrize("method", [polar.Halley(), polar.NewtonSchulz()], ids=repr)
def test_derivatives_at_a_small_scale(method):
    """The inverse of the scale times that at 1; a power of two, so but for round-off the same."""
    matrix = jnp.asarray(matrices.with_spectrum((24, 40), np.linspace(1, 0.3, 24)))
    weights = jnp.asarray(matrices.with_spectrum((24, 40), np.ones(24), seed=1))
    slope = jax.grad(lambda x: jnp.vdot(weights, polar.polar_factor(x, method)))
    np.testing.assert_allclose(
        slope(matrix * 2.0**-70) * 2.0**-70, slope(matrix), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("shape", "picked"),
    [
        ((1, 1000), polar.SVD()),
        ((32, 32), polar.SVD(1e-2)),
        ((64, 16), polar.SVD()),
        ((24, 48), polar.Halley(1e-2)),
        ((33, 33), polar.Halley()),
    ],
)
def test_auto_on_cpu_takes_the_svd_up_to_1024_entries(shape, picked):
    """And hands its tolerance on."""
    matrix = matrices.with_spectrum(shape, np.logspace(0, -3, min(shape)))
    actual = factor(matrix, polar.Auto(picked.rtol))
    np.testing.assert_array_equal(actual, factor(matrix, picked))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: polar.SVD(rtol=-1e-3), "rtol .* got -0.001"),
        (lambda: polar.SVD(rtol="x"), "rtol .* got 'x'"),
        (lambda: polar.Randomized(2, seed=2**32), "below 2"),
        (lambda: polar.NewtonSchulz(dtype=jnp.int32), "floating-point"),
        (lambda: polar.Auto(rtol=1.0), "rtol .* got 1.0"),
        (lambda: polar.Halley(rtol=float("nan")), "rtol"),
        (
            lambda: polar.NewtonSchulz("muon"),
            "polar_express, three_steps, standard, dion, jordan, you, got 'muon'",
        ),
        (lambda: polar.NewtonSchulz(steps=0), "steps .* at least 1, got 0"),
        (lambda: polar.NewtonSchulz(((1.0, 2.0), (1.0,))), "rows"),
        (lambda: polar.NewtonSchulz("three_steps", dtype=jnp.bfloat16), "too short .* float32"),
        (lambda: polar.NewtonSchulz(5), "rows .* got 5"),
        (lambda: polar.NewtonSchulz(np.zeros((0, 3))), "rows"),
        (lambda: polar.NewtonSchulz(((1.0, 2.0, np.nan),)), "finite rows"),
        (lambda: polar.NewtonSchulz(dtype="bf16"), "floating-point type .* got 'bf16'"),
        (lambda: polar.NewtonSchulz(dtype=jnp.float8_e5m2), "at least 16 bits"),
        (lambda: polar.Randomized(4, rtol=0.5), "rtol .* got 0.5"),
        (lambda: polar.SubspaceIteration(4, rtol=-1), "rtol .* got -1"),
        (lambda: polar.Randomized(0), "rank .* at least 1, got 0"),
        (lambda: polar.Randomized(4, residual="none"), "residual must be one of drop, keep"),
        (lambda: polar.polar_factor(jnp.ones(3)), r"\(\*batch, m, n\), got .*\(3,\)"),
        (lambda: polar.polar_express_coefficients(0), "steps .* at least 1, got 0"),
        (lambda: polar.polar_express_coefficients(2.5), "steps .* integer"),
        (lambda: polar.polar_express_coefficients(2, safety=np.inf), "safety \\[1, 2"),
        (lambda: polar.polar_express_coefficients(2, lower="x"), "got 'x', 1.01"),
        (
            lambda: polar.polar_express_coefficients((9, 4)),
            "odd degrees from 3 to 13, got \\(9, 4\\)",
        ),
        (lambda: polar.polar_express_coefficients(()), "odd degrees"),
    ],
)
def test_bad_values_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (polar.Halley, "rtol"),
        (polar.Randomized, "rank"),
        (lambda n: polar.NewtonSchulz(steps=n), "steps"),
    ],
)
def test_an_array_in_place_of_a_number_is_told_of_static_args(make, name):
    """So they arrive under optax.inject_hyperparams, traced or not."""
    for call in (make, jax.jit(lambda value: make(value) and value)):
        with pytest.raises(TypeError, match=f'{name} must be a Python value.*"{name}" to static'):
            call(jnp.asarray(4))


RTOL = 1e-2
SPECTRA = {
    "distinct": np.linspace(1, 0.5, 12),
    "equal": np.ones(12),
    "pairs": np.repeat(np.linspace(1, 0.5, 6), 2),
    "some cut": np.r_[np.linspace(1, 0.5, 8), np.full(4, 1e-3)],
    "of low rank": np.r_[np.ones(8), np.zeros(4)],
}


def polar_with_cut(matrix):
    """U V^H over the singular values above RTOL, complex or not, in double precision."""
    u, s, vh = np.linalg.svd(matrix, full_matrices=False)
    return u[:, s > RTOL] @ vh[s > RTOL]


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("name", SPECTRA)
def test_derivative(name, dtype):
    """Along a random direction, against central differences in float64; 1e-3 of the largest slope.

    Rounding of the entries moves slopes by some eps times the inverse of the least gap, 2 at worst.
    """
    matrix = matrices.with_spectrum((12, 20), SPECTRA[name], 0, dtype)
    direction = matrices.with_spectrum((12, 20), np.ones(12), 1, dtype)
    _, actual = jax.jvp(
        lambda x: polar.polar_factor(x, polar.SVD(RTOL)),
        (jnp.asarray(matrix),),
        (jnp.asarray(direction),),
    )
    double = np.complex128 if dtype == np.complex64 else np.float64
    step = 1e-6 * direction.astype(double)
    plus, minus = (polar_with_cut(matrix.astype(double) + s) for s in (step, -step))
    expected = (plus - minus) / 2e-6
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-3 * np.abs(expected).max())


def test_reverse_mode_is_the_adjoint_of_forward_mode():
    matrix, direction, weights = (
        jnp.asarray(matrices.with_spectrum((12, 20), np.ones(12), seed)) for seed in range(3)
    )
    _, forward = jax.jvp(lambda x: polar.polar_factor(x, polar.SVD()), (matrix,), (direction,))
    reverse = jax.grad(lambda x: jnp.vdot(weights, polar.polar_factor(x, polar.SVD())))(matrix)
    np.testing.assert_allclose(jnp.vdot(weights, forward), jnp.vdot(reverse, direction), rtol=1e-4)


def test_second_derivative():
    """Of distinct singular values, against differences of the first one in float64.

    Those are off by the square of their step, 1e-8, and round-off over the step, 1e-11.
    """
    matrix, direction, weights = (
        matrices.with_spectrum((6, 9), spectrum, seed, np.float64)
        for seed, spectrum in enumerate((np.linspace(2, 1, 6), np.ones(6), np.ones(6)))
    )
    with helpers.enable_x64(True):
        slope = jax.jit(jax.grad(lambda x: jnp.vdot(weights, polar.polar_factor(x, polar.SVD()))))
        _, actual = jax.jvp(slope, (matrix,), (direction,))
        expected = (slope(matrix + 1e-4 * direction) - slope(matrix - 1e-4 * direction)) / 2e-4
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-7)


def test_reference_agrees():
    """The ruler of this module and that of the others."""
    matrix = matrices.with_spectrum((12, 20), SPECTRA["some cut"])
    np.testing.assert_allclose(
        polar_with_cut(matrix.astype(np.float64)), helpers.polar64(matrix, RTOL), atol=1e-12
    )
