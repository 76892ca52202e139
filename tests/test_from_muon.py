"""Muon's setting of egd takes the steps of optax.contrib.muon, and goes on from its state."""

import functools
import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import orbax.checkpoint as ocp
import pytest
from flax import nnx, serialization
from helpers import normal

from egd_optax import MatrixAxes, egd, from_muon, polar

pytestmark = pytest.mark.usefixtures("quick_compilation", "optax_promotes")
if not hasattr(optax.contrib, "muon"):
    pytest.skip("this Optax has no Muon", allow_module_level=True)

# A network with all kinds of leaves: matrices, a stack of layers, heads of attention, vectors.
SHAPES = {
    "tokens": (11, 8),
    "query": {"kernel": (8, 2, 4), "bias": (2, 4)},
    "layers": {"kernel": (3, 8, 8), "bias": (3, 8)},
    "head": {"kernel": (8, 11)},
}
PARAMS = jax.tree.map(lambda leaf: leaf / 3, normal(SHAPES))
BATCHES = jax.random.randint(jax.random.key(0), (50, 6, 5), 0, 11)
STEP = (1.5, -0.5, 0.0)
ROWS = polar.polar_express_coefficients(5, lower=1e-3)
ADAM = {"learning_rate": 0.003, "b1": 0.8, "b2": 0.99, "eps_root": 1e-6, "weight_decay": 0.2}
SCHEDULE = optax.linear_schedule(0.04, 0.01, 50)


def loss(params, tokens):
    """Predict the next token."""
    x = params["tokens"][tokens]
    query = jnp.einsum("btd,dhk->bthk", x, params["query"]["kernel"]) + params["query"]["bias"]
    keys = x.reshape(query.shape)
    weights = jax.nn.softmax(jnp.einsum("bthk,bshk->bhts", query, keys))
    x = x + jnp.einsum("bhts,bshk->bthk", weights, keys).reshape(x.shape)
    for layer in range(3):
        x = x + jnp.tanh(x @ params["layers"]["kernel"][layer] + params["layers"]["bias"][layer])
    logits = (x @ params["head"]["kernel"])[:, :-1]
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


def two_axes(params):
    """Muon's own choice: leaves of two axes, whatever they are."""
    return jax.tree.map(lambda leaf: MatrixAxes(0, 1) if leaf.ndim == 2 else None, params)


def numbers(params):
    """Stacked layers, attention's heads as one matrix, and a head of the network for Adam."""
    make, none = optax.contrib.MuonDimensionNumbers, jax.tree.map(lambda leaf: None, params)
    return none | {
        "query": {"kernel": make(0, (1, 2)), "bias": None},
        "layers": {"kernel": make(-2, -1), "bias": None},
    }


def muons(rate=0.02, **changed):
    """Muon's setting, as in docs/guides/from-muon.md."""
    setting = {
        "method": polar.NewtonSchulz("standard"),
        "momentum": 0.95,
        "nesterov": True,
        "decay": "decoupled",
        "axes": two_axes,
        "scale": "muon",
        "others": optax.adamw(rate, weight_decay=0.0, nesterov=True),
    }
    return egd(rate, **setting | changed)


def newton_schulz(*arguments):
    return {"method": polar.NewtonSchulz(*arguments)}


CASES = {
    "defaults": ({}, {}),
    "three steps, a schedule": (
        {"ns_coeffs": "standard", "ns_steps": 3, "learning_rate": SCHEDULE},
        newton_schulz("standard", 3) | {"rate": SCHEDULE},
    ),
    "dion, consistent_rms=.2": (
        {"ns_coeffs": "dion", "consistent_rms": 0.2},
        newton_schulz("dion") | {"scale": "consistent_rms"},
    ),
    "a triple, consistent_rms=.5": (
        {"ns_coeffs": STEP, "ns_steps": 4, "consistent_rms": 0.5},
        newton_schulz([STEP], 4) | {"scale": lambda m, n: 0.5 * max(m, n) ** 0.5},
    ),
    "a row for each step": ({"ns_coeffs": ROWS}, newton_schulz(ROWS)),
    "no look-ahead": (
        {"nesterov": False, "beta": 0.8},
        {"nesterov": False, "momentum": 0.8, "others": optax.adamw(0.02, weight_decay=0.0)},
    ),
    "decay": ({"weight_decay": 0.1}, {"weight_decay": 0.1}),
    "Adam's own": (
        {f"adam_{name}": value for name, value in ADAM.items()},
        {"others": optax.adamw(**ADAM, nesterov=True)},
    ),
    "dimension numbers": ({"muon_weight_dimension_numbers": numbers}, {"axes": numbers}),
}


def muon(**arguments):
    """Optax's, or skip where this version lacks an argument or a name."""
    known = inspect.signature(optax.contrib.muon).parameters
    preset = isinstance(arguments.get("ns_coeffs"), str)
    if {*arguments} - {*known} or (preset and not hasattr(optax.contrib, "MuonDimensionNumbers")):
        pytest.skip("this Optax has no such setting")
    return optax.contrib.muon(**{"learning_rate": 0.02} | arguments)


gradients = jax.jit(jax.grad(loss))


def stepper(optimizer):
    """A function from parameters, state and batches to the next parameters and state."""

    @jax.jit
    def step(params, state, gradient):
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    def run(params, state, batches):
        for batch in batches:
            params, state = step(params, state, gradients(params, batch))
        return params, state

    return run


FAST = ("defaults", "no look-ahead", "dimension numbers")


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_the_same_steps_and_a_run_that_is_switched(name):
    """50 steps: Optax's, ours, and Optax's for 25 and ours from there on."""
    arguments, changed = CASES[name]
    theirs, ours = muon(**arguments), muons(**changed)
    run_theirs, run_ours = stepper(theirs), stepper(ours)
    with jax.numpy_rank_promotion("allow"):
        middle = run_theirs(PARAMS, theirs.init(PARAMS), BATCHES[:25])
        expected, _ = run_theirs(*middle, BATCHES[25:])
        whole, state = run_ours(PARAMS, ours.init(PARAMS), BATCHES)
        taken = from_muon(middle[1], ours.init(PARAMS))
        switched, last = run_ours(middle[0], taken, BATCHES[25:])
    assert np.abs(expected["tokens"] - PARAMS["tokens"]).max() > 0.1
    chex.assert_trees_all_close(whole, expected, atol=1e-4)
    chex.assert_trees_all_close(switched, expected, atol=1e-4)
    chex.assert_trees_all_close(switched, whole, atol=1e-4)
    chex.assert_trees_all_equal_shapes_and_dtypes(last, state)


def after_a_step(optimizer, params=PARAMS):
    """A state that is not the first, so that nothing in it is zero."""
    gradient = jax.tree.map(jnp.cos, params)
    return optimizer.update(gradient, optimizer.init(params), params)[1]


@functools.cache
def of_muon():
    return after_a_step(optax.contrib.muon(SCHEDULE))


def restored(state, tmp_path):
    """What Orbax restores without a template: dictionaries and lists."""
    with ocp.StandardCheckpointer() as checkpoints:
        checkpoints.save(tmp_path / "state", {"state": state, "step": 1})
        checkpoints.wait_until_finished()
        return checkpoints.restore(tmp_path / "state")


@pytest.mark.parametrize(
    "form",
    [
        lambda state, _: serialization.to_state_dict(state),
        lambda state, _: (optax.EmptyState(), {"inner": state}),
        restored,
    ],
    ids=["Flax's dictionaries", "in a chain", "restored by Orbax"],
)
def test_a_state_is_found_by_its_fields(form, tmp_path):
    empty = muons(SCHEDULE).init(PARAMS)
    expected = from_muon(of_muon(), empty)
    chex.assert_trees_all_equal(from_muon(form(of_muon(), tmp_path), empty), expected)
    chex.assert_trees_all_equal_structs(expected, empty)
    counts = optax.tree_utils.tree_get_all_with_path(expected, "count")
    assert [int(count) for _, count in counts] == [1] * 4  # average, Adam and both schedules


def test_the_state_of_an_nnx_optimizer():
    model = nnx.Linear(3, 4, rngs=nnx.Rngs(0))
    old, new = (nnx.Optimizer(model, o, wrt=nnx.Param) for o in (optax.contrib.muon(0.1), muons()))
    old.update(model, nnx.grad(lambda model: model(jnp.ones(3)).sum())(model))
    new.opt_state = from_muon(old.opt_state, new.opt_state)
    average = optax.tree_utils.tree_get(new.opt_state, "ema")["kernel"][...]
    np.testing.assert_allclose(average, 0.05 * jnp.ones((3, 4)), rtol=1e-6)
    new.update(model, nnx.grad(lambda model: model(jnp.ones(3)).sum())(model))


def test_dtypes_and_layouts_are_those_of_egd_s_state():
    mesh = jax.make_mesh((8,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    across = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "devices"))
    params = {"kernel": jnp.ones((3, 8))}
    one = jax.sharding.SingleDeviceSharding(jax.devices()[1])
    for theirs, ours in [(one, across), (across, one)]:
        muon = optax.contrib.muon(0.1, mu_dtype="bfloat16")
        state = after_a_step(muon, jax.device_put(params, theirs))
        empty = muons().init(jax.device_put(params, ours))
        average = optax.tree_utils.tree_get(from_muon(state, empty), "ema")["kernel"]
        assert average.dtype == jnp.float32
        assert average.sharding.is_equivalent_to(ours, ndim=2)


def test_a_state_may_hold_numpy_s_arrays_but_no_shapes():
    empty = muons().init(PARAMS)
    expected = from_muon(of_muon(), empty)
    chex.assert_trees_all_equal(from_muon(of_muon(), jax.tree.map(np.asarray, empty)), expected)
    with pytest.raises(ValueError, match=r"must hold arrays, got a shape at 'inner_.*\.init\(par"):
        from_muon(of_muon(), jax.eval_shape(muons().init, PARAMS))


def with_counts(**counts):
    """Muon's state with other counts in its partition's states."""
    inner = {
        name: group._replace(inner_state=(first._replace(count=counts[name]), *rest))
        for name, group in of_muon().inner_states.items()
        for first, *rest in [group.inner_state]
    }
    return of_muon()._replace(inner_states=inner)


OTHER = PARAMS | {"head": {"kernel": PARAMS["head"]["kernel"].T}}
FEWER = {"tokens": PARAMS["tokens"]}


@pytest.mark.parametrize(
    ("state", "make", "says"),
    [
        (
            lambda: after_a_step(optax.adam(0.1)),
            muons,
            "must hold one .*muon, got none of '0/count'",
        ),
        (lambda: [of_muon(), of_muon()], muons, "got '0/inner_.* '1/inner_states/muon"),
        (of_muon, lambda: muons(momentum=None, nesterov=False), "needs a momentum, such as Muon's"),
        (of_muon, lambda: muons(average="after"), 'Build it with average="before"'),
        (of_muon, lambda: muons(others=optax.sgd(0.1, 0.9)), "holds .*trace.*Muon's has nothing"),
        (of_muon, lambda: muons(others=None), "Build egd with Adam, such as .*adamw"),
        (of_muon, lambda: optax.chain(optax.identity(), muons()), "Of a chain .* pass egd's part"),
        (of_muon, lambda: muons(axes={"": None, "tokens": MatrixAxes(0, 1)}), "'head/kernel' has"),
        (of_muon, lambda: muons(axes=infer_layers), "'layers/kernel' has nothing in Muon's"),
        (lambda: after_a_step(optax.contrib.muon(0.1), FEWER), muons, "'head/kernel' has nothing"),
        (
            lambda: after_a_step(optax.contrib.muon(0.1), OTHER),
            muons,
            r"'head/kernel' has shape \(11, 8\) in Muon's state and shape \(8, 11\) in egd's",
        ),
        (
            lambda: with_counts(muon=2, adam=1),
            muons,
            "one number of steps.*got 1 at .*adam.* 2 at .*muon",
        ),
        (lambda: with_counts(muon=-1, adam=1), muons, "from 0 on, got .*-1 at 'inner_states/muon"),
        (lambda: with_counts(muon=1.0, adam=1), muons, r"got .*1\.0 at"),
        (lambda: with_counts(muon=jnp.ones(8, int), adam=1), muons, r"got .*\[1 1 .* at"),
    ],
)
def test_what_does_not_fit_is_refused(state, make, says):
    with pytest.raises(ValueError, match=says):
        from_muon(state(), make().init(PARAMS))


def infer_layers(params):
    """Muon's leaves, and the stack of layers as well."""
    return two_axes(params) | {"layers": {"kernel": MatrixAxes(1, 2), "bias": None}}
