"""What users tried and what went wrong in silence: each is right now, or an error that helps.

One row for each probe. Those of one module alone are in that module's tests: `axes` in test_axes,
names in test_infer_axes, unknown leaves in test_alias, tolerances of short dtypes in diagnostics,
standstill in test_hang.
"""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import moved, normal, updates_of

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

NET = normal(
    {
        "hidden": {"kernel": (4, 6), "bias": (6,)},
        "head": {"kernel": (6, 3), "bias": (3,)},
    }
)
HEAD, BOTH = MatrixAxes(0, 1), {"head/kernel", "hidden/kernel"}
NOTHING = jax.tree.map(lambda leaf: False, NET)


@pytest.mark.parametrize("make", [scale_by_egd, functools.partial(polar.polar_factor, jnp.eye(2))])
@pytest.mark.parametrize("method", [optax.trace(0.9), egd(0.1)])
def test_a_transformation_is_no_polar_method(make, method):
    with pytest.raises(TypeError, match=r"optax.chain\(scale_by_egd\(\), optax.sgd\(0.02\)\)"):
        make(method=method)


@pytest.mark.parametrize("method", [polar.SVD, "svd", 3, 0.02, [1]])
def test_what_is_no_polar_method_at_all(method):
    with pytest.raises(TypeError, match="method must"):
        scale_by_egd(method)


@pytest.mark.parametrize(
    "axes",
    [
        {**infer_axes(NET), "head/kernel": HEAD},
        dict(infer_axes(NET)) | {"head/kernel": HEAD},
        {"head/kernel": HEAD},
        {"head": {"kernel": HEAD, "bias": None}},
        lambda params: {**infer_axes(params), "head/kernel": HEAD},
        infer_axes(NET, overrides={"head": HEAD}),
    ],
    ids=["unpacked", "dict", "alone", "tree", "function", "overrides"],
)
def test_every_natural_override_whitens_the_head(axes):
    assert moved(egd(0.1, axes=axes, others=optax.set_to_zero()), NET) == BOTH


@pytest.mark.parametrize(
    "arguments",
    [
        {"matrices": matching("bias")},
        {"matrices": NOTHING},
        {"matrices": lambda params: NOTHING},
        {"matrices": matching("head")},
        {"axes": {"hidden": None}},
        {"axes": {"hidden": None, "head": None}},
        {"axes": lambda params: {"hidden": None}},
        {"axes": infer_axes(NET, overrides={"hidden": None})},
        {"axes": {"head": HEAD}, "matrices": {"hidden": {"bias": True}}},
    ],
)
def test_a_selection_that_whitens_nothing_is_an_error(arguments):
    if "head" in str(arguments.get("axes")) and "matrices" in arguments:
        arguments["matrices"] = NOTHING | {"hidden": {"kernel": False, "bias": True}}
    with pytest.raises(ValueError, match="egd would whiten nothing here"):
        egd(0.1, **arguments).init(NET)


@pytest.mark.parametrize(
    ("matrices", "idle"),
    [("head", "head"), (["hidden", "head"], "head"), (("bias", "kernel"), "bias")],
)
def test_a_pattern_that_adds_nothing_is_an_error(matrices, idle):
    """`matrices` narrows: a head stays out of it, and the remedy names the head's own path."""
    with pytest.raises(ValueError, match=rf"nothing of matrices='{idle}'.*'(head/)?kernel'"):
        egd(0.1, matrices=matrices).init(NET)


@pytest.mark.parametrize("matrices", [[], (), {}, {"hidden": True}, ["kernel", None]], ids=repr)
def test_what_is_no_selection(matrices):
    with pytest.raises(ValueError, match="a tree with a bool for every parameter"):
        egd(0.1, matrices=matrices).init(NET)


@pytest.mark.parametrize("label", ["leave", 1, None, jnp.ones(2)], ids=repr)
def test_a_selection_holds_bools_alone(label):
    """A tree of labels, as `optax.partition` takes it, would whiten everything."""
    chosen = {"hidden": {"kernel": True, "bias": np.bool_(True)}}
    labels = chosen | {"head": {"kernel": label, "bias": False}}
    with pytest.raises(ValueError, match=r"a tree with a bool for .* at 'head/kernel'"):
        egd(0.1, matrices=labels).init(NET)


@pytest.mark.parametrize(
    "optimizer",
    [
        egd(0.1, matrices=["hidden/kernel", "ouut/kernel"]),
        egd(0.1, matrices=matching("kernel", exclude="ouut")),
        optax.masked(scale_by_egd(), matching("hidden", "ouut")),
    ],
)
def test_a_pattern_without_a_match_is_an_error(optimizer):
    with pytest.raises(ValueError, match=r"'ouut.* matches no leaf of these: 'head/bias'"):
        optimizer.init(NET)


def test_a_group_of_a_partition_may_hold_no_matrix():
    """It is told so, and takes steps of SGD; a tree of bools is of all the parameters."""
    groups = {"hidden": egd(0.1), "head": egd(0.1)}
    with pytest.warns(UserWarning, match="egd whitens nothing here"):
        apart = updates_of(optax.partition(groups, {name: name for name in NET}), NET)
    chosen = jax.tree.map(lambda leaf: True, NET)
    groups = {"hidden": egd(0.1, matrices=chosen), "head": optax.sgd(0.1)}
    masked = updates_of(optax.partition(groups, {name: name for name in NET}), NET)
    chex.assert_trees_all_close(apart["head"], jax.tree.map(lambda leaf: -0.1 * leaf, NET["head"]))
    chex.assert_trees_all_close(apart["hidden"], updates_of(egd(0.1), NET)["hidden"], atol=1e-6)
    chex.assert_trees_all_equal(masked, apart)


@pytest.mark.parametrize("params", [jnp.ones(3), {"a": jnp.ones(3), "b": jnp.ones(())}], ids=repr)
def test_vectors_alone_are_whitened_by_nobody(params):
    with pytest.warns(UserWarning, match="egd whitens nothing here: no leaf is a hidden matrix"):
        egd(0.1).init(params)
    with pytest.warns(UserWarning, match="scale_by_egd whitens nothing here"):
        scale_by_egd().init(params)


@pytest.mark.parametrize("optimizer", [egd(0.1), scale_by_egd()])
def test_the_warning_comes_once_from_where_init_is_called(optimizer):
    params = {"a": jnp.ones(3)}
    with pytest.warns(UserWarning, match="whitens nothing here") as warned:
        state = optimizer.init(params)
    assert [one.filename for one in warned] == [__file__]
    optimizer.update(params, state)  # warnings are errors here


@pytest.mark.parametrize(
    "wrap", [optax.flatten, lambda inner: optax.masked(inner, matching("bias"))]
)
@pytest.mark.parametrize("inner", [egd(0.1), scale_by_egd()])
def test_a_wrapper_that_leaves_no_matrix_is_warned_of(wrap, inner):
    with pytest.warns(UserWarning, match="take off masks, or optax.flatten"):
        wrap(inner).init(NET)


@pytest.mark.parametrize("path", ["hidden/bias", "bias", "count", "empty"])
def test_what_is_no_matrix_may_not_be_named(path):
    params = {**NET, "count": jnp.zeros((2, 2), jnp.int32), "empty": jnp.zeros((0, 8))}
    axes = {path: HEAD}
    for optimizer in (egd(0.1, axes=axes), scale_by_egd(axes=axes)):
        with pytest.raises(ValueError, match="only leaves of two axes or more"):
            optimizer.init(params)


def test_a_model_with_functions_among_its_leaves_names_the_filter():
    params = {**NET, "activation": jnp.tanh}
    for call in (
        lambda: egd(0.1).init(params),
        lambda: scale_by_egd().init(params),
        lambda: diagnostics.whitening_plan(egd(0.1), params),
        lambda: diagnostics.check_whitening(egd(0.1), params),
    ):
        with pytest.raises(TypeError, match=r"'activation' is no array: pass eqx.filter"):
            call()
    assert infer_axes(params)["hidden/kernel"] == HEAD


STATES = {
    "subspace": scale_by_egd(polar.SubspaceIteration(2)),
    "randomized": scale_by_egd(polar.Randomized(2)),
    "monitor": diagnostics.spectrum_monitor(axes=MatrixAxes(-2, -1)),
    "egd": egd(0.1, method=polar.SubspaceIteration(2)),
    "average": egd(0.1, momentum=0.9),
}


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("subspace", {"kernel": (5, 6)}),
        ("subspace", {"weight": (4, 6)}),
        ("randomized", {"weight": (4, 6)}),
        ("monitor", {"kernel": (2, 4, 6)}),
        ("monitor", {"weight": (4, 6)}),
        ("egd", {"kernel": (5, 6)}),
        ("average", {"kernel": (5, 6)}),
        ("average", {"weight": (4, 6)}),
    ],
)
def test_a_state_of_other_leaves_is_refused_with_the_remedy(name, other):
    optimizer = STATES[name]
    state = optimizer.init(normal({"kernel": (4, 6)}))
    with pytest.raises(ValueError, match=r"made for other leaves .* Call `init` with"):
        jax.jit(optimizer.update)(normal(other), state)


def test_a_state_of_python_numbers_is_refused():
    optimizer = STATES["subspace"]
    grads = normal({"kernel": (4, 6)})
    numbers = jax.tree.map(lambda leaf: leaf.sum().item(), optimizer.init(grads))
    with pytest.raises(ValueError, match=r"has (int|float)\[\], these updates need"):
        optimizer.update(grads, numbers)


def test_a_state_of_another_method_is_refused():
    grads = normal({"kernel": (4, 6)})
    state = scale_by_egd(polar.Randomized(2)).init(grads)
    with pytest.raises(ValueError, match=r"another method. At .*kernel.*basis it has nothing"):
        STATES["subspace"].update(grads, state)


@pytest.mark.parametrize(
    ("factory", "arguments"),
    [
        (egd, {"learning_rate": 0.1, "matrices": matching("kernel")}),
        (egd, {"learning_rate": 0.1, "axes": infer_axes}),
        (egd, {"learning_rate": 0.1, "method": lambda matrix: matrix}),
        (egd, {"learning_rate": 0.1, "max_stack_size": 8}),
        (scale_by_egd, {"max_stack_size": 8}),
        (diagnostics.spectrum_monitor, {"every": 2}),
        (diagnostics.spectrum_monitor, {"every": 2, "rtol": 1e-3}),
    ],
)
def test_injection_without_static_arguments_names_them(factory, arguments):
    with pytest.raises(TypeError, match="static_args"):
        optax.inject_hyperparams(factory)(**arguments).init(NET)
    static = tuple(name for name in arguments if name != "learning_rate")
    optax.inject_hyperparams(factory, static_args=static)(**arguments).init(NET)


@pytest.mark.parametrize("rate", [np.float32(-1), float("nan"), None], ids=repr)
def test_what_is_no_learning_rate(rate):
    with pytest.raises((TypeError, ValueError), match="learning_rate must"):
        egd(rate)


def test_positional_arguments_are_refused():
    for call in (lambda: egd(0.1, polar.SVD()), lambda: scale_by_egd(None, HEAD)):
        with pytest.raises(TypeError, match="positional"):
            call()
    with pytest.raises(TypeError, match="positional"):
        switch_off(scale_by_egd(), optax.identity(), 0.5)


def test_a_bfloat16_leaf_keeps_its_dtype_and_passes_the_check():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), NET)
    assert updates_of(egd(0.1, momentum=0.9), params)["hidden"]["kernel"].dtype == jnp.bfloat16
    check = diagnostics.check_whitening(egd(0.1), params)
    assert [path for path, leaf in check.items() if leaf.whitened] == ["hidden/kernel"]
