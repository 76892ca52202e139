"""What will this optimizer whiten, and did it: through all that Optax and Flax wrap around it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers import gradient, normal

from egd_optax import (
    MatrixAxes,
    diagnostics,
    egd,
    infer_axes,
    matching,
    polar,
    scale_by_egd,
    switch_off,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")

PARAMS = normal(
    {
        "conv": {"kernel": (2, 2, 3, 8), "bias": (8,)},
        "stack": {"kernel": (3, 4, 8), "bias": (3, 8)},
        "dense": {"kernel": (8, 4)},
        "head": {"kernel": (8, 5)},
    }
)
MATRICES = {"conv/kernel": (1, 12, 8), "dense/kernel": (1, 8, 4), "stack/kernel": (3, 4, 8)}
WHITENED = MATRICES.keys()
DECAYING = gradient((8, 8))
CHAIN = optax.chain(scale_by_egd(axes=infer_axes), optax.sgd(0.1))
DENSE = jax.tree.map(lambda leaf: leaf.shape == (8, 4), PARAMS)


OPTIMIZERS = {
    "egd": (egd(0.1), WHITENED),
    "decay and schedule": (
        egd(optax.linear_schedule(1.0, 0.0, 5), weight_decay=1.0, decay="decoupled", scale="muon"),
        WHITENED,
    ),
    "chain": (CHAIN, WHITENED),
    "masked": (optax.masked(scale_by_egd(), DENSE), {"dense/kernel"}),
    "partition": (
        optax.partition(
            {"x": scale_by_egd(), "y": optax.adam(1e-3)},
            jax.tree.map(lambda mask: "x" if mask else "y", DENSE),
        ),
        {"dense/kernel"},
    ),
    "inject": (optax.inject_hyperparams(egd)(0.1, momentum=0.9), WHITENED),
    "accumulated": (optax.MultiSteps(egd(0.1), 2).gradient_transformation(), WHITENED),
    "if finite": (optax.apply_if_finite(egd(0.1), 2), WHITENED),
    "switch": (switch_off(CHAIN, optax.sgd(0.1), threshold=0.5), WHITENED),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.usefixtures("optax_promotes")
def test_the_plan_and_the_check_agree(name):
    optimizer, whitened = OPTIMIZERS[name]
    shapes = jax.eval_shape(lambda: PARAMS)
    for params in (PARAMS, shapes):
        plan = diagnostics.whitening_plan(optimizer, params)
        matrices = {leaf.path: leaf.matrix for leaf in plan.leaves if leaf.axes}
        assert matrices == {path: MATRICES[path] for path in whitened}
    extra = {"metric": 0.1} if name == "switch" else {}
    check = diagnostics.check_whitening(optimizer, PARAMS, **extra)
    assert {path for path, leaf in check.items() if leaf.whitened} == whitened
    assert check.failed == []
    assert len(check) == len(plan.leaves) == 5
    for path in whitened:
        assert check[path].axes.matrix == MATRICES[path]
        assert check[path].directions == min(MATRICES[path][1:])
        np.testing.assert_allclose(check[path].gains, 1, atol=1e-4)


def test_what_was_not_whitened_is_said_first():
    """Switched off, a zero gradient, a method that does not whiten."""
    off = diagnostics.check_whitening(OPTIMIZERS["switch"][0], PARAMS, metric=0.9)
    assert set(off.failed) == WHITENED
    assert "did not run" in off["dense/kernel"].reason
    zero = {**PARAMS, "dense": {"kernel": jnp.zeros((8, 4))}}
    check = diagnostics.check_whitening(egd(0.1), PARAMS, zero)
    assert check.failed == ["dense/kernel"]
    assert check["dense/kernel"].reason == "a gradient is zero"
    infinite = {**PARAMS, "dense": {"kernel": jnp.full((8, 4), jnp.inf)}}
    check = diagnostics.check_whitening(egd(0.1), PARAMS, infinite)
    assert check["dense/kernel"].reason == "a gradient or its factor is not finite"
    lines = str(check).splitlines()
    assert lines[0] == "Whitened: 2 of 3 leaves."
    assert lines[2].split()[:1] == ["dense/kernel"]
    assert "NO" in lines[2]
    doubled = scale_by_egd(lambda matrix: 2 * polar.polar_factor(matrix))
    assert diagnostics.check_whitening(doubled, [gradient()]).failed == ["0"]


METHODS = [
    polar.NewtonSchulz("standard"),
    polar.NewtonSchulz("three_steps"),
    polar.SubspaceIteration(1),
    polar.Randomized(2, residual="keep"),
]


@pytest.mark.parametrize("method", [*METHODS, lambda matrix: matrix])
def test_a_factor_in_its_gradient_s_proportions_is_not_whitened(method):
    """Half of its directions are dropped, and the others would pass."""
    check = diagnostics.check_whitening(scale_by_egd(method), [DECAYING], [DECAYING])
    assert check.failed == ([] if method in METHODS else ["0"])
    assert ("as in the gradient itself" in check["0"].reason) == bool(check.failed)


def test_leaves_that_are_no_arrays_of_numbers_get_no_random_gradients():
    params = {"kernel": PARAMS["dense"]["kernel"], "key": jax.random.key(0), "rate": 0.5}
    assert diagnostics.check_whitening(scale_by_egd(), params)["kernel"].whitened


@pytest.mark.usefixtures("optax_promotes")
def test_a_wrapper_that_hands_on_a_tree_of_its_own():
    params = PARAMS["dense"]
    ahead = optax.lookahead(scale_by_egd(), 2, 0.5)
    check = diagnostics.check_whitening(ahead, optax.LookaheadParams.init_synced(params), params)
    assert [path for path, leaf in check.items() if leaf.whitened] == ["kernel"]
    split = optax.contrib.split_real_and_imaginary(scale_by_egd())
    plan = diagnostics.whitening_plan(split, {"kernel": params["kernel"] * (1 + 1j)})
    assert {leaf.path for leaf in plan.leaves if leaf.axes} == {"kernel/real", "kernel/imaginary"}


@pytest.mark.filterwarnings("ignore:scale_by_egd whitens nothing")
@pytest.mark.parametrize("optimizer", [optax.sgd(0.1), optax.flatten(scale_by_egd())])
def test_an_optimizer_that_whitens_nothing_fails_the_check(optimizer):
    assert not any(diagnostics.whitening_plan(optimizer, PARAMS).values())
    with pytest.raises(ValueError, match="whitens none of these leaves: 'conv/kernel: no"):
        diagnostics.check_whitening(optimizer, PARAMS)


def test_arguments_in_the_wrong_order_are_named():
    with pytest.raises(TypeError, match="optimizer must be a transformation"):
        diagnostics.whitening_plan(PARAMS, egd(0.1))


def test_a_sketch_whitens_its_rank():
    check = diagnostics.check_whitening(egd(0.1, method=polar.Randomized(2)), PARAMS)
    assert {check[path].directions for path in WHITENED} == {2}
    assert check.failed == []


def test_the_state_and_the_parameters_stay_what_they_are():
    """After some training steps, with the state of these."""
    optimizer = egd(0.1, method=polar.SubspaceIteration(2), momentum=0.9)
    state = optimizer.init(PARAMS)
    before = jax.tree.map(np.array, state)
    check = diagnostics.check_whitening(optimizer, PARAMS, PARAMS, state)
    assert check.failed == []
    jax.tree.map(np.testing.assert_array_equal, before, state)


@pytest.mark.usefixtures("optax_promotes")
def test_an_nnx_optimizer_brings_its_own_state():
    model = nnx.MultiHeadAttention(2, 8, decode=False, rngs=nnx.Rngs(0))
    trainer = nnx.Optimizer(model, egd(0.1, momentum=0.9), wrt=nnx.Param)
    names = {f"{name}/kernel" for name in ("query", "key", "value", "out")}
    plan = diagnostics.whitening_plan(trainer, model)
    assert {leaf.path for leaf in plan.leaves if leaf.axes} == names
    grads = nnx.grad(lambda model: jnp.sum(model(jnp.ones((1, 3, 8))) ** 2))(model)
    trainer.update(model, grads)
    for check in (
        diagnostics.check_whitening(trainer, model),
        diagnostics.check_whitening(trainer, model, jax.tree.map(jnp.ones_like, grads)),
    ):
        assert {path for path, leaf in check.items() if leaf.whitened} == names


def test_two_whitenings_are_one_plan():
    """Each has its part of the leaves; what neither is given is said."""
    both = optax.chain(
        optax.masked(scale_by_egd(), matching("dense")),
        optax.masked(scale_by_egd(axes=MatrixAxes(-1, -2)), matching("stack/kernel")),
    )
    plan = diagnostics.whitening_plan(both, PARAMS)
    assert {leaf.path for leaf in plan.leaves if leaf.axes} == {"dense/kernel", "stack/kernel"}
    assert {leaf.reason for leaf in plan.leaves if not leaf.axes} == {
        "no whitening is given this leaf"
    }
