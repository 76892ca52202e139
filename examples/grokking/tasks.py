"""Tasks on which networks grok, each with its data, its network, its loss and its accuracy."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import optax
from common.checks import check_choice, check_least
from flax import nnx

from egd_optax.models import DecoderTransformer, TwoLayerMLP
from grokking.digits import CLASSES, DIGITS, PIXELS, mnist
from grokking.networks import MLP

OPERATIONS = {"addition": jnp.add, "multiplication": jnp.multiply}
ENCODINGS = ("one_hots", "tokens")
LOSSES = ("squared_error", "cross_entropy")


class Examples(NamedTuple):
    """Inputs (count, features), float32 or int32 tokens; labels (count,), int32 or +-1.0."""

    inputs: jax.Array
    labels: jax.Array


class Split(NamedTuple):
    """The two disjoint sets of a run."""

    train: Examples
    test: Examples


class Task:
    """Data, network, loss and accuracy; `kind` is its name in logs.

    `shuffle_every` is the number of epochs after which the data changes; None: it never does.
    """

    kind: ClassVar[str]
    shuffle_every: int | None = None

    @property
    def train_size(self) -> int:
        """Return the number of training points."""
        raise NotImplementedError

    def split(self, key: jax.Array) -> Split:
        """Draw the two sets."""
        raise NotImplementedError

    def at(self, epoch: int, split: Split, key: jax.Array) -> Split:
        """Return the data of an epoch, counted from 1: the same in all, unless a task says else."""
        del epoch, key
        return split

    def network(self, width: int, rngs: nnx.Rngs) -> nnx.Module:
        """Return the task's network with new initial values."""
        raise NotImplementedError

    def loss(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the mean cross-entropy in nats of logits (count, classes)."""
        return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(outputs, labels))

    def accuracy(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the share of the rows whose largest logit is the label's."""
        right = jnp.argmax(outputs, axis=-1).astype(labels.dtype) == labels
        return jnp.mean(right, dtype=jnp.float32)


@dataclasses.dataclass(frozen=True)
class ModularArithmetic(Task):
    """Learn the table of an operation modulo p from a part of it.

    Args:
        operation: `addition` or `multiplication` of two residues.
        p: the modulus; the table has p * p entries.
        train_fraction: share of the table to train on; the test set is the rest.
        nonzero: leave out the entries whose second residue is 0; p * (p - 1) are left.
        encoding: `one_hots`, float32 (2 p,), for a `TwoLayerMLP`; or `tokens`, the int32 sequence
            (4,) of `a op b =`, for a `DecoderTransformer`. The residues are the tokens below p,
            `op` is p and `=` is p + 1.

    Raises:
        ValueError: an unknown operation or encoding, p below 2, or an empty set.
    """

    operation: str = "addition"
    p: int = 97
    train_fraction: float = 0.5
    nonzero: bool = False
    encoding: str = "one_hots"

    kind: ClassVar[str] = "modular_arithmetic"

    def __post_init__(self) -> None:
        check_choice("operation", self.operation, OPERATIONS)
        check_choice("encoding", self.encoding, ENCODINGS)
        check_least("the modulus p", self.p, 2)
        if not 0 < self.train_fraction < 1 or not 0 < self.train_size < self.entries:
            raise ValueError(
                "train_fraction must lie in (0, 1) and leave both sets an entry, got "
                f"{self.train_fraction} of {self.entries} entries; the paper uses 0.5"
            )

    @property
    def entries(self) -> int:
        return self.p * (self.p - self.nonzero)

    @property
    def train_size(self) -> int:
        return int(self.train_fraction * self.entries)

    def split(self, key: jax.Array) -> Split:
        """Shuffle the whole table with `key` and cut it into train and test."""
        first = int(self.nonzero)
        left, right = jnp.divmod(jax.random.permutation(key, self.entries), self.p - first)
        right = right + first
        labels = (OPERATIONS[self.operation](left, right) % self.p).astype(jnp.int32)
        return _cut(Examples(self._encode(left, right), labels), self.train_size)

    def network(self, width: int, rngs: nnx.Rngs) -> nnx.Module:
        if self.encoding == "tokens":
            return DecoderTransformer(self.p + 2, 4, width=width, rngs=rngs)
        return TwoLayerMLP(2 * self.p, width, self.p, rngs=rngs)

    def _encode(self, left: jax.Array, right: jax.Array) -> jax.Array:
        if self.encoding == "tokens":
            operation, equals = jnp.full_like(left, self.p), jnp.full_like(left, self.p + 1)
            return jnp.stack([left, operation, right, equals], axis=1).astype(jnp.int32)
        one_hots = [jax.nn.one_hot(residue, self.p, dtype=jnp.float32) for residue in (left, right)]
        return jnp.concatenate(one_hots, axis=1)


@dataclasses.dataclass(frozen=True)
class SparseParity(Task):
    """Learn the product of the first k of n random signs, with a network of one output.

    Args:
        n: number of signs in an input.
        k: number of signs that matter.
        train_size: number of training points.
        test_size: number of test points.

    Raises:
        ValueError: k outside [1, n], or an empty set.
    """

    n: int = 400
    k: int = 2
    train_size: int = 2_000
    test_size: int = 10_000

    kind: ClassVar[str] = "sparse_parity"

    def __post_init__(self) -> None:
        for name in ("k", "train_size", "test_size"):
            check_least(name, getattr(self, name), 1)
        if self.k > self.n:
            raise ValueError(
                f"k must not exceed the n signs of an input, got k={self.k}, n={self.n}; lower k"
            )

    def split(self, key: jax.Array) -> Split:
        """Draw independent uniform signs with `key`; inputs may repeat by chance."""
        inputs = jax.random.rademacher(key, (self.train_size + self.test_size, self.n), jnp.float32)
        return _cut(Examples(inputs, jnp.prod(inputs[:, : self.k], axis=1)), self.train_size)

    def network(self, width: int, rngs: nnx.Rngs) -> nnx.Module:
        return TwoLayerMLP(self.n, width, None, bias_scale=(2.0 / self.n) ** 0.5, rngs=rngs)

    def loss(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the mean squared error of outputs (count,) to the targets +-1."""
        return jnp.mean(jnp.square(outputs - labels))

    def accuracy(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the share of the outputs that have the target's sign."""
        return jnp.mean(outputs * labels > 0.0, dtype=jnp.float32)


@dataclasses.dataclass(frozen=True)
class Mnist(Task):
    """Tell 5,000 of MNIST's digits apart, 784 pixels in [0, 1], after 1,000 of them.

    Args:
        train_size: training points, drawn by the split's key; the test set is the rest.
        loss_kind: `squared_error` to one-hots, a mean over batch and classes; or `cross_entropy`.
        shuffle_every: epochs after which the training labels are permuted among the training
            points, again and again, so that there is nothing to learn but to memorize anew;
            None never does.

    Raises:
        ValueError: an unknown loss, an empty set, or `shuffle_every` below 1.
    """

    train_size: int = 1_000
    loss_kind: str = "squared_error"
    shuffle_every: int | None = None

    kind: ClassVar[str] = "mnist"

    def __post_init__(self) -> None:
        check_choice("loss_kind", self.loss_kind, LOSSES)
        if not 1 <= self.train_size < DIGITS:
            raise ValueError(
                f"train_size must lie in [1, {DIGITS}) and leave digits for the test set, got "
                f"{self.train_size}; 1000 is the default"
            )
        if self.shuffle_every is not None:
            check_least("shuffle_every", self.shuffle_every, 1)

    def split(self, key: jax.Array) -> Split:
        """Draw the training points with `key`."""
        order = jax.random.permutation(key, DIGITS)
        images, labels = (jnp.asarray(array)[order] for array in mnist())
        return _cut(Examples(images, labels), self.train_size)

    def at(self, epoch: int, split: Split, key: jax.Array) -> Split:
        """Return the data of an epoch: after each `shuffle_every` with labels shuffled anew."""
        shuffles = 0 if self.shuffle_every is None else (epoch - 1) // self.shuffle_every
        if shuffles == 0:
            return split
        key = jax.random.fold_in(key, shuffles)
        labels = jax.random.permutation(key, split.train.labels)
        return Split(Examples(split.train.inputs, labels), split.test)

    def network(self, width: int, rngs: nnx.Rngs) -> nnx.Module:
        return MLP(PIXELS, (width, width), CLASSES, rngs=rngs)

    def loss(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Return the loss of the chosen kind of logits (count, 10)."""
        if self.loss_kind == "cross_entropy":
            return super().loss(outputs, labels)
        one_hots = jax.nn.one_hot(labels, CLASSES, dtype=outputs.dtype)
        return jnp.mean(jnp.square(outputs - one_hots))


TASKS = {task.kind: task for task in (ModularArithmetic, SparseParity, Mnist)}


def _cut(examples: Examples, train_size: int) -> Split:
    train = Examples(*(array[:train_size] for array in examples))
    test = Examples(*(array[train_size:] for array in examples))
    return Split(train, test)
