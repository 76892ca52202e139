"""egd: one step after the other against NumPy and Optax, and which leaves are whose."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import moved, normal, polar64, updates_of

from egd_optax import MatrixAxes, diagnostics, egd, infer_axes, matching, polar, scale_by_egd

SHAPES = {"kernel": (6, 9), "bias": (9,)}
PARAMS = normal(SHAPES)
GRADS = [normal(SHAPES, seed) for seed in (1, 2, 3)]


def run(optimizer, params=PARAMS):
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in GRADS:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    return params


def transcription(learning_rate, weight_decay, coupled, momentum=0.0, nesterov=False, after=False):
    """The same steps in float64 NumPy, straight from the docstring of `egd`."""
    params = {name: np.float64(leaf) for name, leaf in PARAMS.items()}
    average = dict.fromkeys(PARAMS, 0.0)
    for step, gradient in enumerate(GRADS, start=1):
        for name, w in params.items():
            g = np.float64(gradient[name]) + coupled * weight_decay * w
            g = polar64(g) if after and w.ndim == 2 else g
            average[name] = momentum * average[name] + (1 - momentum) * g
            direction = average[name] / (1 - momentum**step)
            if nesterov:  # the average after one more step, with this gradient again
                ahead = average[name] / (1 - momentum ** (step + 1))
                direction = momentum * ahead + (1 - momentum) * g / (1 - momentum**step)
            direction = polar64(direction) if not after and w.ndim == 2 else direction
            params[name] = w - learning_rate * (direction + (not coupled) * weight_decay * w)
    return jax.tree.map(np.float32, params)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"weight_decay": 0.1}, (0.3, 0.1, True)),
        ({"weight_decay": 0.1, "decay": "decoupled"}, (0.3, 0.1, False)),
        ({"weight_decay": 0.1, "momentum": 0.9}, (0.3, 0.1, True, 0.9)),
        ({"weight_decay": 0.1, "momentum": 0.9, "decay": "decoupled"}, (0.3, 0.1, False, 0.9)),
        ({"momentum": 0.9, "nesterov": True}, (0.3, 0.0, True, 0.9, True)),
        (
            {"weight_decay": 0.1, "momentum": 0.9, "average": "after"},
            (0.3, 0.1, True, 0.9, False, True),
        ),
        (
            {"weight_decay": 0.1, "decay": "decoupled", "momentum": 0.9, "nesterov": True}
            | {"average": "after"},
            (0.3, 0.1, False, 0.9, True, True),
        ),
    ],
    ids=str,
)
def test_egd_equals_a_numpy_transcription(arguments, expected):
    actual = run(egd(0.3, method=polar.SVD(), **arguments))
    chex.assert_trees_all_close(actual, transcription(*expected), atol=2e-5)


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.95])
def test_the_momentum_is_optax_s_average(momentum):
    """Debiased: the first step does not depend on the decay rate, for matrices and others alike."""
    average = optax.ema(momentum, debias=True)
    kernel = optax.chain(average, scale_by_egd(polar.SVD()), optax.sgd(0.3))
    rest = optax.chain(average, optax.sgd(0.3))
    expected = run(optax.partition({"a": kernel, "b": rest}, {"kernel": "a", "bias": "b"}))
    actual = run(egd(0.3, method=polar.SVD(), momentum=momentum))
    chex.assert_trees_all_close(actual, expected, atol=2e-5)


@pytest.mark.usefixtures("optax_promotes")
def test_others_keep_their_own_rules():
    adam = optax.adam(0.01)
    actual = run(egd(0.3, weight_decay=0.1, momentum=0.9, others=adam))
    chex.assert_trees_all_close(actual["bias"], run(adam)["bias"], atol=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("dtypes", [("float32", "bfloat16"), ("bfloat16", "float32")], ids=str)
def test_gradients_need_not_have_the_dtype_of_the_parameters(dtypes, nesterov):
    """A master copy's loop: the average has the parameters' dtype, updates have the gradients'."""
    ours, theirs = (jnp.dtype(dtype) for dtype in dtypes)
    params = jax.tree.map(lambda leaf: leaf.astype(ours), PARAMS)
    optimizer = egd(0.1, momentum=0.9, nesterov=nesterov)
    state, exact = optimizer.init(params), optimizer.init(PARAMS)
    update = jax.jit(optimizer.update)
    for gradient in GRADS:
        low = jax.tree.map(lambda leaf: leaf.astype(theirs), gradient)
        updates, after = update(low, state, params)
        expected, exact = update(gradient, exact, PARAMS)
        chex.assert_trees_all_equal_dtypes(after, state)
        state = after
    assert {leaf.dtype for leaf in jax.tree.leaves(updates)} == {theirs}
    as_float = jax.tree.map(lambda leaf: leaf.astype("float32"), updates)
    chex.assert_trees_all_close(as_float, expected, atol=5e-3)


@pytest.mark.usefixtures("optax_promotes")
@pytest.mark.parametrize("arguments", [{}, {"weight_decay": 0.1}], ids=str)
def test_injected_numbers_leave_the_average_its_dtype(arguments):
    params = {**PARAMS, "kernel": PARAMS["kernel"].astype("bfloat16")}
    optimizer = optax.inject_hyperparams(egd)(0.1, momentum=0.9, **arguments)
    state = first = optimizer.init(params)
    for _ in range(2):
        _, state = optimizer.update(params, state, params)
    chex.assert_trees_all_equal_dtypes(state, first)


def test_max_stack_size_is_handed_on():
    params = normal([(4, 6)] * 3)
    whole = updates_of(egd(1.0, method=polar.SVD()), params)
    apart = updates_of(egd(1.0, method=polar.SVD(), max_stack_size=24), params)
    chex.assert_trees_all_close(whole, apart, atol=1e-6)
    jaxpr = str(jax.make_jaxpr(lambda p: updates_of(egd(1.0, max_stack_size=24), p))(params))
    assert "[3,4,6]" not in jaxpr
    assert "[3,4,6]" in str(jax.make_jaxpr(lambda p: updates_of(egd(1.0), p))(params))


NET = normal(
    {
        "hidden": {"kernel": (6, 8), "bias": (8,)},
        "second": {"kernel": (8, 8), "bias": (8,)},
        "norm": {"scale": (2, 3, 4)},
        "embedding": (5, 6),
        "head": {"kernel": (8, 5)},
    }
)
HIDDEN = {"hidden/kernel", "second/kernel"}
TREE = jax.tree.map(lambda leaf: False, NET) | {"hidden": {"kernel": True, "bias": True}}


@pytest.mark.parametrize(
    ("arguments", "whitened"),
    [
        ({}, HIDDEN),
        ({"matrices": "hidden/kernel"}, {"hidden/kernel"}),
        ({"matrices": ["hidden", "second/kernel"]}, HIDDEN),
        ({"matrices": matching("kernel", exclude="hidden")}, {"second/kernel"}),
        ({"matrices": TREE}, {"hidden/kernel"}),
        ({"matrices": lambda params: "second"}, {"second/kernel"}),
        ({"matrices": lambda params: TREE}, {"hidden/kernel"}),
        ({"matrices": "kernel"}, HIDDEN),  # it narrows, the head stays out
        ({"matrices": "kernel", "axes": {"head": MatrixAxes(0, 1)}}, HIDDEN | {"head/kernel"}),
        ({"axes": {"embedding": MatrixAxes(0, 1)}}, HIDDEN | {"embedding"}),
        ({"axes": {"hidden": None}}, {"second/kernel"}),
        ({"axes": infer_axes}, HIDDEN),
        ({"axes": infer_axes(NET)}, HIDDEN),
        ({"axes": lambda params: {"second": None}}, {"hidden/kernel"}),
    ],
)
def test_what_is_whitened(arguments, whitened):
    """`matrices` narrows, `axes` overrides what is inferred; the rest is all `others`'."""
    optimizer = egd(0.1, others=optax.set_to_zero(), **arguments)
    assert moved(optimizer, NET) == whitened
    plan = diagnostics.whitening_plan(optimizer, NET)
    assert {leaf.path for leaf in plan.leaves if leaf.axes} == whitened


GPT = {
    "wte": (50, 8),
    "wpe": (16, 8),
    "blocks": {
        "attn": {"qkv": {"kernel": (2, 8, 24)}, "proj": {"kernel": (2, 8, 8)}},
    },
    "adapter": {"kernel": (8, 8)},
    "lm_head": {"kernel": (8, 50)},
}
RESNET = {
    "stem": {"kernel": (7, 7, 3, 8)},
    "block": {"conv1": {"kernel": (3, 3, 8, 8)}, "shortcut": {"kernel": (1, 1, 8, 16)}},
    "classifier": {"kernel": (16, 10), "bias": (10,)},
}


@pytest.mark.parametrize(
    ("shapes", "unknown"),
    [
        (GPT, ["blocks/attn/proj/kernel", "blocks/attn/qkv/kernel"]),
        (RESNET, ["block/shortcut/kernel", "stem/kernel"]),
    ],
    ids=["bias-free stacked GPT", "bias-free ResNet"],
)
def test_nothing_is_left_unwhitened_in_silence(shapes, unknown):
    """Unknown leaves are named, first in the table, and a word for them is enough."""
    params = normal(shapes)
    table = infer_axes(params)
    assert [leaf.path for leaf in table.unknown] == unknown
    lines = str(table).splitlines()
    assert lines[0].startswith(f"Unknown: {len(unknown)}.")
    rows = lines.index(next(line for line in lines if line.startswith("leaf ")))
    assert [line.split()[0] for line in lines[rows + 1 :][: len(unknown)]] == unknown
    for make in (egd, lambda _, axes: scale_by_egd(axes=axes or infer_axes)):
        for axes in (None, infer_axes):
            with pytest.raises(ValueError, match="Nothing explains") as refusal:
                make(0.1, axes=axes).init(params)
            assert all(path in str(refusal.value) for path in unknown)
            assert "axes=infer_axes(params, loss, batch)" in str(refusal.value)
    word = MatrixAxes(-2, -1) if shapes is GPT else MatrixAxes((0, 1, 2), 3)
    optimizer = egd(0.1, axes={"|".join(unknown): word}, others=optax.set_to_zero())
    left_out = {"wte", "wpe", "lm_head/kernel", "classifier/kernel"}
    whitened = moved(optimizer, params)
    assert whitened > set(unknown)
    assert not whitened & left_out


def test_unknown_leaves_are_named_with_the_reasons_that_the_loss_gives():
    def loss(params, x):
        hidden = x @ params["twice"] + jnp.broadcast_to(params["twice"][0], (4, 6))
        return jnp.mean(jnp.tanh(hidden) @ params["out"])

    params = normal({"twice": (6, 6), "out": (6, 2)})
    axes = infer_axes(params, loss, jnp.ones((4, 6)))
    for optimizer in (egd(0.1, axes=axes), scale_by_egd(axes=axes)):
        with pytest.raises(ValueError, match=r"'twice \(6, 6\): unknown: two uses") as refusal:
            optimizer.init(params)
        line = loss.__code__.co_firstlineno + 1
        assert f"dot_general, test_alias.py:{line}" in str(refusal.value)
        assert "overrides={'twice': MatrixAxes(rows=0, columns=1)}" in str(refusal.value)


def test_what_is_not_whitened_takes_sgd_steps():
    """By default with the same rate, decay and average."""
    optimizer = egd(0.1, momentum=0.9, weight_decay=0.5)
    updates = updates_of(optimizer, NET)
    for path in ("embedding", "norm", "head"):
        expected = jax.tree.map(lambda leaf: -0.1 * 1.5 * leaf, NET[path])
        chex.assert_trees_all_close(updates[path], expected, rtol=1e-5)


@pytest.mark.parametrize("number", [float, np.float32, np.asarray, jnp.asarray])
def test_numbers_may_be_arrays(number):
    numbers = {"learning_rate": 0.5, "momentum": 0.5, "weight_decay": 0.25}
    optimizer = egd(**jax.tree.map(number, numbers))
    expected = updates_of(egd(**numbers), PARAMS)
    with jax.numpy_dtype_promotion("standard"):
        chex.assert_trees_all_close(updates_of(optimizer, PARAMS), expected, rtol=1e-5)


SCHEDULE = optax.linear_schedule(0.9, 0.5, 10)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: egd(0.1, decay="l2"), ValueError, "coupled, decoupled, got 'l2'"),
        (lambda: egd(0.1, nesterov=True), ValueError, "needs a momentum"),
        (lambda: egd(0.1, average="after"), ValueError, "needs a momentum"),
        (lambda: egd(0.1, momentum=0.9, average="both"), ValueError, "before, after, got 'both'"),
        (lambda: egd(0.1, momentum=1.0), ValueError, r"\[0, 1\), got 1.0"),
        (lambda: egd(0.1, momentum=jnp.ones(())), ValueError, r"\[0, 1\), got Array\(1"),
        (lambda: egd(0.1, momentum="x"), TypeError, "momentum must be a number or None.*got 'x'"),
        (lambda: egd(0.1, momentum=SCHEDULE), TypeError, "schedules: optax.inject_hyperparams"),
        (lambda: egd(0.1, momentum=0.9, nesterov="x"), TypeError, "True or False, got 'x'"),
        (lambda: egd(0.1, weight_decay=-1.0), ValueError, r"weight_decay must .*inf\), got -1.0"),
        (lambda: egd(0.1, weight_decay=np.inf), ValueError, r"weight_decay must .*inf\), got inf"),
        (lambda: egd(0.1, weight_decay=SCHEDULE), TypeError, "schedules: optax.inject_hyperparams"),
        (lambda: egd(0.1, weight_decay=None), TypeError, "weight_decay must be .* got None"),
        (lambda: egd(np.ones(2)), TypeError, "learning_rate must be a number or a schedule"),
        (lambda: egd(-0.1), ValueError, r"learning_rate must lie in \[0, inf\), got -0.1"),
        (lambda: egd("0.1"), TypeError, "a number or a schedule, got '0.1'"),
        (lambda: egd(0.1, scale="rms"), ValueError, "muon, consistent_rms.*got 'rms'"),
        (lambda: egd(0.1, max_stack_size=0), ValueError, "at least 1, got 0"),
        (lambda: egd(0.1, others="adam"), TypeError, "got 'adam'"),
        (lambda: egd(0.1, matrices=3).init(PARAMS), ValueError, "a tree with a bool .* got 3"),
        (lambda: egd(0.1, axes=3), TypeError, "axes must be"),
    ],
)
def test_bad_arguments_are_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()
