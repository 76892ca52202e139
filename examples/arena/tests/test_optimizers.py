"""Every optimizer with traced values; the controls by hand; whitened steps; the ranges' rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from grokking.tasks import ModularArithmetic

import egd_optax
from arena import controls
from arena.contract import Knob, Task
from arena.optimizers import COUPLED, METHOD, OPTIMIZERS, matrices_of
from arena.recipes import optimizers as RECIPES
from arena.tasks import Parts

EVERY = {entry.name: entry for entry in (*OPTIMIZERS.values(), *RECIPES)}
RANDOM = np.random.default_rng(0)
GRADIENTS = RANDOM.standard_normal((5, 4, 6)).astype(np.float32)
MATRIX = RANDOM.standard_normal((4, 6)).astype(np.float32)
PARTS = Parts(ModularArithmetic("addition", 11), 16)
SMALL = Task(
    "small", "Small", PARTS.init, PARTS.loss, PARTS.data, PARTS.score, 0.95, 10, batches=(60,)
)


@functools.cache
def start():
    """Return parameters, and the gradients of three steps; not traced, whoever calls first."""
    with jax.ensure_compile_time_eval():
        params = SMALL.init(jax.random.key(0))
        gradient = jax.jit(jax.grad(SMALL.loss))(params, SMALL.data(0)[0])
        return params, jax.tree.map(lambda x: jnp.stack([x, x[::-1], 0.5 * x]), gradient)


def few(*quick, among=tuple(OPTIMIZERS)):
    """Return the names as parameters, of which those that are not quick are slow."""
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in among]


def middle(knob: Knob) -> np.generic:
    """Return a value of the kind that the engine hands over."""
    if knob.choices:
        return np.int32(0)
    return np.float32((knob.low * knob.high) ** 0.5 if knob.log else (knob.low + knob.high) / 2)


def run(transformation, gradients=GRADIENTS, params=MATRIX):
    """Return the updates of all steps."""

    def step(state, gradient):
        updates, state = transformation.update(gradient, state, jnp.asarray(params))
        return state, updates

    start = transformation.init(jnp.asarray(params))
    return np.asarray(jax.lax.scan(step, start, jnp.asarray(gradients))[1])


def descend(optimizer):
    """Return parameters after a step along each gradient, and the last update."""
    before, given = start()

    def step(carry, gradients):
        params, state = carry
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), updates

    (params, _), updates = jax.lax.scan(step, (before, optimizer.init(before)), given)
    return params, jax.tree.map(lambda leaf: leaf[-1], updates)


@functools.partial(jax.jit, static_argnums=0)
def train(name, values):
    return descend(EVERY[name].make(values, SMALL, start()[0]))


def settings(name, **changes):
    return {knob.name: middle(knob) for knob in EVERY[name].knobs} | {
        key: np.int32(value) if isinstance(value, int) else np.float32(value)
        for key, value in changes.items()
    }


@pytest.mark.parametrize("name", EVERY)
def test_an_entry_takes_traced_values(name):
    params, _ = jax.eval_shape(functools.partial(train, name), settings(name))
    like = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), start()[0])
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), params) == like


@pytest.mark.parametrize("name", few("egd", "shampoo", "lion"))
def test_an_entry_moves_all_leaves_by_finite_steps(name):
    params, updates = train(name, settings(name))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(updates))


@pytest.mark.parametrize("name", few("egd", "shampoo", among=("egd", "shampoo", "weighted")))
def test_whitened_steps_are_equally_long_in_all_directions(name):
    plain = {"decay": 0.0, "reach": 1.0, "learning_rate": 0.3}
    short = {"memory": 1.0} if name == "shampoo" else {}
    _, updates = train(name, settings(name, **plain, **short))
    for kernel in (updates["hidden"]["kernel"], updates["readout"]["kernel"]):
        values = np.linalg.svd(kernel, compute_uv=False)
        known = values[values > 1e-3]
        assert len(known) >= 10
        np.testing.assert_allclose(known, 0.3, rtol=0.05 if name == "shampoo" else 1e-4)


@pytest.mark.parametrize(
    ("name", "kind", "lookahead", "method"),
    [("egd", 0, 1, 0), ("egd", 1, 0, 1), ("after", 1, 1, 0)],
)
def test_the_chain_is_the_librarys_egd(name, kind, lookahead, method):
    decay = 0.5
    values = settings("egd", learning_rate=0.3, decay=decay, reach=4.0, others=0.03)
    values |= {"kind": np.int32(kind), "lookahead": np.int32(lookahead)}
    values |= {"method": np.int32(method)}
    params, _ = train(name, values)
    library = egd_optax.egd(
        0.3,
        method=egd_optax.polar.NewtonSchulz(steps=5) if method else None,
        momentum=0.75,
        nesterov=bool(lookahead),
        average="after" if name == "after" else "before",
        weight_decay=COUPLED * decay if kind else decay,
        decay="coupled" if kind else "decoupled",
        axes=egd_optax.MatrixAxes(0, 1),
        others=optax.adamw(0.03, b2=0.98, weight_decay=decay, nesterov=True),
    )
    expected, _ = jax.jit(lambda: descend(library))()
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-4), params, expected
    )


def test_an_average_of_one_step_is_the_gradient():
    for lookahead in (0.0, 1.0):
        same = run(controls.average(jnp.float32(0.0), lookahead))
        np.testing.assert_allclose(same, GRADIENTS, rtol=1e-6)


def test_orthogonal_gradients_keep_their_length():
    turned = run(controls.orthogonal_gradients())
    np.testing.assert_allclose((turned * MATRIX).sum((1, 2)), 0, atol=1e-5)
    lengths = np.linalg.norm(GRADIENTS, axis=(1, 2))
    np.testing.assert_allclose(np.linalg.norm(turned, axis=(1, 2)), lengths, rtol=1e-5)


def test_columns_are_clipped_after_the_step():
    new = MATRIX + run(controls.clip_columns(0.5, True), -0.1 * GRADIENTS[:1])[0]
    free = MATRIX - 0.1 * GRADIENTS[0]
    norms = np.linalg.norm(free, axis=0)
    np.testing.assert_allclose(new, free * np.minimum(1, 0.5 / norms), rtol=1e-5, atol=1e-6)


def test_a_gradient_of_the_whitened_length():
    scaled = run(controls.scale_to_whitened())
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=(1, 2)), 2.0, rtol=1e-5)
    np.testing.assert_allclose(scaled[0] / scaled[0, 0, 0], GRADIENTS[0] / GRADIENTS[0, 0, 0], 1e-4)


def test_shampoo_by_hand():
    decay, (first, second) = 0.75, GRADIENTS[:2].astype(np.float64)

    def root(one, two):
        mean = (decay * one + two) * (1 - decay) / (1 - decay**2)
        values, vectors = np.linalg.eigh(mean)
        floored = np.maximum(values, 1e-6 * values.max())
        return vectors * floored**-0.25 @ vectors.T

    left = root(first @ first.T, second @ second.T)
    right = root(first.T @ first, second.T @ second)
    found = run(controls.shampoo(decay), GRADIENTS[:2])[1]
    np.testing.assert_allclose(found, left @ second @ right, rtol=1e-3, atol=1e-4)


def test_noisy_rows_weigh_less():
    gradients = np.ones((9, 2, 6), np.float32) + 0.01 * RANDOM.standard_normal((9, 2, 6))
    gradients[:, 1] += RANDOM.standard_normal((9, 6))
    weighed = run(controls.weigh_rows(1.0), gradients.astype(np.float32), gradients[0])
    shares = np.abs(weighed / gradients).mean(axis=2)
    np.testing.assert_allclose(shares[0], 1, rtol=1e-5)  # nothing is known of the noise yet
    assert (shares[3:, 0] > 5 * shares[3:, 1]).all()
    free = run(controls.weigh_rows(0.0), gradients.astype(np.float32), gradients[0])
    np.testing.assert_allclose(free, gradients, rtol=1e-5)


def test_ranges_follow_one_rule():
    for entry in OPTIMIZERS.values():
        knobs = {knob.name: knob for knob in entry.knobs}
        for name in ("learning_rate", "decay"):
            np.testing.assert_allclose(knobs[name].high / knobs[name].low, 1e3)
    assert len({entry.knobs[1] for entry in OPTIMIZERS.values()}) == 1
    assert (*OPTIMIZERS["scaled"].knobs, METHOD) == OPTIMIZERS["egd"].knobs


def test_a_leaf_of_three_axes_is_no_matrix():
    task = Task(**{**vars(SMALL), "hidden": lambda params: {"kernel": True}})
    with pytest.raises(ValueError, match=r"matrices of small must .* got \[\(2, 3, 4\)\]"):
        matrices_of(task, {"kernel": jnp.ones((2, 3, 4))})


def test_norms_are_held_at_a_multiple_of_the_first():
    hold = controls.hold_norms(1.5, True)
    held = MATRIX + np.asarray(hold.update(GRADIENTS[0], hold.init(MATRIX), MATRIX)[0])
    np.testing.assert_allclose(np.linalg.norm(held), 1.5 * np.linalg.norm(MATRIX), rtol=1e-6)
    along = held / 1.5 * np.linalg.norm(MATRIX + GRADIENTS[0]) / np.linalg.norm(MATRIX)
    np.testing.assert_allclose(along, MATRIX + GRADIENTS[0], rtol=1e-5, atol=1e-6)


def test_a_nuclear_decay_takes_the_same_from_each_singular_value():
    change = optax.chain(controls.add_nuclear_decay(0.3), optax.scale_by_learning_rate(0.5))
    update, _ = change.update(jnp.zeros((4, 6)), change.init(MATRIX), MATRIX)
    before, after = (np.linalg.svd(np.float64(w))[1] for w in (MATRIX, MATRIX + update))
    np.testing.assert_allclose(after, before - 0.15, atol=1e-5)  # the exact factor's promise


def test_a_recipe_fixes_its_choice_alone():
    """With the choice made, EGD of the arena makes the same steps."""
    for name, changes in {
        "decoupled": {"kind": 0},
        "coupled": {"kind": 1},
        "raw": {"reach": 1.0, "lookahead": 0},
        "exact": {"method": 0},
        "polynomial": {"method": 1},
    }.items():
        values = settings("egd", **changes)
        ours = {knob.name: values[knob.name] for knob in EVERY[name].knobs}
        expected, made = train("egd", values)[0], train(name, ours)[0]
        jax.tree.map(np.testing.assert_array_equal, made, expected)
