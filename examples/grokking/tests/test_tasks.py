"""The tasks' data against brute force."""

import hashlib
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from egd_optax.grokking.images import Images
from egd_optax.grokking.tasks import TASKS, ModularArithmetic, SparseParity
from flax import nnx

from egd_optax.models import DecoderTransformer

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


@pytest.mark.parametrize(
    ("task", "digest"),
    [
        (ModularArithmetic(), "fbc031ffd67511d7de447903424f04ae"),
        (ModularArithmetic("multiplication", 13, 0.3), "6e84917cde5bcd765af2eaf1352c3cfb"),
    ],
)
def test_modular_split_is_that_of_the_first_version(task, digest):
    """The committed logs name seeds; a seed keeps its split."""
    sha = hashlib.sha256()
    for array in map(np.asarray, jax.tree.leaves(task.split(jax.random.key(0)))):
        sha.update(str((array.shape, array.dtype)).encode() + array.tobytes())
    assert sha.hexdigest().startswith(digest)


@pytest.mark.parametrize("p", [2, 7])
@pytest.mark.parametrize("nonzero", [False, True])
def test_tokens_spell_the_table(p, nonzero):
    task = ModularArithmetic("multiplication", p, nonzero=nonzero, encoding="tokens")
    split = task.split(jax.random.key(3))
    inputs, labels = everything(split)
    assert inputs.dtype == labels.dtype == np.int32
    sentences = [(*map(int, row), int(label)) for row, label in zip(inputs, labels, strict=True)]
    expected = [
        (a, p, b, p + 1, a * b % p) for a in range(p) for b in range(1 if nonzero else 0, p)
    ]
    assert sorted(sentences) == expected
    assert inputs.shape[1] == task.length == task.in_features
    assert task.out_features == task.vocabulary == p + 2
    assert len(split.train.labels) == task.train_size == len(expected) // 2


def test_one_hots_and_tokens_are_one_split():
    def residues(encoding):
        task = ModularArithmetic("multiplication", 7, nonzero=True, encoding=encoding)
        inputs, labels = task.split(jax.random.key(0)).train
        if encoding == "tokens":
            return inputs[:, 0], inputs[:, 2], labels
        return jnp.argmax(inputs[:, :7], 1), jnp.argmax(inputs[:, 7:], 1), labels

    for left, right in zip(residues("one_hots"), residues("tokens"), strict=True):
        np.testing.assert_array_equal(left, right)


def test_modular_names_tell_the_data_apart():
    names = [
        ModularArithmetic("multiplication", 97, nonzero=nonzero, encoding=encoding).name
        for nonzero in (False, True)
        for encoding in ("one_hots", "tokens")
    ]
    assert names[0] == "multiplication-97"
    assert names[2] == "multiplication-97-nonzero"
    assert len(set(names)) == 4


def test_tokens_fit_the_transformer():
    task = ModularArithmetic(p=7, encoding="tokens")
    inputs, labels = task.split(jax.random.key(0)).train
    logits = nnx.eval_shape(
        lambda tokens: DecoderTransformer(task.vocabulary, task.length, rngs=nnx.Rngs(0))(tokens),
        inputs,
    )
    assert logits.shape == (task.train_size, task.out_features)
    np.testing.assert_allclose(task.loss(jnp.zeros(logits.shape), labels), np.log(9), rtol=1e-6)
    assert float(task.accuracy(jax.nn.one_hot(labels, 9), labels)) == 1.0


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


def test_every_task_is_in_the_table():
    assert set(TASKS.values()) == {ModularArithmetic, SparseParity, Images}
    assert all(TASKS[task.kind] is task for task in TASKS.values())


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
        (lambda: ModularArithmetic(p=2, train_fraction=0.4, nonzero=True), "0.4 of 2 entries"),
        (lambda: ModularArithmetic(encoding="words"), "encoding must be one of one_hots, tokens"),
        (lambda: SparseParity(n=3, k=4), "k=4, n=3; lower k or raise n"),
        (lambda: SparseParity(k=0), "at least 1 sign, got k=0"),
        (lambda: SparseParity(train_size=0), "train_size must be at least 1, got 0"),
        (lambda: SparseParity(test_size=0), "test_size must be at least 1, got 0"),
    ],
)
def test_tasks_refuse_impossible_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
