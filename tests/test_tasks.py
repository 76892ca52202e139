"""The tasks' data against brute force."""

import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from egd_optax.grokking.tasks import ModularArithmetic, SparseParity

OPERATORS = {"addition": operator.add, "multiplication": operator.mul}


def everything(split):
    """Return all inputs and all labels of a split as NumPy arrays."""
    return [np.concatenate(arrays) for arrays in zip(split.train, split.test, strict=True)]


@pytest.mark.parametrize("p", [2, 7, 13])
@pytest.mark.parametrize("operation", OPERATORS)
def test_modular_split_is_a_partition_of_the_right_table(operation, p):
    task = ModularArithmetic(operation, p)
    split = task.split(jax.random.key(3))
    inputs, labels = everything(split)
    assert inputs.shape == (p * p, task.in_features)
    assert set(np.unique(inputs)) == {0.0, 1.0}
    np.testing.assert_array_equal(inputs.sum(axis=1), 2.0)
    table = {
        (int(left), int(right)): int(label)
        for left, right, label in zip(
            inputs[:, :p].argmax(1), inputs[:, p:].argmax(1), labels, strict=True
        )
    }
    residues = range(p)
    assert table == {(a, b): OPERATORS[operation](a, b) % p for a in residues for b in residues}
    assert len(split.train.labels) == task.train_size == p * p // 2


def test_modular_train_fraction_sets_the_size():
    split = ModularArithmetic(p=10, train_fraction=0.3).split(jax.random.key(0))
    assert (len(split.train.labels), len(split.test.labels)) == (30, 70)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_parity_is_the_product_of_the_first_signs(k):
    task = SparseParity(n=5, k=k, train_size=30, test_size=50)
    split = task.split(jax.random.key(1))
    inputs, labels = everything(split)
    assert inputs.shape == (80, 5)
    assert set(np.unique(inputs)) == {-1.0, 1.0}
    np.testing.assert_array_equal(labels, inputs[:, :k].prod(axis=1))
    assert len(split.train.labels) == 30


@pytest.mark.parametrize("task", [ModularArithmetic(p=7), SparseParity(8, 2, 40, 40)])
def test_split_depends_on_the_key_alone(task):
    first, again, other = (everything(task.split(jax.random.key(seed))) for seed in (0, 0, 1))
    for left, right in zip(first, again, strict=True):
        np.testing.assert_array_equal(left, right)
    assert not np.array_equal(first[0], other[0])


def test_modular_loss_and_accuracy():
    logits = np.random.default_rng(0).normal(size=(4, 7))
    labels = np.array([0, 3, 6, 2])
    expected = np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(4), labels])
    task, on_device = ModularArithmetic(p=7), jnp.asarray(labels, jnp.int32)
    np.testing.assert_allclose(task.loss(jnp.float32(logits), on_device), expected, rtol=1e-5)
    np.testing.assert_allclose(
        task.accuracy(jnp.float32(logits), on_device), np.mean(logits.argmax(1) == labels)
    )


def test_parity_loss_and_accuracy():
    outputs, labels = jnp.float32([0.5, -2.0, 3.0, 0.0]), jnp.float32([1.0, -1.0, -1.0, 1.0])
    task = SparseParity(8, 2)
    np.testing.assert_allclose(task.loss(outputs, labels), (0.25 + 1.0 + 16.0 + 1.0) / 4)
    # An output of 0 has no sign, so it is no answer.
    np.testing.assert_allclose(task.accuracy(outputs, labels), 0.5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModularArithmetic("division"), "operation must be one of addition, mult"),
        (lambda: ModularArithmetic(p=1), "p must be at least 2, got 1"),
        (lambda: ModularArithmetic(train_fraction=0.0), r"in \(0, 1\), got 0.0"),
        (lambda: ModularArithmetic(train_fraction=1.0), r"in \(0, 1\), got 1.0"),
        (lambda: ModularArithmetic(train_fraction=float("nan")), r"in \(0, 1\), got nan"),
        (lambda: ModularArithmetic(p=2, train_fraction=0.1), "both sets an entry"),
        (lambda: SparseParity(n=3, k=4), "k=4, n=3; lower k or raise n"),
        (lambda: SparseParity(k=0), "at least 1 sign, got k=0"),
        (lambda: SparseParity(train_size=0), "train_size must be at least 1, got 0"),
        (lambda: SparseParity(test_size=0), "test_size must be at least 1, got 0"),
    ],
)
def test_tasks_refuse_impossible_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
