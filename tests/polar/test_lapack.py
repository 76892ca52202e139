"""No program on CPU hands LAPACK a batch: two of them can hang for ever. Tolerances."""

import functools
import os
import re
import subprocess
import sys

import helpers
import jax
import jax.numpy as jnp
import matrices
import numpy as np
import pytest
from helpers import METHODS
from jax.sharding import PartitionSpec

from egd_optax import polar
from egd_optax.polar import _lapack
from egd_optax.polar._lapack import inverse
from egd_optax.polar._linalg import adjoint, resolve_rtol, working_dtype
from egd_optax.polar._stacks import map_stack

SHAPE = (8, 24, 48)  # above the size from which Auto takes Halley
DECOMPOSITIONS = {
    "svd": _lapack.svd,
    "eigh": lambda x: _lapack.eigh(x @ adjoint(x)),
    "eigvalsh": lambda x: _lapack.eigvalsh(x @ adjoint(x)),
    "orthonormal": lambda x: _lapack.orthonormal(adjoint(x)),
    "inverse_of_lower": lambda x: _lapack.inverse_of_lower(jnp.tril(x @ adjoint(x))),
    "inverse": lambda x: inverse(x @ adjoint(x)),
}
FUNCTIONS = DECOMPOSITIONS | {
    repr(method): functools.partial(polar.polar_factor, method=method)
    for method in METHODS
    if not isinstance(method, polar.NewtonSchulz)  # nothing but products
}


def lapack_calls(function, x):
    """Shapes of the operands of each LAPACK or BLAS call, as the CPU's program has them."""
    text = jax.jit(function).trace(x).lower(lowering_platforms=("cpu",)).as_text()
    calls = re.findall(r"custom_call @(?:lapack|blas)_\w+\(.*: \((.*)\) ->", text)
    return [
        [tuple(map(int, re.findall(r"(\d+)x", operand))) for operand in re.findall("<(.*?)>", call)]
        for call in calls
    ]


def scalar(function):
    """A sum over cubes of all that `function` returns, for derivatives that do not vanish."""
    return lambda x: sum(jnp.sum(jnp.real(y) ** 3) for y in jax.tree.leaves(function(x)))


def along(function):
    return lambda x: jax.jvp(function, (x,), (jnp.cos(x),))[1]


def programs(function):
    """The orders in which users compose transforms, over a stack of matrices."""
    slope = jax.grad(scalar(function))
    return {
        "vmap": jax.vmap(function),
        "vmap of vmap": lambda x: jax.vmap(jax.vmap(function))(x.reshape(4, 2, *x.shape[1:])),
        "vmap of grad": jax.vmap(slope),
        "grad of vmap": jax.grad(scalar(jax.vmap(function))),
        "vmap of jvp": jax.vmap(along(function)),
        "jvp of vmap": along(jax.vmap(function)),
        "vmap of jvp of grad": jax.vmap(along(slope)),
        "map_stack": functools.partial(map_stack, function),
        "vmap of map_stack": lambda x: jax.vmap(functools.partial(map_stack, function))(
            x.reshape(4, 2, *x.shape[1:])
        ),
        "eight devices": on_eight_devices(jax.vmap(function)),
        "vmap of grad on eight devices": on_eight_devices(jax.vmap(slope)),
    }


def on_eight_devices(function):
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    each = jax.shard_map(
        function, mesh=mesh, in_specs=PartitionSpec("d"), out_specs=PartitionSpec("d")
    )
    return lambda x: each(jnp.concatenate([x, x]))


# Auto is Halley here; the two sketches call the same decompositions.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow)
        if name.startswith(("Randomized", "NewtonSchulz"))  # the latter calls none
        else name
        for name in FUNCTIONS
        if "Auto" not in name
    ],
)
def test_no_call_gets_a_batch(name):
    function = FUNCTIONS[name]
    stacks = {"stack": function, "grad of stack": jax.grad(scalar(function))}
    stacks = {} if name in DECOMPOSITIONS else stacks  # which are of one matrix
    for order, program in (programs(function) | stacks).items():
        calls = lapack_calls(program, jax.ShapeDtypeStruct(SHAPE, jnp.float32))
        assert calls or name == "eigvalsh", order  # which has no derivatives
        for shapes in calls:
            batched = [shape for shape in shapes if len(shape) > 2 and shape[0] > 1]
            assert not batched, f"{order}: {shapes}"


def test_a_function_of_ones_own_gets_no_batch():
    """Its own calls of LAPACK, under a user's vmap; not within a vmap of its derivative."""

    def factor(x):
        u, _, vh = jnp.linalg.svd(x, full_matrices=False)
        return u @ vh

    whiten = functools.partial(polar.polar_factor, method=factor)
    x = jax.ShapeDtypeStruct(SHAPE, jnp.float32)
    for program in (whiten, jax.vmap(whiten), jax.grad(scalar(whiten))):
        for shapes in lapack_calls(program, x):
            assert all(len(shape) == 2 or shape[0] == 1 for shape in shapes if len(shape) > 1)


def test_the_check_sees_a_batch():
    """A wrong ruler measures nothing."""
    calls = lapack_calls(jnp.linalg.eigvalsh, jax.ShapeDtypeStruct((3, 8, 8), jnp.float32))
    assert (3, 8, 8) in calls[0]


def test_a_batch_gives_each_matrix_its_own_result():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((3, 12, 20)), jnp.float32)
    for function in DECOMPOSITIONS.values():
        each = [function(matrix) for matrix in x]
        expected = jax.tree.map(lambda *parts: jnp.stack(parts), *each)
        for actual in (jax.vmap(function)(x), map_stack(function, x)):
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5),
                actual,
                expected,
            )


# Of the decompositions, quantities that are the same whatever signs and phases LAPACK picks.
SMOOTH = {
    "svd": lambda x: (_lapack.svd(x)[1], phase_free(_lapack.svd(x)[0], _lapack.svd(x)[2])),
    "eigh": lambda x: (
        _lapack.eigh(x @ adjoint(x))[0],
        phase_free(*[_lapack.eigh(x @ adjoint(x))[1]] * 2, conjugate=True),
    ),
    "orthonormal": lambda x: jnp.abs(_lapack.orthonormal(adjoint(x))) ** 2,
    "inverse_of_lower": DECOMPOSITIONS["inverse_of_lower"],
    "inverse": DECOMPOSITIONS["inverse"],
}


def phase_free(left, right, conjugate=False):
    """Products u_ik v_kj of each direction k: its sign or phase falls out."""
    return left[:, :, None] * (jnp.conj(right).mT if conjugate else right)[None]


@pytest.mark.parametrize("dtype", [np.float32, np.complex64])
@pytest.mark.parametrize("name", SMOOTH)
def test_derivatives_of_decompositions(name, dtype):
    """First ones against central differences in float32 of step 1e-2: errors of some 1e-3."""
    x = jnp.asarray(matrices.with_spectrum((4, 7), [4.0, 3.0, 2.0, 1.0], 0, dtype))
    direction = jnp.asarray(matrices.with_spectrum((4, 7), np.ones(4), 1, dtype))
    actual = jax.jvp(SMOOTH[name], (x,), (direction,))[1]
    step = jnp.asarray(1e-2, dtype) * direction
    plus, minus = SMOOTH[name](x + step), SMOOTH[name](x - step)
    expected = jax.tree.map(lambda a, b: (a - b) / jnp.asarray(2e-2, a.dtype), plus, minus)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=5e-3, atol=5e-3), actual, expected
    )


def test_second_derivatives_go_through_the_same_rules():
    """The Hessian of sum(s^3), along a direction: forward over reverse and difference of slopes.

    In float64, where differences are off by the square of their step, 1e-8, and by round-off over
    the step, 1e-11.
    """
    x = matrices.with_spectrum((4, 7), [4.0, 3.0, 2.0, 1.0], 0, np.float64)
    direction = matrices.with_spectrum((4, 7), np.ones(4), 1, np.float64)
    with helpers.enable_x64(True):
        slope = jax.grad(lambda x: jnp.sum(_lapack.svd(x)[1] ** 3))
        actual = jax.jvp(slope, (x,), (direction,))[1]
        expected = (slope(x + 1e-4 * direction) - slope(x - 1e-4 * direction)) / 2e-4
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-7)


SEVERAL = """
import jax, sys
from egd_optax import polar
method = getattr(polar, sys.argv[1])()
first = [jax.random.normal(jax.random.key(m), (4, m, 128)) for m in (86, 43)]

def run(matrices):
    def step(sums, _):
        both = [x + 0.1 * y for x, y in zip(matrices, sums)]
        return [polar.polar_factor(x, method) for x in both], None
    return jax.lax.scan(step, matrices, length=50)[0]

def loss(matrices):
    return sum((x**3).sum() for x in (polar.polar_factor(y, method) for y in matrices))

jax.block_until_ready(jax.jit(jax.vmap(run))(first))
slope = jax.jit(jax.vmap(jax.grad(loss)))
for _ in range(20):
    jax.block_until_ready(slope(first))
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["Halley", "SVD"])
def test_several_leaves_at_once_do_not_hang(method):
    """Values and gradients; with the devices and threads that a user has."""
    ours = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", SEVERAL, method], env=ours, check=True, timeout=120)


@pytest.mark.parametrize(
    ("dtype", "rtol"),
    [(jnp.float32, 1e-5), (jnp.complex64, 1e-5), (jnp.float64, 1.9e-14), (jnp.bfloat16, 2**-7)],
)
def test_default_tolerance(dtype, rtol):
    np.testing.assert_allclose(resolve_rtol(None, dtype), rtol, rtol=0.02)
    assert resolve_rtol(0.25, dtype) == 0.25


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_rounding_to_a_short_dtype_stays_below_its_tolerance(dtype):
    """Singular values move by at most its norm: .85 eps / 2 sigma_1 for flat spectra, the worst."""
    for shape in ((64, 64), (48, 160), (256, 256)):
        flat = matrices.with_spectrum(shape, np.ones(min(shape)))
        rounding = np.float64(np.asarray(jnp.asarray(flat, dtype), np.float32)) - flat
        assert np.linalg.norm(rounding, 2) <= 0.9 * resolve_rtol(None, dtype) / 2


def test_methods_compute_short_dtypes_by_the_tolerance_of_float32():
    """A direction at 1e-3 sigma_1 is below bfloat16's own tolerance, and still whitened."""
    assert working_dtype(jnp.bfloat16) == jnp.float32
    diagonal = jnp.diag(jnp.asarray([1.0, 2.0**-10, 0.0], jnp.bfloat16))
    for method in (polar.SVD(), polar.Halley()):
        factor = np.asarray(polar.polar_factor(diagonal, method), np.float32)
        np.testing.assert_array_equal(factor, np.diag([1.0, 1.0, 0.0]))
