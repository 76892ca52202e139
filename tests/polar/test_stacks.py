"""Stacks of matrices, and methods of a user's own."""

import dataclasses
import functools
import inspect

import helpers
import jax
import jax.numpy as jnp
import matrices
import numpy as np
import pytest
from helpers import DISTINCT, METHODS, SKETCHES, factor
from hypothesis import given, settings
from hypothesis import strategies as st

from egd_optax import diagnostics, polar, scale_by_egd

SIX = st.lists(st.floats(-25.0, 25.0), min_size=6, max_size=6)
# One program on the same numbers, but XLA may fuse a loop's body in another way: some eps, times
# the condition of the spectra below, 1e2, or the inverse of their gaps.
SAME = {"rtol": 0, "atol": 1e-4}


def six_matrices(scales, seed):
    """Of one shape, each with directions and a scale of its own, and one of them zero."""
    rng = np.random.default_rng(seed)
    spectra = np.logspace(0, -2, 24) * 10.0 ** np.array(scales)[:, None]
    spectra[seed % 6] = 0
    return np.stack([matrices.with_spectrum((24, 40), spectrum, rng) for spectrum in spectra])


@functools.partial(jax.jit, static_argnums=1)
def vmapped(stack, method):
    return jax.vmap(lambda matrix: polar.polar_factor(matrix, method))(stack)


@pytest.mark.parametrize(
    "method",
    [pytest.param(x, marks=pytest.mark.slow) if x in SKETCHES else x for x in DISTINCT],
    ids=repr,
)
@given(scales=SIX, seed=st.integers(0, 2**16))
@settings(max_examples=5, deadline=None)
def test_batched_equals_each_slice(method, scales, seed):
    """Whatever its neighbors' scales."""
    stack = six_matrices(scales, seed)
    expected = np.stack([factor(matrix, method) for matrix in stack])
    batched = factor(stack.reshape(2, 3, 24, 40), method)
    np.testing.assert_allclose(batched.reshape(6, 24, 40), expected, **SAME)
    np.testing.assert_allclose(vmapped(stack, method), expected, **SAME)


@pytest.mark.parametrize("columns", [40, 300, 900])
def test_a_matrix_is_whitened_alike_in_a_batch_side_by_side_and_two_by_two(columns):
    """CPUs choose by the number of entries; a neighbor's NaN stays with it."""
    stack = np.random.default_rng(columns).standard_normal((3, 100, columns)).astype(np.float32)
    stack[1, 0, 0] = np.nan
    whitened = factor(stack, polar.Auto())
    for place in (0, 2):
        np.testing.assert_allclose(whitened[place], factor(stack[place], polar.Auto()), **SAME)
    assert np.isnan(whitened[1]).all()


@pytest.mark.parametrize("call", [polar.polar_factor, lambda g: diagnostics.polar_report(g, g)])
def test_a_tree_in_place_of_an_array_is_named(call):
    with pytest.raises(TypeError, match=r"one array, got a dict; .*jax\.tree\.map"):
        call({"kernel": jnp.ones((2, 3))})


@dataclasses.dataclass(frozen=True)
class Averaged(polar.PolarMethod):
    """The polar factor of a moving average: a method of one's own, with a state."""

    decay: float = 0.5

    def init(self, matrix):
        return jnp.zeros(matrix.shape, matrix.dtype)

    def update(self, matrix, average):
        average = self.decay * average + (1 - self.decay) * matrix
        u, _, vh = jnp.linalg.svd(average, full_matrices=False)
        return u @ vh, average


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_method_of_ones_own_keeps_its_state_over_steps_in_float32(dtype):
    first, second = (
        jnp.asarray(matrices.with_spectrum((12, 20), np.linspace(1, 0.5, 12), seed), dtype)
        for seed in (0, 1)
    )
    transformation = scale_by_egd(Averaged())
    _, state = transformation.update([first], transformation.init([first]))
    (actual,), _ = transformation.update([second], state)
    assert actual.dtype == dtype
    both = [np.float64(x.astype(jnp.float32)) for x in (first, second)]
    rounding = 0 if dtype == jnp.float32 else float(jnp.finfo(dtype).eps)
    expected = helpers.polar64(both[0] / 4 + both[1] / 2)
    np.testing.assert_allclose(np.float64(actual), expected, rtol=0, atol=1e-4 + rounding)


@dataclasses.dataclass(frozen=True)
class OfWide(polar.PolarMethod):
    """(X X^H)^(-1/2) X, where the Gram matrix has an inverse."""

    def init(self, matrix):
        return ()

    def update(self, matrix, state):
        values, vectors = jnp.linalg.eigh(matrix @ matrix.T)
        return vectors / jnp.sqrt(values)[None] @ vectors.T @ matrix, state


def test_a_method_of_ones_own_gets_tall_matrices_transposed_and_a_function_as_they_are():
    tall = matrices.with_spectrum((9, 3), [3.0, 2.0, 1.0])
    for matrix in (tall, tall.T):
        actual = polar.polar_factor(matrix, OfWide())
        # Condition 3, which the Gram matrix squares: 9 eps.
        np.testing.assert_allclose(actual, helpers.polar64(matrix), rtol=0, atol=1e-5)
    seen = []
    polar.polar_factor(tall, lambda matrix: seen.append(matrix.shape) or matrix)
    assert {*seen} == {(9, 3)}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(eq=False)
class Memory:
    """A state that compares by identity."""

    count: jax.Array


@dataclasses.dataclass(frozen=True)
class Remembering(polar.PolarMethod):
    state: str

    def init(self, matrix):
        return {
            "none": None,
            "number": 0,
            "numpy": np.zeros(2, np.float32),
            "key": jax.random.key(0),
            "class": Memory(jnp.int32(0)),
        }[self.state]

    def update(self, matrix, state):
        return matrix, jax.tree.map(lambda x: x, state)


@pytest.mark.parametrize("state", ["none", "number", "numpy", "key", "class"])
def test_any_tree_of_arrays_is_a_state(state):
    transformation = scale_by_egd(Remembering(state))
    updates = before = [jnp.ones((2, 3)), jnp.ones((2, 3))]
    after = transformation.init(before)
    for _ in range(2):
        updates, after = jax.jit(transformation.update)(updates, after)
    jax.tree.map(np.testing.assert_array_equal, updates, before)


@dataclasses.dataclass(frozen=True)
class Wrong(Averaged):
    returns: str = ""

    def update(self, matrix, average):
        wrong = {
            "no state": matrix,
            "shape": (matrix[0], average),
            "integers": (matrix.astype(jnp.int32), average),
            "complex": (matrix.astype(jnp.complex64), average),
            "state": (matrix, average[0]),
        }
        return wrong[self.returns]


@pytest.mark.parametrize(
    ("returns", "error", "says"),
    [
        ("no state", TypeError, "factor and the next state, got"),
        ("shape", ValueError, r"shape and kind.*got float32\[2,3\].*returned .*float32\[3\]"),
        ("integers", ValueError, "shape and kind.*returned .*int32"),
        ("complex", ValueError, "shape and kind.*returned .*complex64"),
        ("state", ValueError, r"a state like .*got .*float32\[2, 3\].* and float32\[3\]"),
    ],
)
def test_a_method_of_ones_own_is_told_what_is_wrong(returns, error, says):
    with pytest.raises(error, match=says):
        polar.polar_factor(jnp.ones((2, 3)), Wrong(returns=returns))


def test_bad_types_are_refused():
    with pytest.raises(TypeError, match="must hash"):
        polar.polar_factor(jnp.ones((2, 2)), Averaged(decay=[0.5]))
    with pytest.raises(ValueError, match="imaginary"):
        polar.polar_factor(jnp.ones((2, 2), jnp.complex64), polar.NewtonSchulz(dtype=jnp.float32))
    with pytest.raises(TypeError, match="int32"):
        polar.polar_factor(jnp.ones((2, 2), jnp.int32))
    with pytest.raises(ValueError, match=r"shape and kind.*float32\[2,2\]"):
        polar.polar_factor(jnp.ones((2, 2)), lambda g: g[0])


def test_a_method_without_one_of_its_functions_cannot_be_made():
    class Half(polar.PolarMethod):
        def init(self, matrix):
            return ()

    with pytest.raises(TypeError, match="update"):
        Half()


def test_no_method_is_left_out():
    """Of those that polar exports, as classes with the two functions of a method."""
    exported = {
        thing
        for thing in vars(polar).values()
        if inspect.isclass(thing) and issubclass(thing, polar.PolarMethod)
    }
    assert exported - {polar.PolarMethod} == {type(method) for method in METHODS}
