"""scale_by_egd: one gradient through the whole flow, and nnx around it."""

import functools
import logging

import chex
import jax
import jax.numpy as jnp
import matrices
import numpy as np
import optax
import pytest
import reference
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from egd_optax import MatrixAxes, diagnostics, egd, matching, polar, scale_by_egd
from egd_optax.models import TwoLayerMLP


def whitened(tree, *args, **kwargs):
    transformation = scale_by_egd(*args, **kwargs)
    return transformation.update(tree, transformation.init(tree))[0]


def gradients(seed=0, shape=(24, 40)):
    return matrices.with_spectrum(shape, np.logspace(0, -2, min(shape)), seed)


def network(seed=0):
    """Parameters and gradients like the paper's network, smaller."""
    rng = np.random.default_rng(seed)
    shapes = {"hidden": {"kernel": (26, 32), "bias": (32,)}, "readout": {"kernel": (32, 13)}}
    draw = functools.partial(jax.tree.map, is_leaf=lambda x: isinstance(x, tuple))
    return [
        draw(lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32), shapes)
        for _ in range(2)
    ]


def test_one_step_of_the_paper_equals_a_numpy_transcription():
    """W <- W - .7 polar(grad + 1e-4 W) on the first matrix, plain SGD with L2 on the rest."""
    params, grads = network()
    optimizer = optax.chain(
        optax.add_decayed_weights(1e-4),
        optax.masked(scale_by_egd(polar.SVD()), matching("hidden/kernel")),
        optax.sgd(0.7),
    )
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    actual = optax.apply_updates(params, updates)
    weights, decayed = (
        jax.tree.map(lambda w, g: np.asarray(w, np.float64), params, grads),
        jax.tree.map(lambda w, g: np.float64(g) + 1e-4 * np.float64(w), params, grads),
    )
    decayed["hidden"]["kernel"] = reference.polar64(decayed["hidden"]["kernel"])
    expected = jax.tree.map(lambda w, g: w - 0.7 * g, weights, decayed)
    chex.assert_trees_all_close(actual, jax.tree.map(np.float32, expected), atol=1e-5, rtol=0)


def test_what_is_not_a_matrix_passes_through():
    tree = {
        "scalar": jnp.float32(3.0),
        "vector": jnp.arange(3.0),
        "integers": jnp.ones((2, 2), jnp.int32),
        "empty": jnp.zeros((0, 3)),
        "none": None,
        "masked": optax.MaskedNode(),
    }
    chex.assert_trees_all_equal(whitened(tree), tree)


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
    tree = {name: jnp.asarray(gradients(seed)) for seed, name in enumerate("abc")}
    apart = whitened(tree, method, max_stack_size=1)
    chex.assert_trees_all_close(whitened(tree, method), apart, atol=1e-5)
    for name, leaf in tree.items():
        chex.assert_trees_all_close(apart[name], whitened([leaf], method)[0], atol=1e-5)


def test_a_non_finite_leaf_does_not_spread():
    tree = [jnp.asarray(gradients(seed)) for seed in range(3)]
    tree[1] = tree[1].at[0, 0].set(jnp.inf)
    updates = whitened(tree)
    assert not np.isfinite(updates[1]).any()
    chex.assert_trees_all_close(updates[::2], whitened(tree[::2]), atol=1e-5)


def test_axes_of_convolutions_and_attention():
    """Each kind against a reshape by hand: (h w in) x out, in x (heads dim), batch of layers."""
    conv, query, layers = (
        jnp.asarray(gradients(seed, (24, 40))).reshape(shape)
        for seed, shape in enumerate([(2, 3, 4, 40), (24, 5, 8), (2, 12, 40)])
    )
    tree = {"conv": conv, "query": query, "layers": layers, "skipped": jnp.ones((2, 2, 2))}
    axes = {
        "conv": MatrixAxes((0, 1, 2), 3),
        "query": MatrixAxes(0, (1, 2)),
        "layers": MatrixAxes(rows=2, columns=-2),
        "skipped": None,
    }
    updates = whitened(tree, axes=axes)
    for name in ("conv", "query"):
        expected = reference.polar64(tree[name].reshape(24, 40)).reshape(tree[name].shape)
        np.testing.assert_allclose(updates[name], expected, rtol=0, atol=1e-4)
    expected = np.stack([reference.polar64(layer) for layer in layers])
    np.testing.assert_allclose(updates["layers"], expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(updates["skipped"], tree["skipped"])
    by_function = whitened(tree, axes=lambda path, leaf: axes[path])
    chex.assert_trees_all_equal(by_function, updates)


@pytest.mark.parametrize(
    ("scale", "shape", "factor"),
    [
        (None, (24, 40), 1.0),
        ("width", (24, 40), (40 / 24) ** 0.5),
        ("width", (40, 24), 1.0),
        ("rms", (40, 24), 0.2 * 40**0.5),
        (lambda m, n: m / n, (24, 40), 24 / 40),
    ],
)
def test_scale_rules(scale, shape, factor):
    gradient = jnp.asarray(gradients(0, shape))
    updates = whitened([gradient], polar.SVD(), scale=scale)[0]
    np.testing.assert_allclose(updates, factor * whitened([gradient], polar.SVD())[0], rtol=1e-6)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_sharding_comes_back(transform):
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    shardings = [NamedSharding(mesh, PartitionSpec(*spec)) for spec in [("a", "b"), ("b", None)]]
    tree = [
        jax.device_put(gradients(seed, (24, 40)), sharding)
        for seed, sharding in enumerate(shardings)
    ]
    updates = transform(functools.partial(whitened, method=polar.SVD()))(tree)
    for leaf, update in zip(tree, updates, strict=True):
        assert update.sharding.is_equivalent_to(leaf.sharding, 2)
        np.testing.assert_allclose(update, reference.polar64(leaf), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "leaf", "error", "says"),
    [
        ({}, jnp.ones((2, 3, 4)), ValueError, r"'block/kernel' has shape \(2, 3, 4\).*axes="),
        (
            {"axes": MatrixAxes(0, 5)},
            jnp.ones((2, 3)),
            ValueError,
            "do not fit leaf 'block/kernel'",
        ),
        ({"axes": MatrixAxes(0, -2)}, jnp.ones((2, 3)), ValueError, "named once"),
        ({"axes": {"kernel": (0, 1)}}, None, TypeError, "MatrixAxes"),
        ({"axes": {"*": MatrixAxes(0, 1)}}, None, ValueError, "regular expression"),
        ({"scale": "muon"}, None, ValueError, "width, rms.*got 'muon'"),
        ({"method": "svd"}, None, TypeError, r"polar.SVD\(\).*got 'svd'"),
        ({"max_stack_size": 0}, None, ValueError, "max_stack_size .* at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused_before_training(arguments, leaf, error, says):
    with pytest.raises(error, match=says):
        scale_by_egd(**arguments).init({"block": {"kernel": leaf}})


@pytest.mark.parametrize(("rows", "columns"), [((), 0), (0, ()), (0, 0), ((0, 1), 1)], ids=repr)
def test_matrix_axes_refuses_empty_and_repeated_axes(rows, columns):
    with pytest.raises(ValueError, match="none twice"):
        MatrixAxes(rows, columns)


@pytest.mark.parametrize("method", [polar.Halley(), polar.SubspaceIteration(4)], ids=repr)
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_explicit_sharding_comes_back(method, transform):
    """With shardings in the types, whatever the layout: rows, columns, both, batch, none."""
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=(AxisType.Explicit,) * 2)
    specs = [("a", None), (None, "b"), ("a", "b"), (), (("a", "b"), None, None)]
    shapes = [(24, 40)] * 4 + [(8, 24, 40)]
    tree = [
        jax.device_put(np.broadcast_to(gradients(), shape), NamedSharding(mesh, PartitionSpec(*s)))
        for shape, s in zip(shapes, specs, strict=True)
    ]
    step = functools.partial(whitened, method=method, axes=MatrixAxes(-2, -1))
    expected = whitened([jnp.asarray(gradients())], method)[0]
    for leaf, update in zip(tree, transform(step)(tree), strict=True):
        assert update.sharding.is_equivalent_to(leaf.sharding, leaf.ndim)
        np.testing.assert_allclose(update, np.broadcast_to(expected, leaf.shape), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda: optax.chain(diagnostics.spectrum_monitor(), scale_by_egd(), optax.sgd(0.1)),
        lambda: egd(0.1, method=polar.SubspaceIteration(4), momentum=0.9, weight_decay=1e-3),
        lambda: egd(0.1, matrices=r"^hidden/kernel$", others=optax.adam(1e-3)),
        lambda: optax.chain(
            optax.masked(scale_by_egd(polar.Randomized(4)), matching("kernel$")), optax.sgd(0.1)
        ),
    ],
)
@pytest.mark.parametrize(
    "wrt",
    [nnx.Param, nnx.All(nnx.Param, nnx.Not(nnx.PathContains("readout")))],
    ids=["all", "some"],
)
@pytest.mark.usefixtures("optax_promotes")
def test_nnx_optimizer_trains(optimizer, wrt):
    """nnx hands `init` variables and `update` bare arrays: paths must not depend on that."""
    model = TwoLayerMLP(6, 8, 3, rngs=nnx.Rngs(0))
    trainer = nnx.Optimizer(model, optimizer(), wrt=wrt)
    x = jax.random.normal(jax.random.key(0), (32, 6))

    def loss(model):
        return jnp.mean((model(x) - x[:, :3]) ** 2)

    before = loss(model)
    grad = nnx.grad(loss, argnums=nnx.DiffState(0, wrt))
    step = nnx.jit(lambda model, trainer: trainer.update(model, grad(model)))
    for _ in range(3):
        step(model, trainer)
    assert loss(model) < before


def test_eager_calls_compile_once(caplog):
    """The README's loop is eager: its second step has to find the first one's programs."""
    grads = network()[1]
    transformation = scale_by_egd(polar.Halley())
    state = transformation.init(grads)
    transformation.update(grads, state)
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        transformation.update(grads, state)
    assert not [line for line in caplog.messages if line.startswith("Compiling")]


def test_a_foreign_state_is_named():
    transformation = scale_by_egd(polar.SubspaceIteration(1))
    state = transformation.init({"a": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match="for leaf 'b', only for 'a'"):
        transformation.update({"b": jnp.ones((2, 3))}, state)
