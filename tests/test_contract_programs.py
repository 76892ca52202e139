"""The Optax contract: every transformation in every kind of program."""

import importlib.util
import re
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from contract import (
    GRADS,
    PARAMS,
    STEPS,
    TABLE,
    at,
    close,
    draw,
    jitted,
    loop,
    plain,
    promise,
    rows,
    run,
    scanned,
)
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from egd_optax import egd, polar

pytestmark = pytest.mark.usefixtures("quick_compilation")


@promise
def test_dtypes(name):
    """Leaves of several dtypes keep them, and differ from float32 by their roundings alone.

    The reference starts from the same numbers. Half an eps of the largest entry for each of decay,
    factor, step and rate; two halves more where an average is kept in the dtype.
    """
    dtypes = {"first": "bfloat16", "second": "bfloat16", "bias": "float16", "scalar": "float32"}

    def cast(tree):
        return {name: leaf.astype(dtypes[name]) for name, leaf in tree.items()}

    low = cast(GRADS), cast(PARAMS)
    _, updates = run(name, TABLE[name].make(), *low)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, low[0])
    chex.assert_tree_all_finite(updates)
    _, expected = scanned(name)(*optax.tree.cast(low, jnp.float32))
    for leaf, update in updates.items():
        rounding = float(jnp.finfo(update.dtype).eps) * np.abs(expected[leaf]).max()
        atol = 2e-5 + (2 + TABLE[name].copies) * rounding
        close(update.astype(jnp.float32), expected[leaf], atol=atol)


@promise
def test_complex(name):
    """A phase on gradients and parameters comes back on the updates."""
    phase = jnp.asarray(np.exp(0.7j), jnp.complex64)

    def turn(tree):
        return jax.tree.map(lambda leaf: phase * leaf.astype(phase.dtype), tree)

    _, updates = run(name, TABLE[name].make(), turn(GRADS), turn(PARAMS))
    expected = turn(plain(name)[1])
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, expected)
    close(updates, expected, atol=1e-4)


def odd(name):
    tree = {"matrix": jnp.ones((2, 3)), "none": None, "masked": optax.MaskedNode()}
    tree |= {"empty": jnp.zeros((0, 3)), "zeros": jnp.zeros((2, 3)), "low": jnp.ones(3, "bfloat16")}
    return (
        tree if "integers" in TABLE[name].skips else tree | {"integers": jnp.ones((2, 2), "int32")}
    )


@pytest.mark.parametrize("name", rows())
def test_integers(name):
    """Integers, None, masked, empty and zero leaves: kept or finite, the state's types stable."""
    transformation, tree = TABLE[name].make(), odd(name)
    update, start = jax.jit(transformation.update), transformation.init(tree)
    updates, state = update(tree, start, tree)
    updates, state = update(tree, state, tree)
    chex.assert_trees_all_equal_shapes_and_dtypes((updates, state), (tree, start))
    chex.assert_tree_all_finite(updates)
    np.testing.assert_array_equal(updates["zeros"], 0)
    if "integers" in tree:
        np.testing.assert_array_equal(updates["integers"], tree["integers"])


@promise
def test_loop(name):
    """A loop of jitted steps is traced and compiled once, and equals scan."""
    transformation = TABLE[name].make()
    state, updates = loop(jitted(name), transformation.init, GRADS, PARAMS)
    assert jitted(name)._cache_size() == 1
    expected_state, expected = plain(name)
    close(updates, expected)
    close(state, expected_state, atol=1e-4)


@promise
def test_donation(name):
    """Updates and new state take the buffers of gradients and old state, all of them."""
    given = at(GRADS, 0), TABLE[name].make().init(PARAMS)
    leaves = jax.tree.leaves(given)
    memory = jitted(name).lower(*given, PARAMS).compile().memory_analysis()
    assert memory.alias_size_in_bytes == sum(leaf.nbytes for leaf in leaves)
    updates, _ = jitted(name)(*given, PARAMS)
    assert all(leaf.is_deleted() for leaf in leaves)
    close(updates, at(plain(name)[1], 0))


@promise
def test_vmap(name):
    """Two seeds at once equal each."""
    seeds = [(draw(2 + seed, (STEPS,)), draw(4 + seed)) for seed in (0, 1)]
    both = jax.jit(jax.vmap(scanned(name)))(
        *jax.tree.map(lambda *leaves: jnp.stack(leaves), *seeds)
    )
    for index, (grads, params) in enumerate(seeds):
        close(at(both[1], index), scanned(name)(grads, params)[1], atol=1e-4)


@promise
def test_replication(name):
    """Eight devices average their gradients: the type system finds one state on all of them."""
    transformation = TABLE[name].make()
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))

    def step(grads, params):
        mean = jax.lax.pmean(at(grads, 0), "x")
        return transformation.update(mean, transformation.init(params), params)

    specs = {"in_specs": (PartitionSpec("x"), PartitionSpec()), "out_specs": PartitionSpec()}
    noise = jax.tree.map(lambda leaf: leaf - leaf.mean(0, keepdims=True), draw(2, (8,)))
    grads = jax.tree.map(lambda leaf, each: leaf[None] + each, at(GRADS, 0), noise)
    updates, _ = jax.jit(jax.shard_map(step, mesh=mesh, **specs))(grads, PARAMS)
    close(updates, at(plain(name)[1], 0), atol=1e-4)


@promise
def test_host_arrays(name):
    """Eager, on arrays of NumPy."""
    transformation = TABLE[name].make()
    grads, params = jax.device_get((at(GRADS, 0), PARAMS))
    updates, _ = transformation.update(grads, transformation.init(params), params)
    close(updates, at(plain(name)[1], 0))


@promise
def test_abstract_init(name):
    """Shapes suffice for init; types are the same whether it is traced or not, and after steps."""
    init = TABLE[name].make().init
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), PARAMS)
    types = jax.tree.map(jax.typeof, init(PARAMS))
    assert jax.tree.map(jax.typeof, init(shapes)) == types
    chex.assert_trees_all_equal_shapes_and_dtypes(jax.eval_shape(init, PARAMS), init(PARAMS))
    assert jax.tree.map(jax.typeof, plain(name)[0]) == types


@promise
def test_sharding_in_types(name):
    """With explicit axes, state and updates have the same types before and after, traced or not."""
    transformation = TABLE[name].make()
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Explicit,) * 2)
    specs = {"first": ("x", "y"), "second": (None, "x"), "bias": ("x",), "scalar": ()}

    def types(function, *trees):
        return jax.make_jaxpr(function)(*trees).out_avals

    with jax.set_mesh(mesh):
        params = {
            leaf: jax.device_put(PARAMS[leaf], NamedSharding(mesh, PartitionSpec(*spec)))
            for leaf, spec in specs.items()
        }
        state = transformation.init(params)
        given = [jax.typeof(leaf) for leaf in jax.tree.leaves((params, state))]
        assert types(transformation.update, params, state, params) == given
        traced = jax.jit(transformation.init)(params)
        assert [jax.typeof(leaf) for leaf in jax.tree.leaves(traced)] == given[len(params) :]


@pytest.mark.parametrize("name", ["subspace", *(n for n, case in TABLE.items() if case.copies)])
def test_sharding(name):
    """With automatic axes, updates and copies of the parameters keep their layout."""
    transformation = TABLE[name].make()
    mesh = jax.make_mesh((2, 2), ("x", "y"), axis_types=(AxisType.Auto,) * 2)
    specs = {"first": ("x", "y"), "second": (None, "x"), "bias": ("x",), "scalar": ()}
    shardings = {leaf: NamedSharding(mesh, PartitionSpec(*spec)) for leaf, spec in specs.items()}
    params, grads = (jax.device_put(tree, shardings) for tree in (PARAMS, at(GRADS, 0)))
    update = jax.jit(transformation.update)
    updates, state = update(grads, jax.jit(transformation.init)(params), params)
    close(updates, at(plain(name)[1], 0), atol=1e-4)
    later, after = update(grads, state, params)

    def same_layout(leaf, sharding):
        return leaf.sharding.is_equivalent_to(sharding, leaf.ndim)

    kept = jax.tree.map(same_layout, later, shardings)
    kept_states = jax.tree.map(lambda a, b: same_layout(a, b.sharding), after, state)
    assert jax.tree.leaves((kept, kept_states)) == [True] * len(jax.tree.leaves((later, after)))
    assert len(jax.tree.leaves(after)) > len(PARAMS) * TABLE[name].copies


ROWS: list[dict] = [
    {},  # a learning rate and nothing else
    {"momentum": 0.9, "nesterov": True, "method": polar.SubspaceIteration(2)},
    {"weight_decay": 1e-4, "decay": "decoupled", "method": polar.Halley()},
]


def three_axes(dtype):
    """A target of the same kind as Optax's, with three axes and no name that explains them."""
    final = jnp.array([[[3.0, -2.0], [1.0, 4.0]], [[0.5, 1.0], [-1.0, 2.0]]], dtype)
    return jnp.zeros_like(final), final, lambda params: jnp.sum((params - final) ** 2)


def optax_contract(module):
    """The module of tests in Optax's wheel, its table of optimizers replaced by `ROWS`.

    Its decorators read the table at import, so a second copy is made under another `product`;
    targets (and ours) and checks stay Optax's own. Where there are no targets, little is whitened:
    the row with a momentum, and the first of each list of dtypes, stand for all.
    """
    product = parameterized.product
    rows = tuple(
        {"opt_name": "egd", "opt_kwargs": {"learning_rate": 1e-3, **row}}
        | {"wrapper_name": None, "wrapper_kwargs": None}
        for row in ROWS
    )
    spec = importlib.util.find_spec(module)
    copy = importlib.util.module_from_spec(spec)

    def rows_product(*tables, target=(), **grid):
        if target:
            return product(rows, target=(*target, three_axes), **grid)
        return product(rows[1:2], **{name: values[:1] for name, values in grid.items()})

    with mock.patch.object(parameterized, "product", rows_product):
        spec.loader.exec_module(copy)
    copy._get_opt_factory = {"egd": egd}.__getitem__
    return copy


# Some of Optax's targets are one vector.
@pytest.mark.filterwarnings("ignore:egd whitens nothing here")
@pytest.mark.usefixtures("optax_promotes")
class TestContributed(optax_contract("optax.contrib._common_test").ContribTest):
    """Optax's own checks of an optimizer, convergence to a minimum among them."""

    def test_the_targets_of_three_axes_are_among_them(self):
        names = [name for name in dir(self) if re.fullmatch(r"test_optimizers\d+", name)]
        assert len(names) == 5 * len(ROWS)
