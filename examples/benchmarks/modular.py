"""The paper's network on addition modulo p: the training that the benchmarks time."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from egd_optax import matching
from egd_optax.models import TwoLayerMLP

LEARNING_RATE, WEIGHT_DECAY = 0.7, 1e-4


class State(NamedTuple):
    """Parameters, the optimizer's state, and the key of the next epoch's order."""

    params: Any
    optimizer: Any
    key: jax.Array


@dataclasses.dataclass(frozen=True)
class Addition:
    """Addition modulo `p` of two one-hot numbers by a two-layer network.

    Args:
        p: modulus; half of the p^2 sums are for training, the others for the test.
        width: hidden units; the first matrix is 2p x width.
        batch_size: examples of a step; an epoch's last partial batch is dropped.
    """

    p: int = 97
    width: int = 512
    batch_size: int = 512

    @property
    def train_size(self) -> int:
        return self.p**2 // 2

    def data(self) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]:
        """Return inputs and labels for training, and those for the test."""
        left, right = jnp.divmod(jax.random.permutation(jax.random.key(0), self.p**2), self.p)
        one_hots = [jax.nn.one_hot(number, self.p, dtype=jnp.float32) for number in (left, right)]
        inputs, labels = jnp.concatenate(one_hots, axis=1), (left + right) % self.p
        cut = self.train_size
        return (inputs[:cut], labels[:cut]), (inputs[cut:], labels[cut:])

    def network(self) -> tuple[nnx.GraphDef, dict]:
        """Return the network and its initial parameters."""
        model = TwoLayerMLP(2 * self.p, self.width, self.p, rngs=nnx.Rngs(1))
        graph, variables = nnx.split(model, nnx.Param)
        return graph, nnx.to_pure_dict(variables)


def loss(graph: nnx.GraphDef, params: Any, inputs: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy."""
    logits = nnx.merge(graph, params)(inputs)
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def sgd(change: optax.GradientTransformation) -> optax.GradientTransformation:
    """Return gradient descent with coupled decay, with the first matrix's gradient changed."""
    return optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY),
        optax.masked(change, matching("hidden/kernel")),
        optax.scale_by_learning_rate(LEARNING_RATE),
    )


def start(task: Addition, optimizer: optax.GradientTransformation) -> State:
    """Return the state before the first epoch."""
    params = task.network()[1]
    return State(params, optimizer.init(params), jax.random.key(2))


def epoch(task: Addition, optimizer: optax.GradientTransformation, state: State) -> tuple:
    """Train on every full batch once; return the next state and the losses of both sets."""
    graph, _ = task.network()
    train, test = task.data()
    order, key = jax.random.split(state.key)
    batches = task.train_size // task.batch_size
    chosen = jax.random.permutation(key, task.train_size)[: batches * task.batch_size]
    chosen = chosen.reshape(batches, task.batch_size)

    def step(carry, rows):
        params, optimizer_state = carry
        gradients = jax.grad(lambda params: loss(graph, params, train[0][rows], train[1][rows]))(
            params
        )
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return (optax.apply_updates(params, updates), optimizer_state), None

    (params, optimizer_state), _ = jax.lax.scan(step, state[:2], chosen)
    losses = [loss(graph, params, *examples) for examples in (train, test)]
    return State(params, optimizer_state, order), losses
