"""Labelled examples, the two sets of a run, and how classes are scored."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Examples(NamedTuple):
    """Inputs (count, in_features), float32 or int32 tokens; labels (count,), int32 or +-1.0."""

    inputs: jax.Array
    labels: jax.Array


class Split(NamedTuple):
    """The two disjoint sets of a run."""

    train: Examples
    test: Examples


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy in nats of logits (count, classes) against labels (count,)."""
    return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))


def class_accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the share of the rows whose largest logit is the label's."""
    return jnp.mean(jnp.argmax(logits, axis=-1).astype(labels.dtype) == labels, dtype=jnp.float32)
