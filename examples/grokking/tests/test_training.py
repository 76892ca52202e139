"""Training: its steps, its epochs and its end, on tasks of a few dozen examples."""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from egd_optax.grokking import session
from egd_optax.grokking.config import Config
from egd_optax.grokking.recipes import RECIPES
from egd_optax.grokking.record import read_log
from egd_optax.grokking.tasks import ModularArithmetic, SparseParity
from egd_optax.grokking.train import phase, prepare, shuffled_batches, train

TINY = Config(task=ModularArithmetic(p=7), width=16, batch_size=8, epochs=3)


def change(config=TINY, **fields):
    return dataclasses.replace(config, **fields)


def measurements(history):
    """Return a history without its clock."""
    return [dataclasses.replace(epoch, seconds=0.0) for epoch in history]


def reference_step(config, state, split, run_epoch):
    """Return the parameters after one full-batch step of EGD, in NumPy."""
    gradients = jax.jit(jax.grad(run_epoch.loss))(state.params, split.train)
    double = [jax.tree.map(np.float64, tree) for tree in (gradients, state.params)]
    rate, decay = config.learning_rate, config.weight_decay
    coupled = decay if config.decay == "coupled" else 0.0
    directions = jax.tree.map(lambda gradient, leaf: gradient + coupled * leaf, *double)
    for layer in {"first": ("hidden",), "all": ("hidden", "readout")}[config.matrices]:
        u, s, vh = np.linalg.svd(directions[layer]["kernel"], full_matrices=False)
        directions[layer]["kernel"] = u[:, s > 1e-4 * s[0]] @ vh[s > 1e-4 * s[0]]
    return jax.tree.map(
        lambda direction, leaf: leaf - rate * (direction + (decay - coupled) * leaf),
        directions,
        double[1],
    )


@pytest.mark.parametrize("matrices", ["first", "all"])
@pytest.mark.parametrize("decay", ["coupled", "decoupled"])
def test_one_full_batch_epoch_is_the_textbook_step(decay, matrices):
    config = change(decay=decay, matrices=matrices, batch_size=24, weight_decay=0.1, method="svd")
    state, split, run_epoch = prepare(config)
    expected = reference_step(config, *prepare(config))
    after, _ = jax.jit(run_epoch)(state, split)
    jax.tree.map(
        lambda leaf, wanted: np.testing.assert_allclose(leaf, wanted, atol=2e-4),
        after.params,
        expected,
    )


def test_a_run_repeats_itself_and_the_seed_changes_it():
    first = measurements(train(TINY).history)
    assert first == measurements(train(TINY).history)
    assert first != measurements(train(change(seed=1)).history)


def test_optimizers_share_start_data_and_batches_and_switch_off_by_the_last_metric():
    (egd, split, egd_epoch), (sgd, same, sgd_epoch) = (
        prepare(TINY),
        prepare(change(gradient="raw")),
    )
    jax.tree.map(np.testing.assert_array_equal, (egd.params, split), (sgd.params, same))
    plain, _ = jax.jit(sgd_epoch)(sgd, split)
    run = jax.jit(egd_epoch)
    # Above the threshold EGD is SGD; it can only be equal on the same batches.
    switched, _ = run(egd._replace(test_accuracy=jnp.float32(0.96)), split)
    jax.tree.map(np.testing.assert_array_equal, switched.params, plain.params)
    whitened, metrics = run(egd, split)
    assert not np.array_equal(whitened.params["hidden"]["kernel"], plain.params["hidden"]["kernel"])
    assert float(whitened.test_accuracy) == float(metrics["test_accuracy"])


def test_the_last_partial_batch_is_dropped():
    task = ModularArithmetic(p=7)
    examples = task.split(jax.random.key(0)).train
    batches = shuffled_batches(jax.random.key(1), examples, 7)
    assert batches.inputs.shape == (3, 7, 14)
    assert batches.labels.shape == (3, 7)
    rows = {row.tobytes() for row in np.asarray(batches.inputs).reshape(21, 14)}
    assert len(rows) == 21
    assert rows <= {row.tobytes() for row in np.asarray(examples.inputs)}


@dataclasses.dataclass(frozen=True)
class CountedTask(ModularArithmetic):
    traces: ClassVar[list] = []

    def loss(self, logits, labels):
        self.traces.append(1)
        return super().loss(logits, labels)


def test_a_run_is_traced_once_however_long():
    config = change(task=CountedTask(p=7), epochs=4)
    state, split, run_epoch = prepare(config)
    CountedTask.traces.clear()
    jax.eval_shape(run_epoch, state, split)
    once = len(CountedTask.traces)
    train(config)
    assert len(CountedTask.traces) == 2 * once > 0


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "gram", "matrices": "all", "switch_off": None},
        {"method": "newton_schulz"},
        {"method": "randomized", "rank": 3},
        {"gradient": "column_norm"},
    ],
)
def test_every_optimizer_trains(fields):
    assert train(change(**fields)).epochs == 3


@pytest.mark.parametrize(
    "fields",
    [
        {"method": "streaming", "rank": 3, "optimizer": "rmsprop", "momentum": 0.9},
        {"method": "svd", "power": 0.5, "every": 2, "blend_steps": 2, "optimizer": "radam"},
        {"gradient": "raw", "optimizer": "muon"},
        {"gradient": "norm"},
    ],
)
def test_every_option_reaches_the_training(fields, optax_promotes):
    """A run with the options differs from one without them, and both are finite."""
    plain = change(gradient=fields.get("gradient", "egd"), learning_rate=0.01)
    with_options, without = train(change(plain, **fields)), train(change(plain, gradient="raw"))
    assert with_options.history[-1].train_loss != without.history[-1].train_loss


def test_measuring_less_often_changes_nothing_else():
    often, seldom = train(TINY).history, train(change(measure_every=3)).history
    assert [epoch.epoch for epoch in seldom] == [3]
    # Rounding may differ: the epochs are compiled into one program, instead of three calls.
    np.testing.assert_allclose(seldom[0].test_loss, often[2].test_loss, rtol=1e-3)


def test_phases_shuffle_the_labels_and_go_on():
    config = change(epochs=6, phases=3, target=None)
    _, split, _ = prepare(config)
    labels = [np.asarray(phase(config, split, epoch).train.labels) for epoch in range(1, 7)]
    np.testing.assert_array_equal(labels[0], split.train.labels)
    for first, second in ((0, 1), (2, 3), (4, 5)):
        np.testing.assert_array_equal(labels[first], labels[second])
    assert not np.array_equal(labels[1], labels[2])
    assert not np.array_equal(labels[3], labels[4])
    assert train(config).epochs == 6


def test_initial_values_are_scaled():
    small, large = prepare(TINY)[0].params, prepare(change(init_scale=8.0))[0].params
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(8.0 * a, b), small, large)


def test_spectra_are_those_of_the_full_batch_gradient(tmp_path):
    config = change(method="svd", weight_decay=0.1, spectra_at=(0, 2))
    session.train_logged(config, tmp_path / "run.jsonl")
    start, later = read_log(tmp_path / "run.jsonl").spectra
    assert (start.epoch, later.epoch) == (0, 2)
    state, split, run = prepare(config)
    kernel = np.asarray(state.params["hidden"]["kernel"], np.float64)
    gradient = np.asarray(jax.grad(run.loss)(state.params, split.train)["hidden"]["kernel"])
    for found, matrix in ((start.gradient, gradient), (start.decayed, gradient + 0.1 * kernel)):
        expected = np.linalg.svd(np.float64(matrix), compute_uv=False)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6 * expected[0])
    assert set(start.progress) == {0.0}
    # Whitened steps go down along every direction of the first gradient, about equally far.
    assert max(later.progress[:10]) < 0


def test_parity_trains_a_scalar_output():
    task = SparseParity(n=8, k=2, train_size=64, test_size=32)
    result = train(Config(task=task, width=16, batch_size=16, learning_rate=0.02, epochs=30))
    assert result.history[-1].train_loss < result.history[0].train_loss


def test_a_run_ends_after_its_target():
    task = SparseParity(n=8, k=2, train_size=64, test_size=32)
    config = Config(task=task, width=16, batch_size=16, learning_rate=0.02, target=0.1, epochs=9)
    result = train(change(config, epochs_after_target=2))
    assert (result.epochs_to_target, result.epochs) == (1, 3)
    assert result.seconds_to_target == result.history[0].seconds


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_paper_recipe_groks_addition(seed):
    paper = change(RECIPES["addition-97"], seed=seed, epochs=160)
    assert 95 <= train(paper).epochs_to_target <= 140
    both = train(change(paper, matrices="all", switch_off=None, epochs=20))
    assert both.epochs_to_target <= 14
    assert train(change(paper, gradient="raw", epochs=140)).test_accuracy < 0.2
