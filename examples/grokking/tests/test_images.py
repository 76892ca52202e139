"""The image tasks read true files exactly, say what is wrong with others, and re-shuffle labels."""

import dataclasses
import gzip
import json
import struct
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from egd_optax.grokking.examples import Examples, Split
from egd_optax.grokking.images import DIGITS_COUNT, Images, load, relabel

COUNTS = (12, 7)
MNIST_NAMES = ("train", "t10k")


def random_bytes(count, features):
    """Return `count` images and labels for each of the two parts; every label is there."""
    rng = np.random.default_rng(features)
    images = rng.integers(0, 256, (count, features), np.uint8)
    return images, (np.arange(count) % 10).astype(np.uint8)


def write_mnist(folder, compress):
    """Write IDX files by their published layout: magic 2051 or 2049, big-endian sizes, bytes."""
    written = [random_bytes(count, 784) for count in COUNTS]
    for name, (images, labels) in zip(MNIST_NAMES, written, strict=True):
        files = {
            "images-idx3": struct.pack(">4i", 2051, len(images), 28, 28) + images.tobytes(),
            "labels-idx1": struct.pack(">2i", 2049, len(labels)) + labels.tobytes(),
        }
        for middle, content in files.items():
            path = folder / f"{name}-{middle}-ubyte{'.gz' if compress else ''}"
            path.write_bytes(gzip.compress(content) if compress else content)
    return written


def write_npz(folder):
    written = [random_bytes(count, 784) for count in COUNTS]
    (x_train, y_train), (x_test, y_test) = (
        (images.reshape(-1, 28, 28), labels) for images, labels in written
    )
    np.savez(folder / "mnist.npz", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test)
    return written


def write_cifar10(folder):
    """Write records of one byte of label and 3072 of pixels; five training files."""
    written = [random_bytes(count, 3072) for count in (15, 7)]
    for (images, labels), names in zip(
        written, ([f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]), strict=True
    ):
        records = np.concatenate([labels[:, None], images], axis=1)
        for name, part in zip(names, np.split(records, len(names)), strict=True):
            (folder / f"{name}.bin").write_bytes(part.tobytes())
    return written


WRITERS = {
    "idx": ("mnist", lambda folder: write_mnist(folder, compress=False)),
    "idx.gz": ("mnist", lambda folder: write_mnist(folder, compress=True)),
    "npz": ("mnist", write_npz),
    "cifar10": ("cifar10", write_cifar10),
}


def rows(inputs, labels, brightest=1):
    """Return (label, pixels in the file's units) of every example, in an order of their own."""
    pixels = np.asarray(inputs) * brightest
    np.testing.assert_allclose(pixels, np.rint(pixels), rtol=1e-6)
    joined = np.concatenate([np.asarray(labels)[:, None], np.rint(pixels)], axis=1)
    return joined[np.lexsort(joined.T)]


@pytest.mark.parametrize("form", WRITERS)
def test_files_are_read_back_exactly(form, tmp_path):
    source, write = WRITERS[form]
    written = write(tmp_path)
    for part, (images, labels) in zip(load(source, str(tmp_path)), written, strict=True):
        np.testing.assert_array_equal(part.images, images)
        np.testing.assert_array_equal(part.labels, labels)
    split = Images(source, len(written[0][1]), str(tmp_path)).split(jax.random.key(0))
    for examples, arrays in zip(split, written, strict=True):
        np.testing.assert_array_equal(rows(*examples, brightest=255), rows(*arrays))
    np.testing.assert_array_equal(split.test.labels, written[1][1])


def test_train_points_are_drawn_by_the_key_and_the_test_file_stays(tmp_path):
    write_npz(tmp_path)
    task = Images("mnist", 5, str(tmp_path))
    first, again, other = (task.split(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.train.inputs, again.train.inputs)
    assert not np.array_equal(first.train.inputs, other.train.inputs)
    np.testing.assert_array_equal(first.test.inputs, other.test.inputs)
    assert len(np.unique(first.train.inputs, axis=0)) == len(first.train.labels) == 5


def test_digits_are_partitioned():
    task = Images(train_size=100)
    split = task.split(jax.random.key(2))
    pixels, test = load("digits", None)
    assert test is None
    assert len(pixels.labels) == DIGITS_COUNT
    assert split.train.inputs.shape == (100, task.in_features)
    inputs, labels = (np.concatenate(arrays) for arrays in zip(*split, strict=True))
    np.testing.assert_array_equal(rows(inputs, labels, brightest=16), rows(*pixels))
    assert (inputs.min(), inputs.max()) == (0.0, 1.0)
    again, other = (task.split(jax.random.key(seed)) for seed in (2, 3))
    np.testing.assert_array_equal(split.train.inputs, again.train.inputs)
    assert not np.array_equal(split.train.inputs, other.train.inputs)


def test_split_can_be_traced():
    task = Images(train_size=20)
    key = jax.random.key(0)
    jax.tree.map(np.testing.assert_array_equal, jax.jit(task.split)(key), task.split(key))


def test_the_fields_survive_json_and_the_name_says_the_data():
    task = Images("mnist", 1000, "/data", "cross_entropy")
    assert Images(**json.loads(json.dumps(dataclasses.asdict(task)))) == task
    assert len({t.name for t in (task, Images("mnist", 500), Images("cifar10", 1000))}) == 3


def test_losses_and_accuracy():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(6, 10)), rng.integers(0, 10, 6)
    on_device = jnp.float32(logits), jnp.asarray(labels, jnp.int32)
    errors = [
        (logit - (k == label)) ** 2
        for row, label in zip(logits, labels, strict=True)
        for k, logit in enumerate(row)
    ]
    nats = np.log(np.exp(logits).sum(1)) - logits[np.arange(6), labels]
    np.testing.assert_allclose(Images().loss(*on_device), np.mean(errors), rtol=1e-5)
    task = Images(loss_kind="cross_entropy")
    np.testing.assert_allclose(task.loss(*on_device), np.mean(nats), rtol=1e-5)
    np.testing.assert_allclose(task.accuracy(*on_device), np.mean(logits.argmax(1) == labels))


def short(path, content):
    path.write_bytes(content[:-1])


def foreign(path, content):
    path.write_bytes(b"\x89PNG" + content[4:])


def empty(path, content):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [short, foreign, empty])
@pytest.mark.parametrize(
    ("form", "name"),
    [
        ("idx", "train-images-idx3-ubyte"),
        ("idx", "t10k-labels-idx1-ubyte"),
        ("idx.gz", "train-labels-idx1-ubyte.gz"),
        ("npz", "mnist.npz"),
        ("cifar10", "data_batch_3.bin"),
    ],
)
def test_a_damaged_file_is_named(form, name, damage, tmp_path):
    source, write = WRITERS[form]
    write(tmp_path)
    damage(tmp_path / name, (tmp_path / name).read_bytes())
    with pytest.raises(ValueError, match=rf"{name} must .*; download"):
        Images(source, 5, str(tmp_path)).split(jax.random.key(0))


def test_images_and_labels_must_belong_together(tmp_path):
    write_mnist(tmp_path, compress=False)
    labels = struct.pack(">2i", 2049, 12)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(labels + bytes([10] * 12))
    with pytest.raises(ValueError, match=r"train-images.* each with a label below 10"):
        load("mnist", str(tmp_path))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 3) + bytes(3))
    with pytest.raises(ValueError, match=r"\(12, 28, 28\) and labels \(3,\)"):
        load("mnist", str(tmp_path))


@pytest.mark.parametrize(
    ("source", "first"), [("mnist", "train-images-idx3-ubyte"), ("cifar10", "data_batch_1.bin")]
)
def test_missing_files_are_asked_for(source, first, tmp_path):
    for folder in (None, str(tmp_path), str(tmp_path / "nowhere")):
        task = Images(source, 5, folder)
        message = f"{source} is read .*, and {first} is not in .*set the task's folder"
        with pytest.raises(FileNotFoundError, match=message):
            task.split(jax.random.key(0))
    WRITERS[{"mnist": "idx", "cifar10": "cifar10"}[source]][1](tmp_path)  # an error is not cached
    assert len(Images(source, 5, str(tmp_path)).split(jax.random.key(0)).train.labels) == 5


def test_train_size_must_not_exceed_the_file(tmp_path):
    write_npz(tmp_path)
    with pytest.raises(ValueError, match=r"not exceed the 12 training images in .*, got 13; lower"):
        Images("mnist", 13, str(tmp_path)).split(jax.random.key(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Images("imagenet"), "source must be one of digits, mnist, cifar10; got 'imag"),
        (lambda: Images(loss_kind="hinge"), "loss_kind must be one of mse, cross_entropy"),
        (lambda: Images(train_size=0), "train_size must be at least 1, got 0"),
        (lambda: Images(train_size=DIGITS_COUNT), "the 1797 digits .* got 1797; lower it"),
        (lambda: Images(folder="/data"), "scikit-learn, got folder='/data'; leave it None"),
    ],
)
def test_images_refuse_impossible_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_digits_say_that_they_need_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        load.__wrapped__("digits", None)


@pytest.fixture(scope="module")
def split():
    return Images(train_size=200).split(jax.random.key(0))


def test_relabelled_examples_keep_the_labels_and_the_test_set(split):
    first, other = (relabel(jax.random.key(seed), split, "examples") for seed in (1, 2))
    assert jax.tree.map(jnp.shape, first) == jax.tree.map(jnp.shape, split)
    assert first.train.labels.dtype == split.train.labels.dtype
    np.testing.assert_array_equal(first.train.inputs, split.train.inputs)
    np.testing.assert_array_equal(np.sort(first.train.labels), np.sort(split.train.labels))
    jax.tree.map(np.testing.assert_array_equal, first.test, split.test)
    # Of 200 labels in 10 classes about 20 stay by chance; a renaming would keep 0 or all of one.
    for left, right in ((first, split), (first, other)):
        assert 0 < np.sum(left.train.labels == right.train.labels) < 50
    assert len({*zip(split.train.labels.tolist(), first.train.labels.tolist(), strict=True)}) > 50


def test_relabelled_classes_are_one_renaming_of_both_sets(split):
    renamed = relabel(jax.random.key(1), split, "classes")
    pairs = {
        pair
        for before, after in zip(split, renamed, strict=True)
        for pair in zip(before.labels.tolist(), after.labels.tolist(), strict=True)
    }
    assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs}) == 10
    assert any(old != new for old, new in pairs)
    assert renamed.test.labels.dtype == split.test.labels.dtype
    for before, after in zip(split, renamed, strict=True):
        np.testing.assert_array_equal(before.inputs, after.inputs)


def test_relabel_takes_any_number_of_classes_and_refuses_other_units():
    labels = jnp.arange(12, dtype=jnp.int32)
    part = Examples(jnp.zeros((12, 1)), labels)
    renamed = relabel(jax.random.key(0), Split(part, part), "classes", classes=12)
    np.testing.assert_array_equal(np.sort(renamed.train.labels), labels)
    with pytest.raises(ValueError, match="one of examples, classes; got 'rows'"):
        relabel(jax.random.key(0), Split(part, part), "rows")
