"""The Optax contract: every public transformation and alias through every promise, one table."""

import dataclasses
import functools
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any
from unittest import mock

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from absl.testing import parameterized
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import egd_optax
from egd_optax import (
    MatrixAxes,
    blend_in,
    diagnostics,
    egd,
    grokfast_ema,
    grokfast_ma,
    normalize_columns,
    polar,
    scale_by_egd,
    switch_off,
)


def every_second_step(method=None):
    """The recipe of docs/api.md."""
    return optax.chain(
        optax.conditionally_transform(scale_by_egd(method), lambda step: step % 2 == 0),
        optax.conditionally_transform(optax.scale(0.1), lambda step: step % 2 != 0),
    )


@dataclasses.dataclass(frozen=True)
class Case:
    """A transformation, what its `update` wants, and what is to be found in its state."""

    factory: Callable[..., optax.GradientTransformation]
    arguments: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    extra: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    static: tuple[str, ...] = ()  # arguments that are no numbers, for `inject_hyperparams`
    injected: tuple[str, ...] = ()  # those that are
    copies: int = 0  # of the parameters, in the state
    counter: str = ""  # name of the count of updates in the state
    control_flow: bool = False  # which would be compiled at every eager call
    skips: Mapping[str, str] = dataclasses.field(default_factory=dict)  # promise -> why not

    def make(self, **changes) -> optax.GradientTransformationExtraArgs:
        return self.support(self.factory(**{**self.arguments, **changes}))

    def support(self, transformation) -> optax.GradientTransformationExtraArgs:
        """Hand the extra arguments to every update."""
        inner = optax.with_extra_args_support(transformation)

        def update(updates, state, params=None):
            return inner.update(updates, state, params, **self.extra)

        return optax.GradientTransformationExtraArgs(inner.init, update)


RATE = 0.1
RAMP = optax.linear_schedule(0.0, 1.0, 3)
NO_INTEGERS = {"integers": "SGD multiplies integers by its rate"}
WRAPPERS = ("extra_arguments", "inject_hyperparams", "multi_steps", "masked", "partition")
WRAPPERS += ("apply_if_finite", "lookahead", "replication")
ONLY_A_METHOD = dict.fromkeys(WRAPPERS, "the factor aside, auto's or streaming's program once more")
ONLY_A_WINDOW = dict.fromkeys(WRAPPERS[2:], "the window aside, grokfast_ema's program once more")
RATES = {"injected": ("learning_rate", "weight_decay"), "skips": NO_INTEGERS}
# Sketches as wide as the matrices: whatever is drawn, the leading directions are exact.
TABLE = {
    "auto": Case(scale_by_egd),
    "gram": Case(scale_by_egd, {"method": polar.Gram(), "scale": "width"}, skips=ONLY_A_METHOD),
    "newton_schulz": Case(scale_by_egd, {"method": polar.NewtonSchulz()}, skips=ONLY_A_METHOD),
    "randomized": Case(
        scale_by_egd, {"method": polar.Randomized(2)}, counter="step", skips=ONLY_A_METHOD
    ),
    "streaming": Case(scale_by_egd, {"method": polar.Streaming(2)}, counter="step"),
    "egd": Case(egd, {"learning_rate": RATE}, **RATES),
    "egd_momentum": Case(
        egd,
        {"learning_rate": RATE, "momentum": 0.9, "weight_decay": 0.01},
        injected=("learning_rate", "weight_decay", "momentum"),
        copies=1,
        skips=NO_INTEGERS,
    ),
    "egd_decoupled": Case(
        egd, {"learning_rate": RATE, "weight_decay": 0.01, "decay": "decoupled"}, **RATES
    ),
    "switch_off": Case(
        switch_off,
        {"inner": grokfast_ema(0.5), "after": scale_by_egd(), "threshold": 0.5},
        extra={"metric": 0.4},
        injected=("threshold",),
        copies=1,
        counter="step",
        control_flow=True,
        skips={"lookahead": "optax.lookahead hands no extra arguments on"},
    ),
    "blend_in": Case(
        blend_in, {"inner": scale_by_egd(), "weight": RAMP}, injected=("weight",), counter="step"
    ),
    "grokfast_ema": Case(
        grokfast_ema,
        {"decay": 0.5, "strength": 1.0},
        injected=("decay", "strength"),
        copies=1,
        counter="step",
    ),
    "grokfast_ma": Case(
        grokfast_ma,
        {"window": 2, "strength": 1.0},
        control_flow=True,
        skips=ONLY_A_WINDOW,
        static=("window",),
        injected=("strength",),
        copies=1,
        counter="step",
    ),
    "normalize_columns": Case(normalize_columns, {"floor": 0.1}, injected=("floor",)),
    "spectrum_monitor": Case(
        diagnostics.spectrum_monitor,
        {"every": 2},
        static=("every",),
        counter="step",
        control_flow=True,
    ),
    "every_second_step": Case(
        every_second_step,
        counter="step",
        control_flow=True,
        skips={"integers": "optax.scale multiplies integers by a float"},
    ),
}
STEPS = 4


def draw(seed, leading=()):
    rng = np.random.default_rng(seed)
    # One shape of matrix: a bucket of two to take apart, and half of the compilation.
    shapes = {"first": (4, 6), "second": (4, 6), "bias": (6,), "scalar": ()}
    return {
        name: jnp.asarray(rng.standard_normal((*leading, *shape)), jnp.float32)
        for name, shape in shapes.items()
    }


PARAMS, GRADS = draw(0), draw(1, (STEPS,))


def at(tree, index):
    return jax.tree.map(lambda leaf: leaf[index], tree)


def scan(transformation):
    """Function from the gradients of all steps and parameters to the last state and all updates."""

    def all_steps(grads, params):
        def step(state, gradient):
            updates, state = transformation.update(gradient, state, params)
            return state, updates

        return jax.lax.scan(step, transformation.init(params), grads)

    return jax.jit(all_steps)


def loop(update, init, grads, params):
    """The same by a loop."""
    state, all_updates = init(params), []
    for index in range(len(jax.tree.leaves(grads)[0])):
        updates, state = update(at(grads, index), state, params)
        all_updates.append(updates)
    return state, jax.tree.map(lambda *leaves: jnp.stack(leaves), *all_updates)


def run(name, transformation, grads=GRADS, params=PARAMS):
    """The same the quicker way: eager steps find the polar methods compiled."""
    if TABLE[name].control_flow:
        return scan(transformation)(grads, params)
    return loop(transformation.update, transformation.init, grads, params)


@functools.cache
def scanned(name):
    return scan(TABLE[name].make())


@functools.cache
def plain(name):
    """The last state and all updates, for comparison."""
    return scanned(name)(GRADS, PARAMS)


@functools.cache
def jitted(name):
    """The update, traced once at most; it takes the buffers of the gradients and the state."""
    chex.clear_trace_counter()  # it counts by the line of the definition, which all cases share
    update = chex.assert_max_traces(TABLE[name].make().update, n=1)
    return jax.jit(update, donate_argnums=(0, 1))


def promise(function):
    """Run a test for every case of the table but those that skip it."""
    label = function.__name__.removeprefix("test_")
    return pytest.mark.parametrize(
        "name", [name for name, case in TABLE.items() if label not in case.skips]
    )(function)


close = functools.partial(chex.assert_trees_all_close, atol=2e-5)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """Compilation is most of the time here: leave out what only makes programs faster."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_the_table_is_complete():
    """Every public function that returns a transformation has a case; every skip a promise."""
    kinds = (optax.GradientTransformation, optax.GradientTransformationExtraArgs)
    public = [
        function
        for module in (egd_optax, diagnostics)
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if not name.startswith("_") and inspect.signature(function).return_annotation in kinds
    ]
    assert len(public) > 7
    assert set(public) <= {case.factory for case in TABLE.values()}
    assert {f"test_{label}" for case in TABLE.values() for label in case.skips} <= set(globals())


@promise
def test_extra_arguments(name):
    """Those that a transformation does not know are ignored, alone (aliases) and in a chain."""
    case = TABLE[name]
    bare = case.factory(**case.arguments)
    alias = case.factory is egd
    assert not alias or isinstance(bare, optax.GradientTransformationExtraArgs)
    chained = bare if alias else optax.chain(bare, optax.identity())
    extra = {**case.extra, "value": 1.0, "unexpected": "anything"}
    updates, _ = chained.update(at(GRADS, 0), chained.init(PARAMS), PARAMS, **extra)
    close(updates, at(plain(name)[1], 0))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda inner: switch_off(inner, optax.identity(), threshold=0.5),
        lambda inner: switch_off(optax.identity(), inner, threshold=-0.5),
        lambda inner: blend_in(inner, 1.0),
    ],
)
def test_wrappers_hand_extra_arguments_on(wrap):
    def update(updates, state, params=None, *, value, **extra_args):
        return jax.tree.map(lambda leaf: value * leaf, updates), state

    wrapped = wrap(optax.GradientTransformationExtraArgs(lambda params: (), update))
    updates, _ = wrapped.update(PARAMS, wrapped.init(PARAMS), PARAMS, value=3.0, metric=0.0)
    close(updates, jax.tree.map(lambda leaf: 3 * leaf, PARAMS))


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Module:
    """A tree that can be called, like Equinox's modules."""

    first: Any
    second: Any
    bias: Any
    scalar: Any

    def __call__(self, x):
        raise AssertionError("a tree was taken for a function")


@promise
@pytest.mark.usefixtures("optax_promotes")
def test_inject_hyperparams(name):
    """Numbers become traced arrays in the state; parameters may be a tree that can be called."""
    case = TABLE[name]
    factory = optax.inject_hyperparams(case.factory, static_args=case.static)
    injected = case.support(factory(**case.arguments))
    ours = scan(injected) if case.injected else functools.partial(run, name, injected)
    state, updates = ours(Module(**GRADS), Module(**PARAMS))
    close(vars(updates), plain(name)[1])
    assert set(state.hyperparams) == set(case.injected)


@pytest.mark.usefixtures("optax_promotes")
def test_injected_numbers_can_be_set_and_trees_that_can_be_called_are_no_functions():
    chosen = Module(first=True, second=False, bias=False, scalar=False)
    optimizer = optax.inject_hyperparams(egd, static_args="matrices")(RATE, matrices=chosen)
    grads, params = Module(**at(GRADS, 0)), Module(**PARAMS)
    update, state = jax.jit(optimizer.update), optimizer.init(params)
    updates, _ = update(grads, state, params)
    state.hyperparams["learning_rate"] = jnp.float32(3 * RATE)
    tripled, _ = update(grads, state, params)
    close(tripled, jax.tree.map(lambda leaf: 3 * leaf, updates))
    close(updates.first, plain("egd")[1]["first"][0])
    close(updates.second, -RATE * grads.second)


@promise
@pytest.mark.usefixtures("optax_promotes")
def test_multi_steps(name):
    """The mean of two gradients is what is transformed; between, nothing moves."""
    accumulated = optax.MultiSteps(TABLE[name].make(), 2).gradient_transformation()
    noise = draw(2, (STEPS,))
    halves = jax.tree.map(lambda g, d: jnp.stack([g - d, g + d], 1), GRADS, noise)
    halves = jax.tree.map(lambda leaf: leaf.reshape(2 * STEPS, *leaf.shape[2:]), halves)
    state, updates = scan(accumulated)(halves, PARAMS)
    expected_state, expected = plain(name)
    chex.assert_trees_all_equal(at(updates, slice(0, None, 2)), optax.tree.zeros_like(expected))
    close(at(updates, slice(1, None, 2)), expected, atol=1e-4)
    close(state.inner_opt_state, expected_state, atol=1e-3)


@promise
def test_masked(name):
    mask = {"first": True, "second": False, "bias": True, "scalar": False}
    _, updates = run(name, optax.masked(TABLE[name].make(), mask))
    for leaf, chosen in mask.items():
        if chosen:
            close(updates[leaf], plain(name)[1][leaf])
        else:
            np.testing.assert_array_equal(updates[leaf], GRADS[leaf])


@promise
def test_partition(name):
    """Two groups with a state each, and a frozen one."""
    make = TABLE[name].make
    labels = {"first": "a", "second": "b", "bias": "b", "scalar": "frozen"}
    groups = {"a": make(), "b": make(), "frozen": optax.set_to_zero()}
    _, updates = run(name, optax.partition(groups, labels))
    expected = plain(name)[1]
    close(updates, expected | {"scalar": jnp.zeros(STEPS)})


@promise
def test_apply_if_finite(name):
    """A NaN in one gradient: no update, and the steps after it are as if it had not been."""
    bad = jax.tree.map(lambda leaf: jnp.insert(leaf, 1, 1.0, axis=0), GRADS)
    bad["first"] = bad["first"].at[1, 2, 3].set(jnp.nan)
    state, updates = scan(optax.apply_if_finite(TABLE[name].make(), 2))(bad, PARAMS)
    expected_state, expected = plain(name)
    chex.assert_trees_all_equal(at(updates, 1), optax.tree.zeros_like(PARAMS))
    close(jax.tree.map(lambda leaf: jnp.delete(leaf, 1, axis=0), updates), expected)
    close(state.inner_state, expected_state)
    assert state.total_notfinite == 1


@promise
@pytest.mark.usefixtures("optax_promotes")
def test_lookahead(name):
    """Every second step, halfway to the slow parameters and a fresh state; against a loop."""
    transformation = TABLE[name].make()
    ahead = optax.lookahead(transformation, 2, 0.5, reset_state=True)

    update = jax.jit(ahead.update) if TABLE[name].control_flow else ahead.update
    actual = optax.LookaheadParams.init_synced(PARAMS)
    ahead_state = ahead.init(actual)
    for index in range(STEPS):
        updates, ahead_state = update(at(GRADS, index), ahead_state, actual)
        actual = optax.apply_updates(actual, updates)
    fast = slow = PARAMS
    for period in range(STEPS // 2):
        state = transformation.init(fast)
        for index in (2 * period, 2 * period + 1):
            updates, state = transformation.update(at(GRADS, index), state, fast)
            fast = optax.apply_updates(fast, updates)
        fast = slow = jax.tree.map(lambda a, b: (a + b) / 2, slow, fast)
    close(actual, optax.LookaheadParams(fast=fast, slow=slow), atol=1e-4)


SCHEDULE = optax.linear_schedule(1.0, 0.0, STEPS)


@pytest.mark.parametrize("inject", [False, True], ids=["plain", "injected"])
@pytest.mark.parametrize("name", [n for n, c in TABLE.items() if "learning_rate" in c.arguments])
@pytest.mark.usefixtures("optax_promotes")
def test_learning_rate_schedule(name, inject):
    """At each step the update that a constant rate of that size would give."""
    case = TABLE[name]
    factory = optax.inject_hyperparams(egd) if inject else egd
    optimizer = factory(**{**case.arguments, "learning_rate": SCHEDULE})
    _, updates = scan(optimizer)(GRADS, PARAMS)
    for index in range(STEPS):
        factor = SCHEDULE(index) / RATE
        expected = jax.tree.map(lambda leaf, i=index, f=factor: f * leaf[i], plain(name)[1])
        close(at(updates, index), expected, atol=1e-4)


@promise
def test_tree_utilities(name):
    """optax.tree finds the parameters in the state, and the counts, and sets them."""
    case, (state, _) = TABLE[name], plain(name)
    transformation = case.make()
    chex.assert_trees_all_equal(
        optax.tree.map_params(transformation, lambda leaf: leaf, state), state
    )

    def is_masked(node):
        return isinstance(node, optax.MaskedNode)

    names = optax.tree.map_params(
        transformation,
        lambda leaf, name: None if is_masked(leaf) else name,
        state,
        {name: name for name in PARAMS},
        transform_non_params=lambda _: None,
        is_leaf=is_masked,
    )
    assert sorted(jax.tree.leaves(names)) == sorted(case.copies * list(PARAMS))
    if case.counter:
        counts = [value for _, value in optax.tree.get_all_with_path(state, case.counter)]
        assert counts
        np.testing.assert_array_equal(np.concatenate([np.ravel(c) for c in counts]), STEPS)
        again = optax.tree.set(state, **{case.counter: jnp.int32(7)})
        assert all(value == 7 for _, value in optax.tree.get_all_with_path(again, case.counter))
    zeros = optax.tree.zeros_like(state)
    chex.assert_trees_all_equal(optax.tree.where(True, state, zeros), state)


@promise
def test_dtypes(name):
    """Leaves of several dtypes keep them, and round no more than their dtype asks."""
    dtypes = {"first": "bfloat16", "second": "bfloat16", "bias": "float16", "scalar": "float32"}

    def cast(tree):
        return {name: leaf.astype(dtypes[name]) for name, leaf in tree.items()}

    low = cast(GRADS), cast(PARAMS)
    _, updates = run(name, TABLE[name].make(), *low)
    chex.assert_trees_all_equal_shapes_and_dtypes(updates, low[0])
    chex.assert_tree_all_finite(updates)
    _, expected = scanned(name)(*optax.tree.cast(low, jnp.float32))
    close(optax.tree.cast(updates, jnp.float32), expected, atol=0.05, rtol=0.02)


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


@pytest.mark.parametrize("name", TABLE)
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


class TestVariants(chex.TestCase):
    """Eager, on arrays of the device and of the host; jit and replication have tests above."""

    @chex.variants(without_jit=True, with_device=True, without_device=True)
    @parameterized.named_parameters((name, name) for name in TABLE)
    def test_first_update(self, name):
        transformation = TABLE[name].make()

        def first(grads, params):
            return transformation.update(grads, transformation.init(params), params)[0]

        close(self.variant(first)(at(GRADS, 0), PARAMS), at(plain(name)[1], 0))


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


@pytest.mark.parametrize("name", ["streaming", *(n for n, case in TABLE.items() if case.copies)])
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
    layouts = SimpleNamespace(checked=0)

    def check(leaf, sharding):
        layouts.checked += 1
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)

    jax.tree.map(check, later, shardings)
    jax.tree.map(check, after, jax.tree.map(lambda leaf: leaf.sharding, state))


@promise
def test_convergence(name):
    """Least squares: the distance to the optimum falls by a factor of fifty."""
    transformation, target = TABLE[name].make(), draw(3)
    unit = -RATE if "learning_rate" in TABLE[name].arguments else 1.0
    params, state = PARAMS, transformation.init(PARAMS)
    for rate in np.linspace(0.3, 0.0, 150):
        updates, state = jitted(name)(optax.tree.sub(params, target), state, params)
        params = optax.tree.add_scale(params, np.float32(-rate / unit), updates)
    before, after = (optax.tree.norm(optax.tree.sub(p, target)) for p in (PARAMS, params))
    assert after < before / 50


def optax_contract(module):
    """The module of tests in Optax's wheel, its table of optimizers replaced by rows of egd.

    Its decorators read the table at import, so a second copy is made under another `product`;
    targets, dtypes and checks stay Optax's own.
    """
    product = parameterized.product
    variants: list[dict] = [
        {},
        {"momentum": 0.9, "weight_decay": 1e-4, "method": polar.Streaming(2)},
        {"weight_decay": 1e-4, "decay": "decoupled", "method": polar.Gram()},
    ]
    common = {"learning_rate": 1e-3, "axes": MatrixAxes(-2, -1)}  # a target has three axes
    rows = tuple(
        {"opt_name": "egd", "opt_kwargs": common | arguments}
        | {"wrapper_name": None, "wrapper_kwargs": None}
        for arguments in variants
    )
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.loader is not None
    copy = importlib.util.module_from_spec(spec)

    def rows_product(*tables, **grid):
        return product(*[rows for _ in tables], **grid)

    with mock.patch.object(parameterized, "product", rows_product):
        spec.loader.exec_module(copy)
    copy._get_opt_factory = lambda name: {"egd": egd}[name]
    return copy


@pytest.mark.usefixtures("optax_promotes")
class TestContributed(optax_contract("optax.contrib._common_test").ContribTest):
    """What Optax asks of the optimizers that others contribute to it."""
