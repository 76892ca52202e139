"""Tasks on which networks grok. A task is one small class, entered in `TASKS` and in `Task`."""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp

from grokking.examples import Examples, Split, class_accuracy, cross_entropy
from grokking.images import Images

OPERATIONS = {"addition": jnp.add, "multiplication": jnp.multiply}
ENCODINGS = ("one_hots", "tokens")


@dataclasses.dataclass(frozen=True)
class ModularArithmetic:
    """Learn the table of an operation modulo p from a part of it.

    Args:
        operation: the operation between the two residues.
        p: the modulus; the table has p * p entries.
        train_fraction: share of the table to train on; the test set is the rest.
        nonzero: leave out the entries whose second residue is 0; p * (p - 1) are left.
        encoding: `one_hots`, float32 (2 p,), one for each residue; or `tokens`, the int32 sequence
            (4,) of `a op b =` for a `DecoderTransformer(vocabulary, length)`. The residues are the
            tokens below p, `op` is p and `=` is p + 1; the logits are over the whole vocabulary.

    Raises:
        ValueError: an unknown operation or encoding, p below 2, or a fraction that leaves one of
            the sets empty.
    """

    operation: Literal["addition", "multiplication"] = "addition"
    p: int = 97
    train_fraction: float = 0.5
    nonzero: bool = False
    encoding: Literal["one_hots", "tokens"] = "one_hots"

    kind: ClassVar[str] = "modular_arithmetic"
    bias_scale: ClassVar[float] = 0.0
    length: ClassVar[int] = 4

    def __post_init__(self) -> None:
        for field, choices in (("operation", OPERATIONS), ("encoding", ENCODINGS)):
            if getattr(self, field) not in choices:
                raise ValueError(
                    f"{field} must be one of {', '.join(choices)}; got {getattr(self, field)!r}"
                )
        if self.p < 2:
            raise ValueError(
                f"the modulus p must be at least 2, got {self.p}; the paper uses 79, 97 and 127"
            )
        if not 0.0 < self.train_fraction < 1.0:
            raise ValueError(
                f"train_fraction must lie in (0, 1), got {self.train_fraction}; the paper uses 0.5"
            )
        if not 0 < self.train_size < self.entries:
            raise ValueError(
                f"train_fraction must leave both sets an entry, got {self.train_fraction} of "
                f"{self.entries} entries; move it towards 0.5"
            )

    @property
    def name(self) -> str:
        nonzero = "-nonzero" if self.nonzero else ""
        tokens = "-tokens" if self.encoding == "tokens" else ""
        return f"{self.operation}-{self.p}{nonzero}{tokens}"

    @property
    def in_features(self) -> int:
        return self.length if self.encoding == "tokens" else 2 * self.p

    @property
    def out_features(self) -> int:
        return self.vocabulary if self.encoding == "tokens" else self.p

    @property
    def vocabulary(self) -> int:
        return self.p + 2

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

    def loss(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Mean cross-entropy in nats of logits (count, out_features) against classes (count,)."""
        return cross_entropy(logits, labels)

    def accuracy(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Share of the rows whose largest logit is the label's."""
        return class_accuracy(logits, labels)

    def _encode(self, left: jax.Array, right: jax.Array) -> jax.Array:
        if self.encoding == "tokens":
            operation, equals = jnp.full_like(left, self.p), jnp.full_like(left, self.p + 1)
            return jnp.stack([left, operation, right, equals], axis=1).astype(jnp.int32)
        one_hots = [jax.nn.one_hot(residue, self.p, dtype=jnp.float32) for residue in (left, right)]
        return jnp.concatenate(one_hots, axis=1)


@dataclasses.dataclass(frozen=True)
class SparseParity:
    """Learn the product of the first k of n random signs.

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
    out_features: ClassVar[None] = None

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(
                f"the parity needs k of at least 1 sign, got k={self.k}; the paper uses 2, 3 and 4"
            )
        if self.k > self.n:
            raise ValueError(
                f"k cannot exceed the n signs of an input, got k={self.k}, n={self.n}; "
                "lower k or raise n"
            )
        for name in ("train_size", "test_size"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}; "
                    "the paper uses 2000 and 10000"
                )

    @property
    def name(self) -> str:
        return f"parity-{self.k}-of-{self.n}"

    @property
    def in_features(self) -> int:
        return self.n

    @property
    def bias_scale(self) -> float:
        return (2.0 / self.n) ** 0.5

    def split(self, key: jax.Array) -> Split:
        """Draw independent uniform signs with `key`; inputs may repeat by chance."""
        inputs = jax.random.rademacher(key, (self.train_size + self.test_size, self.n), jnp.float32)
        return _cut(Examples(inputs, jnp.prod(inputs[:, : self.k], axis=1)), self.train_size)

    def loss(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Mean squared error of outputs (count,) to the targets +-1."""
        return jnp.mean(jnp.square(outputs - labels))

    def accuracy(self, outputs: jax.Array, labels: jax.Array) -> jax.Array:
        """Share of the outputs that have the target's sign."""
        return jnp.mean(outputs * labels > 0.0, dtype=jnp.float32)


Task = ModularArithmetic | SparseParity | Images
TASKS = {task.kind: task for task in (ModularArithmetic, SparseParity, Images)}


def _cut(examples: Examples, train_size: int) -> Split:
    train = Examples(*(array[:train_size] for array in examples))
    test = Examples(*(array[train_size:] for array in examples))
    return Split(train, test)
