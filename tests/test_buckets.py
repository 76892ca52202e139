"""Leaves of one shape are one stack: nothing leaks, and every leaf comes back where it lay."""

import functools
import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import gradient, polar64
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from egd_optax import MatrixAxes, polar, scale_by_egd
from egd_optax._buckets import plan_buckets
from egd_optax._matrix_view import view_of

pytestmark = pytest.mark.usefixtures("quick_compilation")


def whitened(tree, *args, **kwargs):
    transformation = scale_by_egd(*args, **kwargs)
    return transformation.update(tree, transformation.init(tree))[0]


@pytest.mark.parametrize(
    ("limit", "sizes"),
    [(23, [1] * 5 + [3, 1]), (24, [2, 2, 1, 3, 1]), (36, [3, 2, 3, 1]), (99, [5, 3, 1])],
)
def test_stacks_are_bounded_and_a_leaf_is_never_divided(limit, sizes):
    leaves = [jnp.ones((3, 4))] * 5 + [jnp.ones((3, 4, 3)), jnp.ones((3, 4), jnp.bfloat16)]
    axes = [MatrixAxes(0, 1)] * 5 + [MatrixAxes(1, 2), MatrixAxes(0, 1)]
    views = [
        view_of(i, str(i), leaf.shape, a)
        for i, (leaf, a) in enumerate(zip(leaves, axes, strict=True))
    ]
    buckets = plan_buckets(views, leaves, limit)
    assert [sum(view.batch for view in bucket.views) for bucket in buckets] == sizes
    assert [view for bucket in buckets for view in bucket.views] == views


def test_over_a_mesh_a_stack_has_room_for_a_matrix_a_device():
    leaves = [jnp.ones((3, 4))] * 9
    views = [view_of(i, str(i), (3, 4), MatrixAxes(0, 1)) for i in range(9)]
    spread = types.SimpleNamespace(devices=8)
    buckets = plan_buckets(views, leaves, 1, spread)
    assert [len(bucket.views) for bucket in buckets] == [8, 1]


def test_the_method_is_traced_for_buckets_and_not_for_leaves():
    """Twice at most: CPUs take the matrices of a stack in turn, the others all at once."""
    traced = []

    def method(matrix):
        traced.append(matrix.shape)
        return matrix

    tree = [jnp.ones((3, 5)), jnp.ones((4, 3, 5)), jnp.ones((5, 3)), jnp.ones((3, 5))]
    step = jax.jit(functools.partial(whitened, method=method, axes=MatrixAxes(-2, -1)))
    step(tree)
    step(tree)
    assert set(traced) == {(3, 5), (5, 3)}
    assert max(traced.count(shape) for shape in traced) <= 2


@pytest.mark.parametrize("method", [polar.SVD(), polar.Randomized(4, seed=1)], ids=repr)
def test_bucketed_equals_unbucketed(method):
    """Nothing leaks between leaves of a stack, and no leaf changes its place."""
    tree = {name: gradient(seed=seed) for seed, name in enumerate("abc")}
    apart = whitened(tree, method, max_stack_size=1)
    chex.assert_trees_all_close(whitened(tree, method), apart, atol=1e-5)
    for name, leaf in tree.items():
        chex.assert_trees_all_close(apart[name], whitened([leaf], method)[0], atol=1e-5)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_sharding_comes_back(transform):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    shardings = [NamedSharding(mesh, PartitionSpec(*spec)) for spec in [("a", "b"), ("b", None)]]
    tree = [
        jax.device_put(gradient(seed=seed), sharding) for seed, sharding in enumerate(shardings)
    ]
    updates = transform(functools.partial(whitened, method=polar.SVD()))(tree)
    for leaf, update in zip(tree, updates, strict=True):
        assert update.sharding.is_equivalent_to(leaf.sharding, 2)
        np.testing.assert_allclose(update, polar64(leaf), rtol=0, atol=1e-4)


def test_one_leaf_a_stack_keeps_a_replicated_and_a_sharded_leaf_apart():
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    specs = PartitionSpec(), PartitionSpec("a", "b")
    tree = [jax.device_put(gradient(), NamedSharding(mesh, spec)) for spec in specs]
    for update, leaf in zip(
        jax.jit(functools.partial(whitened, max_stack_size=1))(tree), tree, strict=True
    ):
        assert update.sharding.is_equivalent_to(leaf.sharding, 2)


@pytest.mark.parametrize(
    ("method", "transform"),
    [
        (polar.SVD(), lambda f: f),
        (polar.SVD(), jax.jit),
        pytest.param(polar.SubspaceIteration(4), jax.jit, marks=pytest.mark.slow),
    ],
    ids=["eager", "jit", "jit with a state"],
)
def test_explicit_sharding_comes_back(method, transform):
    """With shardings in the types, whatever the layout: rows, columns, both, batch, none."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    specs = [("a", None), (None, "b"), ("a", "b"), (), (("a", "b"), None, None)]
    shapes = [(24, 40)] * 4 + [(8, 24, 40)]
    tree = [
        jax.device_put(np.broadcast_to(gradient(), shape), NamedSharding(mesh, PartitionSpec(*s)))
        for shape, s in zip(shapes, specs, strict=True)
    ]
    step = functools.partial(whitened, method=method, axes=MatrixAxes(-2, -1))
    expected = whitened([gradient()], method)[0]
    for leaf, update in zip(tree, transform(step)(tree), strict=True):
        assert update.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
        np.testing.assert_allclose(update, np.broadcast_to(expected, leaf.shape), rtol=0, atol=1e-4)


WIDE, SQUARE = {"up": (96, 384), "down": (384, 96), "out": (96, 96)}, {"out": (512, 512)}


@pytest.mark.parametrize(
    ("method", "dtype", "shapes", "layers", "work"),
    [
        *(
            (method, dtype, WIDE, 6, 10 * 96 * 384)  # four at once, each with less than three more
            for method in (polar.Auto(), polar.NewtonSchulz(steps=5))
            for dtype in ("float32", "bfloat16")
        ),
        (polar.Auto(), "float32", SQUARE, 3, 2 * 12 * 512**2),  # two at once, each with twelve
    ],
)
def test_temporaries_are_three_copies_of_the_leaves_at_most(method, dtype, shapes, layers, work):
    """The stacks before and after, and a third where leaves are donated: whitened in their place.

    The work on the matrices that are taken at once comes on top, in float32.
    """
    leaves = {
        f"{name}{layer}": jax.ShapeDtypeStruct(shape, dtype)
        for name, shape in shapes.items()
        for layer in range(layers)
    }
    optimizer = optax.chain(scale_by_egd(method), optax.trace(0.9))
    state = jax.eval_shape(optimizer.init, leaves)

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    donating = jax.jit(step, donate_argnums=(0, 1))
    memory = donating.lower(leaves, state, leaves).compile().memory_analysis()
    entries = sum(leaf.size for leaf in leaves.values())
    assert memory.temp_size_in_bytes <= 4 * (3 * entries + work)
    # the parameters and their average
    assert memory.alias_size_in_bytes == 2 * entries * jnp.dtype(dtype).itemsize


def test_one_slice_is_compiled_for_all_leaves(monkeypatch):
    """Where CPUs are alone, a stack's parts begin where no constant says; results are the same."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    tree = {name: gradient((8, 12), seed) for seed, name in enumerate("abc")}
    method = polar.NewtonSchulz(steps=2)
    optimizer = scale_by_egd(method)
    state = optimizer.init(tree)
    expected = {name: polar.polar_factor(leaf, method) for name, leaf in tree.items()}
    chex.assert_trees_all_close(jax.jit(optimizer.update)(tree, state)[0], expected, atol=1e-5)

    def length(tree):
        return sum(jnp.sum(leaf**3) for leaf in optimizer.update(tree, state)[0].values())

    two = jax.tree.map(lambda leaf: jnp.stack([leaf, -2 * leaf]), tree)
    both = jax.jit(jax.vmap(jax.grad(length)))(two)
    alone = {
        name: jax.grad(lambda leaf: jnp.sum(polar.polar_factor(leaf, method) ** 3))(leaf)
        for name, leaf in tree.items()
    }
    # the factor of -2 G is minus that of G, so its cube's derivative is half as large
    expected = jax.tree.map(lambda leaf: jnp.stack([leaf, leaf / 2]), alone)
    chex.assert_trees_all_close(both, expected, atol=1e-4)
