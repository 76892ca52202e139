"""egd, matching and normalize_columns."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from egd_optax import MatrixAxes, egd, matching, normalize_columns, polar, scale_by_egd
from egd_optax._selection import leaf_path

RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.standard_normal((6, 9)), "bias": RNG.standard_normal(9)}
GRADS = [{"kernel": RNG.standard_normal((6, 9)), "bias": RNG.standard_normal(9)} for _ in range(3)]


def as32(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def run(optimizer, grads=GRADS):
    params = as32(PARAMS)
    state = optimizer.init(params)
    for gradient in grads:
        updates, state = jax.jit(optimizer.update)(as32(gradient), state, params)
        params = optax.apply_updates(params, updates)
    return params


def transcription(learning_rate, weight_decay, coupled, momentum=0.0, nesterov=False):
    """The same steps in float64 NumPy, straight from the docstring of `egd`."""
    params, memory = dict(PARAMS), dict.fromkeys(PARAMS, 0.0)
    for gradient in GRADS:
        for name, w in params.items():
            g = gradient[name] + coupled * weight_decay * w
            memory[name] = momentum * memory[name] + g
            direction = g + momentum * memory[name] if nesterov else memory[name]
            direction = reference.polar64(direction) if w.ndim == 2 else direction
            params[name] = w - learning_rate * (direction + (not coupled) * weight_decay * w)
    return params


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"weight_decay": 0.1}, (0.3, 0.1, True)),
        ({"weight_decay": 0.1, "decay": "decoupled"}, (0.3, 0.1, False)),
        ({"weight_decay": 0.1, "momentum": 0.9}, (0.3, 0.1, True, 0.9)),
        ({"momentum": 0.9, "nesterov": True}, (0.3, 0.0, True, 0.9, True)),
    ],
    ids=str,
)
def test_egd_equals_a_numpy_transcription(arguments, expected):
    actual = run(egd(0.3, method=polar.SVD(), **arguments))
    chex.assert_trees_all_close(actual, as32(transcription(*expected)), atol=2e-5)


def test_moving_average_and_heavy_ball_are_the_same_before_whitening():
    average = optax.chain(optax.ema(0.9, debias=False), scale_by_egd(), optax.sgd(0.3))
    actual, expected = run(egd(0.3, momentum=0.9)), run(average)
    chex.assert_trees_all_close(actual["kernel"], expected["kernel"], atol=1e-5)


@pytest.mark.usefixtures("optax_promotes")
def test_others_keep_their_own_rules():
    """`others` takes over the rest whole; `matrices` narrows what is whitened."""
    adam = optax.adam(0.01)
    actual = run(egd(0.3, weight_decay=0.1, others=adam))
    chex.assert_trees_all_close(actual["bias"], run(adam)["bias"], atol=1e-6)
    untouched = run(egd(0.3, matrices={"kernel": False, "bias": False}, others=adam))
    chex.assert_trees_all_close(untouched, run(adam), atol=1e-6)
    for matrices in ("kernel", matching("kernel"), {"kernel": True, "bias": False}):
        chex.assert_trees_all_equal(run(egd(0.3, matrices=matrices)), run(egd(0.3)))


def test_leaves_without_axes_belong_to_others():
    """A convolution that `axes` excludes is Adam's, not SGD's by accident."""
    params = {"conv": jnp.ones((2, 2, 3, 4)), "kernel": jnp.ones((3, 4))}
    optimizer = egd(0.1, axes={"conv": None}, others=optax.set_to_zero())
    updates, _ = optimizer.update(params, optimizer.init(params))
    np.testing.assert_array_equal(updates["conv"], 0)
    assert np.abs(updates["kernel"]).max() > 0
    with pytest.raises(TypeError, match="got 'adam'"):
        egd(0.1, others="adam")


def test_leaves_that_flax_calls_bias_scale_or_embedding_belong_to_others():
    """Whatever their axes, unless the user names them; `scale_by_egd` stays literal."""
    tables = {"bias": (3, 4), "norm": {"scale": (2, 3, 4)}, "embedding": (5, 4)}
    params = {"kernel": (2, 4), "bias_kernel": (2, 4), **tables}
    params = jax.tree.map(jnp.ones, params, is_leaf=lambda x: isinstance(x, tuple))
    rest = {"bias", "norm/scale", "embedding"}

    def whitened(**arguments):
        optimizer = egd(0.1, others=optax.set_to_zero(), **arguments)
        updates, _ = optimizer.update(params, optimizer.init(params))
        leaves = jax.tree_util.tree_leaves_with_path(updates)
        return {leaf_path(path) for path, leaf in leaves if np.any(leaf)}

    last_two = MatrixAxes(-2, -1)
    assert whitened() == whitened(axes=last_two) == {"kernel", "bias_kernel"}
    named = whitened(axes={"embedding": MatrixAxes(0, 1), "^kernel": None})
    assert named == {"embedding", "bias_kernel"}
    assert whitened(axes=lambda path, leaf: last_two) == {"kernel", "bias_kernel"} | rest
    assert whitened(matrices="^(bias|embedding)$") == {"bias", "embedding"}
    embedding, literal = {"embedding": 2 * jnp.eye(2)}, scale_by_egd()
    updates, _ = literal.update(embedding, literal.init(embedding))
    np.testing.assert_allclose(updates["embedding"], jnp.eye(2), atol=1e-6)


def test_matching_selects_by_path():
    tree = {"a": {"kernel": 0, "bias": 1}, "b": [{"kernel": 2}, {"scale": 3}]}
    assert matching("kernel")(tree) == {
        "a": {"kernel": True, "bias": False},
        "b": [{"kernel": True}, {"scale": False}],
    }
    assert matching("^b/", "bias", exclude="scale")(tree) == {
        "a": {"kernel": False, "bias": True},
        "b": [{"kernel": True}, {"scale": False}],
    }


def test_matching_nothing_is_an_error_that_lists_the_paths():
    with pytest.raises(ValueError, match=r"kernle.*'a/kernel', 'bias'"):
        matching("kernle")({"a": {"kernel": 0}, "bias": 1})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: egd(0.1, decay="l2"), "coupled, decoupled, got 'l2'"),
        (lambda: egd(0.1, nesterov=True), "needs a momentum"),
        (lambda: egd(0.1, momentum=1.5), r"\[0, 1\), got 1.5"),
        (lambda: egd(0.1, weight_decay=-1.0), "negative, got -1.0"),
        (lambda: egd(0.1, matrices="bias").init(as32(PARAMS)), "'bias' selects no leaf"),
        (lambda: matching(), "at least one pattern"),
        (lambda: matching(["a", "b"]), "one by one"),
        (lambda: matching("("), "not a regular expression"),
        (lambda: normalize_columns(0.0), "floor must be positive"),
    ],
)
def test_bad_arguments_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_columns_are_normalized_down_to_the_floor():
    gradient = {"kernel": jnp.array([[3.0, 0.003], [4.0, 0.004]]), "bias": jnp.array([3.0])}
    transformation = normalize_columns(floor=0.01)
    updates, _ = transformation.update(gradient, transformation.init(gradient))
    np.testing.assert_allclose(updates["kernel"], [[0.6, 0.3], [0.8, 0.4]], rtol=1e-6)
    np.testing.assert_array_equal(updates["bias"], gradient["bias"])
