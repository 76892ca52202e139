"""scale_by_egd: one gradient through the whole flow, and nnx around it."""

import logging

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import gradient, normal, polar64

from egd_optax import MatrixAxes, diagnostics, egd, matching, polar, scale_by_egd
from egd_optax.models import TwoLayerMLP

pytestmark = pytest.mark.usefixtures("quick_compilation")


def whitened(tree, *args, **kwargs):
    transformation = scale_by_egd(*args, **kwargs)
    return transformation.update(tree, transformation.init(tree))[0]


def test_one_step_of_the_paper_equals_a_numpy_transcription():
    """W <- W - .7 polar(grad + 1e-4 W) on the first matrix, plain SGD with L2 on the rest."""
    shapes = {"hidden": {"kernel": (26, 32), "bias": (32,)}, "readout": {"kernel": (32, 13)}}
    params, grads = normal(shapes), normal(shapes, seed=1)
    optimizer = optax.chain(
        optax.add_decayed_weights(1e-4),
        optax.masked(scale_by_egd(polar.SVD()), matching("hidden/kernel")),
        optax.sgd(0.7),
    )
    updates, _ = jax.jit(optimizer.update)(grads, optimizer.init(params), params)
    actual = optax.apply_updates(params, updates)
    decayed = jax.tree.map(lambda w, g: np.float64(g) + 1e-4 * np.float64(w), params, grads)
    decayed["hidden"]["kernel"] = polar64(decayed["hidden"]["kernel"])
    expected = jax.tree.map(lambda w, g: np.float32(np.float64(w) - 0.7 * g), params, decayed)
    chex.assert_trees_all_close(actual, expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:scale_by_egd whitens nothing")
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


def test_every_leaf_keeps_a_state_of_its_own():
    """A leaf's basis is the one that it would have alone, and it goes on from step to step."""
    transformation = scale_by_egd(polar.SubspaceIteration(2, oversample=0))
    trees = [{"a": gradient(seed=seed), "b": gradient(seed=seed + 5)} for seed in (0, 1)]
    state, alone = transformation.init(trees[0]), transformation.init({"b": trees[0]["b"]})
    for tree in trees:
        updates, state = transformation.update(tree, state)
        expected, alone = transformation.update({"b": tree["b"]}, alone)
    np.testing.assert_allclose(updates["b"], expected["b"], atol=1e-5)
    ours, theirs = (tree.method_states["b"] for tree in (state, alone))
    np.testing.assert_allclose(ours.basis, theirs.basis, atol=1e-4)
    assert ours.step == theirs.step == 2


def test_a_non_finite_leaf_does_not_spread():
    tree = [gradient(seed=seed) for seed in range(3)]
    tree[1] = tree[1].at[0, 0].set(jnp.inf)
    updates = whitened(tree)
    assert not np.isfinite(updates[1]).any()
    chex.assert_trees_all_close(updates[::2], whitened(tree[::2]), atol=1e-5)


def test_axes_of_convolutions_and_attention():
    """Each kind against a reshape by hand: (h w in) x out, in x (heads dim), batch of layers."""
    conv, query, layers = (
        gradient(seed=seed).reshape(shape)
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
        expected = polar64(tree[name].reshape(24, 40)).reshape(tree[name].shape)
        np.testing.assert_allclose(updates[name], expected, rtol=0, atol=1e-4)
    expected = np.stack([polar64(layer) for layer in layers])
    np.testing.assert_allclose(updates["layers"], expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(updates["skipped"], tree["skipped"])
    by_function = whitened(tree, axes=lambda params: axes)
    chex.assert_trees_all_equal(by_function, updates)


@pytest.mark.parametrize(
    ("scale", "shape", "factor"),
    [
        (None, (24, 40), 1.0),
        ("muon", (24, 40), (40 / 24) ** 0.5),
        ("muon", (40, 24), 1.0),
        ("consistent_rms", (40, 24), 0.2 * 40**0.5),
        (lambda m, n: m / n, (24, 40), 24 / 40),
    ],
)
def test_scale_rules(scale, shape, factor):
    leaf = gradient(shape)
    updates = whitened([leaf], polar.SVD(), scale=scale)[0]
    np.testing.assert_allclose(updates, factor * whitened([leaf], polar.SVD())[0], rtol=1e-6)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1, None, "x", jnp.ones(2)], ids=repr)
def test_a_rule_of_scale_that_gives_no_factor_is_refused_with_the_shape(value):
    with pytest.raises((TypeError, ValueError), match="factor for 24 x 40 matrices must"):
        whitened([gradient()], scale=lambda m, n: value)


def test_a_rule_of_scale_may_give_arrays_and_tracers():
    leaves = [gradient(), gradient().astype(jnp.bfloat16)]
    for wrap in (np.float32, np.float64, jnp.float32):
        updates = whitened(leaves, scale=lambda m, n, wrap=wrap: wrap(0.5))
        chex.assert_trees_all_equal(updates, whitened(leaves, scale=lambda m, n: 0.5))
        chex.assert_trees_all_equal_dtypes(updates, leaves)
    updates = updates[:1]
    traced = jax.jit(lambda x: whitened([gradient()], scale=lambda m, n: x))(0.5)
    chex.assert_trees_all_close(traced, updates, rtol=1e-5)


SOME = nnx.All(nnx.Param, nnx.Not(nnx.PathContains("readout")))


@pytest.mark.parametrize(
    ("optimizer", "wrt"),
    [
        (optax.chain(diagnostics.spectrum_monitor(), scale_by_egd(), optax.sgd(0.1)), nnx.Param),
        (egd(0.1, method=polar.SubspaceIteration(4), momentum=0.9, weight_decay=1e-3), SOME),
        (egd(0.1, matrices=r"^hidden/kernel$", others=optax.adam(1e-3)), nnx.Param),
        (
            optax.chain(
                optax.masked(scale_by_egd(polar.Randomized(4)), matching("kernel$")), optax.sgd(0.1)
            ),
            SOME,
        ),
    ],
    ids=["chain", "egd", "others", "masked"],
)
@pytest.mark.usefixtures("optax_promotes")
def test_nnx_optimizer_trains(optimizer, wrt):
    """As Optax trains its plain tree; nnx hands `init` variables and `update` bare arrays."""
    model = TwoLayerMLP(6, 8, 3, rngs=nnx.Rngs(0))
    trainer = nnx.Optimizer(model, optimizer, wrt=wrt)
    x = jax.random.normal(jax.random.key(0), (32, 6))

    def loss(model):
        return jnp.mean((model(x) - x[:, :3]) ** 2)

    grad = nnx.grad(loss, argnums=nnx.DiffState(0, wrt))
    params = nnx.to_pure_dict(nnx.state(model, wrt))
    state = optimizer.init(params)
    step = nnx.jit(lambda model, trainer: trainer.update(model, grad(model)))
    for _ in range(3):
        updates, state = optimizer.update(nnx.to_pure_dict(grad(model)), state, params)
        params = optax.apply_updates(params, updates)
        step(model, trainer)
    actual = nnx.to_pure_dict(nnx.state(model, wrt))
    chex.assert_trees_all_close(actual, params, atol=1e-5)  # three float32 steps of length .1


@pytest.mark.parametrize("devices", [1, 8])
def test_eager_calls_compile_once(caplog, monkeypatch, devices):
    """The README's loop is eager: its second step has to find the first one's programs."""
    monkeypatch.setattr(jax, "device_count", lambda: devices)
    grads = normal({"a": (26, 32), "b": (26, 32), "c": (32, 26), "bias": (32,)})
    optimizer = egd(0.1, momentum=0.9)
    _, state = optimizer.update(grads, optimizer.init(grads))
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        optimizer.update(grads, state)
    assert not [line for line in caplog.messages if line.startswith("Compiling")]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"scale": "width"}, ValueError, "muon, consistent_rms.*got 'width'"),
        ({"scale": [1]}, ValueError, r"or a function \(m, n\) -> factor, got \[1\]"),
        ({"scale": jnp.ones(())}, TypeError, 'add "scale" to static_args'),
        ({"method": "svd"}, TypeError, r"polar.SVD\(\).*got 'svd'"),
        ({"max_stack_size": 0}, ValueError, "max_stack_size .* at least 1, got 0"),
    ],
)
def test_bad_arguments_are_refused_at_once(arguments, error, says):
    with pytest.raises(error, match=says):
        scale_by_egd(**arguments)
