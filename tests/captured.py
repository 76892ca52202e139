"""Gradients of real training, as float32 matrices: small runs of the benchmarks' own network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from benchmarks import training
from flax import nnx

from egd_optax import polar, scale_by_egd
from egd_optax.models import DecoderTransformer

EPOCHS = (1, 10, 50)
SMALL = training.Addition(p=31, width=128, batch_size=120)
PAPER = training.Addition(p=97)


def modular_network():
    """The first matrix's gradient with its decay term, on addition mod 31, by epoch."""
    return gradients(SMALL)


def recipe():
    """The same of the paper's own network, 194 by 512 on addition mod 97: some ten seconds."""
    return gradients(PAPER)


@functools.cache
def gradients(task, decay=training.WEIGHT_DECAY):
    """The first matrix's gradient by epoch; without the decay term of rank 2 p - 1.

    For the two one-hot numbers of an input each sum to 1.
    """
    optimizer = training.sgd(scale_by_egd(polar.SVD()))
    graph, _ = task.network()
    train, test = task.data()
    step = jax.jit(functools.partial(training.epoch, task, optimizer))
    slope = jax.jit(jax.grad(functools.partial(training.loss, graph)))
    state = training.start(task, optimizer)
    found = {}
    for epoch in range(1, max(EPOCHS) + 1):
        state, _ = step(state, (train, test))
        if epoch in EPOCHS:
            decayed = jax.tree.map(
                lambda g, w: g + decay * w, slope(state.params, *train), state.params
            )
            found[f"{task}, epoch {epoch}"] = np.asarray(decayed["hidden"]["kernel"])
    return found


@functools.cache
def transformer():
    """One gradient of each kind of matrix of the transformer, after twenty steps of Adam."""
    model = DecoderTransformer(13, 4, layers=1, width=48, heads=4, rngs=nnx.Rngs(0))
    graph, params = nnx.split(model, nnx.Param)
    tokens = jax.random.randint(jax.random.key(0), (128, 4), 0, 13)
    labels = (tokens[:, 0] + tokens[:, 2]) % 13

    def loss(params):
        logits = nnx.merge(graph, params)(tokens)
        return jnp.mean(optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels))

    optimizer = optax.adam(1e-3)

    @jax.jit
    def step(params, state):
        grads = jax.grad(loss)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, grads

    state = optimizer.init(params)
    for _ in range(20):
        params, state, grads = step(params, state)
    grads = nnx.to_pure_dict(grads)
    block = grads["blocks"][0]
    heads = {name: block["attention"][name]["kernel"] for name in ("query", "key", "value")}
    out = block["attention"]["out"]["kernel"]
    kinds = {
        "token embedding": grads["token_embedding"]["embedding"],
        "position embedding": grads["position_embedding"]["embedding"],
        **{name: kernel.reshape(kernel.shape[0], -1) for name, kernel in heads.items()},
        "attention output": out.reshape(-1, out.shape[-1]),
        "mlp expand": block["mlp"]["expand"]["kernel"],
        "mlp contract": block["mlp"]["contract"]["kernel"],
        "head": grads["head"]["kernel"],
    }
    return {f"transformer, {kind}": np.asarray(matrix) for kind, matrix in kinds.items()}
