"""A task of your own: `python examples/arena run examples/arena/own_task.py`.

Of ten inputs two matter, and the label is the sign of their product.
"""

import jax
import jax.numpy as jnp
import numpy as np

from arena.contract import Task

WIDTH, INPUTS = 64, 10


def init(key):
    keys = jax.random.split(key)
    return {
        "hidden": jax.random.normal(keys[0], (INPUTS, WIDTH)) / INPUTS**0.5,
        "out": jax.random.normal(keys[1], (WIDTH, 1)) / WIDTH**0.5,
    }


def predict(params, inputs):
    return jax.nn.relu(inputs @ params["hidden"]) @ params["out"]


def loss(params, batch):
    inputs, labels = batch
    return jnp.mean(jnp.square(predict(params, inputs)[:, 0] - labels))


def score(params, batch):
    inputs, labels = batch
    return jnp.mean(predict(params, inputs)[:, 0] * labels > 0, dtype=jnp.float32)


def data(seed):
    inputs = np.random.default_rng(seed).normal(size=(3072, INPUTS)).astype("float32")
    labels = np.sign(inputs[:, 0] * inputs[:, 1]).astype("float32")
    return (inputs[:1024], labels[:1024]), (inputs[1024:], labels[1024:])


task = Task(
    name="own",
    title="The sign of a product",
    init=init,
    loss=loss,
    data=data,
    score=score,
    target=0.9,
    steps=1000,
    batches=(64, 256, 1024),
)
