"""The polynomial class: gains of the composed polynomial, whatever the runs."""

import helpers
import jax
import jax.numpy as jnp
import matrices
import numpy as np
import optax
import pytest
from helpers import factor

from egd_optax import polar
from egd_optax.polar import _coefficients as coefficients
from egd_optax.polar._linalg import commuting_product


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
@pytest.mark.parametrize("scale", [1e-30, 1e-6, 1e30])
def test_scale_invariance_of_an_iteration_in_a_short_dtype(dtype, scale):
    """In the iteration's own dtype the largest entry of a gradient need not be representable."""
    matrix = matrices.with_spectrum((48, 160), np.linspace(1, 0.3, 48))
    method = polar.NewtonSchulz("standard", dtype=dtype)
    expected = factor(matrix, method)
    actual = factor(matrix * np.float32(scale), method)
    # Five steps amplify the rounding of the entries, eps of the dtype each.
    np.testing.assert_allclose(actual, expected, rtol=0, atol=7 * float(jnp.finfo(dtype).eps))


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("polar_express", jnp.bfloat16),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                ("polar_express", jnp.float16),
                ("standard", jnp.bfloat16),
                ("dion", jnp.bfloat16),
            )
        ),
    ],
)
def test_an_iteration_in_a_short_dtype_is_as_good_as_plain_steps(name, dtype):
    """Steps on the Gram matrix alone would multiply its round-off, and diverge in bfloat16."""
    matrix = matrices.with_spectrum((194, 512), np.geomspace(1, 1e-3, 194))
    rows = coefficients.TABLES[name]
    u, s, vh = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    expected = (u * helpers.composed(rows, s / np.linalg.norm(s))) @ vh
    plain = jnp.asarray(matrix / np.linalg.norm(matrix), dtype)
    for row in rows:
        a, b, c = (jnp.asarray(number, dtype) for number in row)
        square = plain @ plain.T
        plain = a * plain + (b * square + c * (square @ square)) @ plain
    ours, theirs = (
        np.linalg.norm(np.asarray(result, np.float64) - expected, 2)
        for result in (factor(matrix, polar.NewtonSchulz(name, dtype=dtype)), plain)
    )
    assert ours <= 1.5 * theirs  # .81 to 1.02 were measured; round-off is chance


@pytest.mark.parametrize(
    ("shape", "least"),
    [
        ((48, 160), 2.5e-3),
        pytest.param((512, 2048), 7.5e-3, marks=pytest.mark.slow),
    ],
)
def test_eight_steps_of_polar_express_are_within_1e_6_of_one_in_float32(shape, least):
    """The promise of docs/how-to-choose.md, on [1e-3, 1] of the Frobenius norm."""
    spectrum = np.geomspace(1, least, shape[0])
    matrix = matrices.with_spectrum(shape, spectrum)
    assert spectrum[-1] >= 1e-3 * np.linalg.norm(matrix)
    gains, _ = helpers.gain_matrix(matrix, factor(matrix, polar.NewtonSchulz()))
    np.testing.assert_allclose(np.diag(gains), 1, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "counts"),
    [((48, 160), (1, 2, 3, 4, 5, 8, 12)), ((64, 64), (1, 12)), ((521, 920), (5,))],
    ids=["wide", "square", "blocks"],
)
def test_any_number_of_steps_is_the_composed_polynomial(shape, counts):
    """Wide matrices take steps on the Gram matrix, by two, then threes: each remainder counts.

    Large ones multiply by blocks, which 521 rows do not divide evenly.
    """
    spectrum = np.logspace(0, -2.5, shape[0])
    matrix, relative = matrices.with_spectrum(shape, spectrum), spectrum / np.linalg.norm(spectrum)
    rows = coefficients.TABLES["polar_express"]
    for steps in counts:
        gains, _ = helpers.gain_matrix(matrix, factor(matrix, polar.NewtonSchulz(steps=steps)))
        expected = helpers.composed((*rows, *rows[-1:] * 9)[:steps], relative)
        message = f"{steps} steps"
        np.testing.assert_allclose(np.diag(gains), expected, rtol=0, atol=1e-4, err_msg=message)


@pytest.mark.parametrize("shape", [(48, 160), (64, 64), (521, 1042)], ids=repr)
def test_three_long_steps_are_the_composed_polynomial(shape):
    """Their terms cancel, and one Gram matrix serves all three where matrices are wide.

    In the spectral norm, with directions down to round-off: 2e-4 to 5e-4 were measured here, where
    products that mirror or transpose what is not quite Hermitian would make it 5e-3 to 1e-1.
    """
    spectrum = np.geomspace(1, 1e-6, shape[0])
    matrix = matrices.with_spectrum(shape, spectrum)
    method = polar.NewtonSchulz("three_steps")
    u, s, vh = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    expected = (u * helpers.composed(method.rows, s / np.linalg.norm(s))) @ vh
    assert np.linalg.norm(factor(matrix, method) - expected, 2) <= 1e-3


def test_three_long_steps_of_matrices_with_a_mean():
    """The composed polynomial is steep near 1, where a dominant direction has its value."""
    rows = polar.NewtonSchulz("three_steps").rows
    noise = np.random.default_rng(0).standard_normal((2, 64, 256))
    for matrix, bound in ((np.abs(noise[0]), 5e-3), (1 + 0.1 * noise[1], 1e-2)):
        u, s, vh = np.linalg.svd(matrix, full_matrices=False)
        expected = (u * helpers.composed(rows, s / np.linalg.norm(s))) @ vh
        actual = factor(matrix.astype(np.float32), polar.NewtonSchulz("three_steps"))
        assert np.linalg.norm(actual - expected, 2) <= bound


@pytest.mark.parametrize(("table", "highest"), [("three_steps", True), ("standard", False)])
def test_long_steps_ask_for_full_precision_on_accelerators(table, highest):
    """Their terms cancel; quintics are content with JAX's default."""
    function = jax.jit(polar.NewtonSchulz(table).factor)
    traced = function.trace(jax.ShapeDtypeStruct((8, 32), jnp.float32))
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all(("HIGHEST" in line) == highest for line in products)


@pytest.mark.parametrize("shape", [(48, 160), (48, 48)], ids=["wide", "square"])
def test_rows_of_any_length(shape):
    """Odd and even numbers of terms, and a step of degree 3 that needs no square."""
    rows = ((1.4, -0.4), (2.0, -1.5, 0.4, 0.1), (1.2, 0.3, -0.9, 0.2, 0.1, 0.1), (1.5, -0.5))
    spectrum = np.linspace(1, 0.1, 48)
    matrix = matrices.with_spectrum(shape, spectrum)
    gains, _ = helpers.gain_matrix(matrix, factor(matrix, polar.NewtonSchulz(rows)))
    expected = helpers.composed(rows, spectrum / np.linalg.norm(spectrum))
    np.testing.assert_allclose(np.diag(gains), expected, rtol=0, atol=1e-5)


def test_products_by_blocks_are_products():
    """And so are their derivatives; blocks that 523 rows do not divide evenly, complex entries."""
    rng = np.random.default_rng(0)
    half, turn = rng.normal(size=(2, 523, 523)) + 1j * rng.normal(size=(2, 523, 523))
    a, da = half + half.conj().T, turn + turn.conj().T

    def of(a):
        return commuting_product(a, a @ a)

    found, derivative = jax.jit(lambda a, da: jax.jvp(of, (a,), (da,)))(
        a.astype(np.complex64), da.astype(np.complex64)
    )
    expected = {"value": a @ a @ a, "derivative": da @ a @ a + a @ da @ a + a @ a @ da}
    for got, wanted in zip((found, derivative), expected.values(), strict=True):
        # round-off of 523 terms, twice
        np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * np.linalg.norm(wanted, 2))


def test_rows_that_shrink_small_values_do_not_lengthen_a_run():
    """The round-off of each step counts, however small a row's a makes that of the steps before."""
    spectrum = np.r_[1, 0.5, 0.3, np.geomspace(0.1, 1e-3, 45)]
    matrix = matrices.with_spectrum((48, 160), spectrum)
    rows = ((1.0, 0.0, 0.0), (0.0, 1.5, -0.5), *polar.polar_express_coefficients(8, lower=1e-9))
    gains, _ = helpers.gain_matrix(matrix, factor(matrix, polar.NewtonSchulz(rows)))
    expected = helpers.composed(rows, spectrum / np.linalg.norm(spectrum))
    # 4e-4 by single steps: the rows amplify round-off themselves. One run of all: 4e4.
    np.testing.assert_allclose(np.diag(gains), expected, rtol=0, atol=5e-3)


def optax_five_steps(matrix):
    row = jnp.asarray((3.4445, -4.7750, 2.0315), jnp.float32)
    return optax.contrib._muon.orthogonalize_via_newton_schulz(jnp.asarray(matrix), row, 5)


@pytest.mark.parametrize("kind", ["square", "wide"])
@pytest.mark.usefixtures("optax_promotes")
def test_five_steps_are_nearer_to_one_than_five_of_optax(kind):
    """Worst and mean |gain - 1| on spectra in [1e-3, 1] of the Frobenius norm."""
    shape = matrices.SHAPES[kind]
    k = min(shape)
    for spectrum in (np.geomspace(1, 3e-3, k), np.linspace(1, 1e-2, k), np.ones(k)):
        matrix = matrices.with_spectrum(shape, spectrum)
        assert spectrum[-1] >= 1e-3 * np.linalg.norm(matrix)
        ours, theirs = (
            np.abs(np.diag(helpers.gain_matrix(matrix, result)[0]) - 1)
            for result in (factor(matrix, polar.NewtonSchulz(steps=5)), optax_five_steps(matrix))
        )
        assert ours.max() <= min(theirs.max(), 0.16)  # the composed quintics: .154 against .529
        assert ours.mean() <= theirs.mean()


def test_more_steps_repeat_the_last_row_and_fewer_take_the_first():
    rows = coefficients.TABLES["dion"]
    assert polar.NewtonSchulz("dion", steps=7).rows == (*rows, rows[-1], rows[-1])
    assert polar.NewtonSchulz("dion", steps=2).rows == rows[:2]


@pytest.mark.parametrize(("alias", "name"), [("jordan", "standard"), ("you", "dion")])
def test_an_alias_is_the_same_table(alias, name):
    assert polar.NewtonSchulz(alias).rows == polar.NewtonSchulz(name).rows
