"""Small images with ten labels, from scikit-learn or from local files; and labels re-shuffled."""

import dataclasses
import functools
import gzip
import importlib
import math
import zipfile
import zlib
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from grokking.examples import Examples, Split, class_accuracy, cross_entropy

CLASSES = 10
DIGITS_COUNT = 1797
FEATURES = {"digits": 8 * 8, "mnist": 28 * 28, "cifar10": 3 * 32 * 32}
BRIGHTEST = {"digits": 16.0, "mnist": 255.0, "cifar10": 255.0}
IDX_BYTES = b"\0\0\x08"  # two zeros and the code of unsigned bytes; the number of axes follows
NPZ = "mnist.npz"  # from Keras
FILES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "mnist": (
        ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    ),
    "cifar10": (tuple(f"data_batch_{number}.bin" for number in range(1, 6)), ("test_batch.bin",)),
}


class Pixels(NamedTuple):
    """Images (count, features) and their classes (count,) as in the files, unsigned bytes."""

    images: np.ndarray
    labels: np.ndarray


def squared_error(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the squared error of logits (count, classes) to one-hots, a mean over both axes."""
    one_hots = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return jnp.mean(jnp.square(logits - one_hots))


LOSSES = {"mse": squared_error, "cross_entropy": cross_entropy}


@dataclasses.dataclass(frozen=True)
class Images:
    """Tell ten classes of small images apart after a few training points.

    Inputs are flattened pixels in [0, 1], in the order of the files (CIFAR-10: red plane, green,
    blue), neither centred nor standardised. Nothing is read before `split`, then once a process.

    Args:
        source: `digits`, 8 x 8, comes with scikit-learn; `mnist`, 28 x 28, and `cifar10`,
            3 x 32 x 32, are read from `folder`.
        train_size: training points, drawn by the split's key from the source's training images.
            The test set is the source's own; for digits, which has none, the rest.
        folder: where the files lie; not for digits. MNIST: `mnist.npz`, or the four IDX files
            (`train-images-idx3-ubyte` and so on), gzipped or not. CIFAR-10: the binary version,
            `data_batch_1.bin` to `data_batch_5.bin` and `test_batch.bin`. Its Python version is
            left out, since it is made of pickles, and reading a pickle can run any code in it.
        loss_kind: `mse` to one-hots, a mean over batch and classes, as for MNIST in the paper;
            or `cross_entropy`.

    Raises:
        ValueError: an unknown name, a folder for digits, or a set would be empty; at `split`: too
            few training images in the files, or a file is damaged.
        FileNotFoundError: at `split`: no folder, or a file is missing.
        ImportError: at `split`: digits without scikit-learn.
    """

    source: Literal["digits", "mnist", "cifar10"] = "digits"
    train_size: int = 200
    folder: str | None = None
    loss_kind: Literal["mse", "cross_entropy"] = "mse"

    kind: ClassVar[str] = "images"
    bias_scale: ClassVar[float] = 0.0
    out_features: ClassVar[int] = CLASSES

    def __post_init__(self) -> None:
        for field, choices in (("source", FEATURES), ("loss_kind", LOSSES)):
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"{field} must be one of {', '.join(choices)}; got {getattr(self, field)!r}"
                )
        if self.train_size < 1:
            raise ValueError(
                f"train_size must be at least 1, got {self.train_size}; the paper uses 1000"
            )
        if self.source == "digits" and self.folder is not None:
            raise ValueError(
                f"digits come with scikit-learn, got folder={self.folder!r}; leave it None"
            )
        if self.source == "digits" and self.train_size >= DIGITS_COUNT:
            raise ValueError(
                f"train_size must leave some of the {DIGITS_COUNT} digits for the test set, got "
                f"{self.train_size}; lower it"
            )

    @property
    def name(self) -> str:
        return f"{self.source}-{self.train_size}"

    @property
    def in_features(self) -> int:
        return FEATURES[self.source]

    def split(self, key: jax.Array) -> Split:
        """Draw the training points with `key`; the test set is all of the source's own."""
        train, test = load(self.source, self.folder)
        if self.train_size > len(train.labels):
            raise ValueError(
                f"train_size must not exceed the {len(train.labels)} training images in "
                f"{self.folder}, got {self.train_size}; lower it"
            )
        order = jax.random.permutation(key, len(train.labels))
        chosen, rest = order[: self.train_size], order[self.train_size :]
        tested = self._examples(train, rest) if test is None else self._examples(test)
        return Split(self._examples(train, chosen), tested)

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Loss of the chosen kind of logits (count, 10) against classes (count,)."""
        return LOSSES[self.loss_kind](logits, labels)

    def accuracy(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Share of the rows whose largest logit is the label's."""
        return class_accuracy(logits, labels)

    def _examples(self, pixels: Pixels, chosen: jax.Array | slice = slice(None)) -> Examples:
        images, labels = (jnp.asarray(array)[chosen] for array in pixels)
        inputs = images.astype(jnp.float32) / BRIGHTEST[self.source]
        return Examples(inputs, labels.astype(jnp.int32))


def relabel(
    key: jax.Array, split: Split, unit: Literal["examples", "classes"], classes: int = CLASSES
) -> Split:
    """Return the split with its labels re-shuffled: a next phase of a non-stationary task.

    Args:
        key: a fresh key for every phase.
        split: the split to start from; labels are integers below `classes`.
        unit: `examples` permutes the labels among the training examples, and leaves the test set
            as it is: then only memorising is left to learn. `classes` renames the classes by one
            permutation in both sets: the test accuracy keeps its meaning.
        classes: number of classes, for the unit `classes`; a class may keep its name by chance.

    Returns:
        A Split of the same shapes, dtypes and inputs.

    Raises:
        ValueError: an unknown unit.

    Examples:
        >>> import jax
        >>> from grokking.images import relabel
        >>> from grokking.tasks import ModularArithmetic
        >>> split = ModularArithmetic(p=7).split(jax.random.key(0))
        >>> relabel(jax.random.key(1), split, "examples").test is split.test
        True

    References:
        C. Lyle, Z. Zheng, E. Nikishin, B. Avila Pires, R. Pascanu, W. Dabney. Understanding
        Plasticity in Neural Networks. ICML 2023. arXiv:2303.01486.
    """
    train, test = split
    if unit == "examples":
        return Split(Examples(train.inputs, jax.random.permutation(key, train.labels)), test)
    if unit == "classes":
        names = jax.random.permutation(key, classes).astype(train.labels.dtype)
        return Split(*(Examples(inputs, names[labels]) for inputs, labels in split))
    raise ValueError(f"unit must be one of examples, classes; got {unit!r}")


@functools.cache
def load(source: str, folder: str | None) -> tuple[Pixels, Pixels | None]:
    """Return a source's training images and its test images, or None; read once a process."""
    if source == "digits":
        return _digits(), None
    if source == "mnist" and folder and (archive := Path(folder).expanduser() / NPZ).is_file():
        return _npz(archive)
    read = _idx_pair if source == "mnist" else _records
    train, test = (read([_find(source, folder, name) for name in part]) for part in FILES[source])
    return train, test


def _digits() -> Pixels:
    try:
        datasets = importlib.import_module("sklearn.datasets")  # slow, and for this source only
    except ImportError as error:
        raise ImportError(
            "the digits come with scikit-learn, which is missing; pip install scikit-learn"
        ) from error
    return Pixels(*(array.astype(np.uint8) for array in datasets.load_digits(return_X_y=True)))


def _npz(path: Path) -> tuple[Pixels, Pixels]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            train = arrays["x_train"], arrays["y_train"]
            test = arrays["x_test"], arrays["y_test"]
    except (EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} must hold x_train, y_train, x_test and y_test, got: {error}; download it again"
        ) from error
    return _checked(path, *train), _checked(path, *test)


def _idx_pair(paths: list[Path]) -> Pixels:
    images, labels = paths
    return _checked(images, _idx(images, 3), _idx(labels, 1))


def _idx(path: Path, axes: int) -> np.ndarray:
    """Read an IDX file of bytes: magic, big-endian sizes of the axes, values."""
    content, magic, header = _content(path), IDX_BYTES + bytes([axes]), 4 + 4 * axes
    shape = np.frombuffer(content[4:header].ljust(4 * axes, b"\0"), ">u4").tolist()
    if content[:4] != magic or len(content) != header + math.prod(shape):
        raise ValueError(
            f"{path} must begin with {magic.hex()} and be as long as its header says, got "
            f"{content[:4].hex()} and {len(content)} bytes for the shape {shape}; download it again"
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _records(paths: list[Path]) -> Pixels:
    """Read CIFAR-10's binary version: records of a label and three planes of pixels, all bytes."""
    parts = []
    for path in paths:
        content, length = _content(path), 1 + FEATURES["cifar10"]
        if len(content) % length:
            raise ValueError(
                f"{path} must hold records of {length} bytes, got {len(content)} bytes; "
                "download it again"
            )
        records = np.frombuffer(content, np.uint8).reshape(-1, length)
        parts.append(_checked(path, records[:, 1:], records[:, 0], shape=(length - 1,)))
    return Pixels(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def _content(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} must be a whole gzip file: {error}; download it again") from error


def _checked(
    path: Path, images: np.ndarray, labels: np.ndarray, shape: tuple[int, ...] = (28, 28)
) -> Pixels:
    """Return the images flattened, or say that the arrays are not what they should be."""
    fits = labels.size and images.dtype == np.uint8 and images.shape == (*labels.shape, *shape)
    if not (fits and labels.ndim == 1 and np.isin(labels, np.arange(CLASSES)).all()):
        raise ValueError(
            f"{path} must hold images of {shape} bytes, each with a label below {CLASSES}, got "
            f"{images.dtype} {images.shape} and labels {labels.shape}; download both again"
        )
    return Pixels(images.reshape(len(labels), -1), labels)


def _find(source: str, folder: str | None, name: str) -> Path:
    for suffix in ("", ".gz") if folder else ():
        path = Path(str(folder)).expanduser() / f"{name}{suffix}"
        if path.is_file():
            return path
    names = ", ".join(name for part in FILES[source] for name in part)
    raise FileNotFoundError(
        f"{source} is read from local files, and {name} is not in the folder {folder!r}; set the "
        f"task's folder to the one that holds {names} (each as it is or .gz)"
        + (f", or {NPZ}" if source == "mnist" else "")
    )
