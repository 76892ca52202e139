"""Training: its steps, its epochs and its end, on tasks of a few dozen examples."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from grokking.experiments import PAPER
from grokking.tasks import Mnist, ModularArithmetic, SparseParity
from grokking.training import Program, TrainingDiverged, check_fit, shuffled_batches, train


def history(config):
    """Return the epochs of a run without their clock."""
    epochs = []
    train(config, epochs.append)
    return [dataclasses.replace(epoch, seconds=0.0) for epoch in epochs]


@pytest.mark.parametrize(("matrices", "decay"), [("first", "coupled"), ("all", "decoupled")])
def test_one_full_batch_epoch_is_the_textbook_step(tiny, matrices, decay):
    config = tiny.changed(matrices=matrices, decay=decay, batch_size=24, weight_decay=0.1)
    program = Program(config)
    state, split = program.start()
    gradients = jax.jit(jax.grad(program.loss))(state.params, split.train)
    gradients, weights = (jax.tree.map(np.float64, tree) for tree in (gradients, state.params))
    coupled = 0.1 if decay == "coupled" else 0.0
    directions = jax.tree.map(lambda g, w: g + coupled * w, gradients, weights)
    for layer in ("hidden",) if matrices == "first" else ("hidden", "readout"):
        u, s, vh = np.linalg.svd(directions[layer]["kernel"], full_matrices=False)
        kept = s > 1e-4 * s[0]
        directions[layer]["kernel"] = u[:, kept] @ vh[kept]
    expected = jax.tree.map(lambda d, w: w - 0.7 * (d + (0.1 - coupled) * w), directions, weights)
    after, _ = jax.jit(program.advance)(state, split)
    # Singular values near the tolerance are whitened from float32 gradients.
    jax.tree.map(
        lambda found, wanted: np.testing.assert_allclose(found, wanted, atol=2e-4),
        after.params,
        expected,
    )


def test_a_run_repeats_itself_and_the_seed_changes_it(tiny):
    first = history(tiny)
    assert first == history(tiny)
    assert first != history(tiny.changed(seed=1))


def test_optimizers_share_start_data_and_batches(tiny):
    """Above the threshold of the switch-off EGD is SGD, bit for bit on the same batches."""
    egd, sgd = Program(tiny), Program(tiny.changed(optimizer="plain"))
    (one, split), (other, same) = egd.start(), sgd.start()
    jax.tree.map(np.testing.assert_array_equal, (one.params, split), (other.params, same))
    plain, _ = jax.jit(sgd.advance)(other, split)
    run = jax.jit(egd.advance)
    switched, _ = run(one._replace(test_accuracy=jnp.float32(0.96)), split)
    jax.tree.map(np.testing.assert_array_equal, switched.params, plain.params)
    whitened, metrics = run(one, split)
    assert not np.array_equal(whitened.params["hidden"]["kernel"], plain.params["hidden"]["kernel"])
    assert float(whitened.test_accuracy) == float(metrics["test_accuracy"])


def test_the_last_partial_batch_is_dropped():
    examples = ModularArithmetic(p=7).split(jax.random.key(0)).train
    batches = shuffled_batches(jax.random.key(1), examples, 7)
    assert batches.inputs.shape == (3, 7, 14)
    rows = {row.tobytes() for row in np.asarray(batches.inputs).reshape(21, 14)}
    assert len(rows) == 21
    assert rows <= {row.tobytes() for row in np.asarray(examples.inputs)}


@dataclasses.dataclass(frozen=True)
class CountedTask(ModularArithmetic):
    def loss(self, outputs, labels):
        TRACES.append(1)
        return super().loss(outputs, labels)


TRACES: list[int] = []


def test_a_run_is_traced_once_however_long(tiny):
    config = tiny.changed(task=CountedTask(p=7), epochs=6)
    program = Program(config)
    TRACES.clear()
    jax.eval_shape(program.advance, *program.start())
    once = len(TRACES)
    train(config)
    assert len(TRACES) == 2 * once > 0


def test_measuring_less_often_changes_nothing_else(tiny):
    often, (seldom,) = history(tiny), history(tiny.changed(measure_every=3))
    # Rounding may differ: the epochs are compiled into one program, instead of three calls.
    np.testing.assert_allclose(seldom.test_loss, often[2].test_loss, rtol=1e-3)


def test_initial_values_are_scaled(tiny):
    small, large = (Program(tiny.changed(init_scale=s)).start()[0].params for s in (1.0, 8.0))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(8.0 * a, b), small, large)


@pytest.mark.slow
def test_labels_are_shuffled_in_the_course_of_a_run(optax_promotes):
    """Memorized labels are new after epoch 20: the train accuracy falls, the test's does not."""
    config = PAPER["mnist-shuffled"].changed(task=Mnist(100, "cross_entropy", 20), width=32)
    epochs = history(config.changed(optimizer="plain", learning_rate=0.01, batch_size=20))
    assert epochs[19].train_accuracy > 0.9
    assert epochs[20].train_accuracy < 0.5


def test_spectra_are_those_of_the_full_batch_gradient(tiny):
    found = []
    config = tiny.changed(weight_decay=0.1, spectra_at=(0, 2))
    train(config, on_spectrum=found.append)
    start, later = found
    assert (start.epoch, later.epoch) == (0, 2)
    program = Program(config)
    state, split = program.start()
    kernel = np.asarray(state.params["hidden"]["kernel"], np.float64)
    gradients = jax.jit(jax.grad(program.loss))(state.params, split.train)
    gradient = np.asarray(gradients["hidden"]["kernel"])
    for values, matrix in ((start.gradient, gradient), (start.decayed, gradient + 0.1 * kernel)):
        expected = np.linalg.svd(np.float64(matrix), compute_uv=False)
        np.testing.assert_allclose(values, expected, rtol=1e-4, atol=1e-6 * expected[0])
    assert set(start.progress) == {0.0}
    # Whitened steps go down along every direction of the first gradient.
    assert max(later.progress[:10]) < 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spectra_at": (0,)}, "spectra_at needs .* task mnist has layers; drop it"),
        ({"matrices": "first"}, "matches no leaf of these: 'layers/0/bias'"),
    ],
)
def test_what_does_not_fit_the_network_is_refused_before_training(changes, message):
    with pytest.raises(ValueError, match=message):
        check_fit(PAPER["mnist"].changed(**changes))


def test_a_run_ends_after_its_target(tiny):
    task = SparseParity(n=8, k=2, train_size=64, test_size=32)
    config = tiny.changed(task=task, batch_size=16, epochs=9, learning_rate=0.02)
    config = config.changed(target=0.1, epochs_after_target=2)
    epochs = []
    result = train(config, epochs.append)
    assert (result.epochs_to_target, result.epochs, len(epochs)) == (1, 3, 3)
    assert result.seconds_to_target == epochs[0].seconds


def test_a_loss_that_is_not_finite_ends_the_run(tiny):
    with pytest.raises(TrainingDiverged, match=r"must stay finite.*; lower the learning rate"):
        train(tiny.changed(learning_rate=1e30))
