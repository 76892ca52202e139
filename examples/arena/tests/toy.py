"""A task of milliseconds with two optimizers of its own: a line through points."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from arena.contract import Knob, Optimizer, Task


def data(seed):
    inputs = np.random.default_rng(seed).normal(size=(24, 3)).astype("float32")
    labels = inputs @ np.array([1.0, -2.0, 0.5], "float32")
    return (inputs[:16], labels[:16]), (inputs[16:], labels[16:])


def loss(params, batch):
    inputs, labels = batch
    return jnp.mean(jnp.square(inputs @ params["w"] - labels))


task = Task(
    name="toy",
    title="A line",
    init=lambda key: {"w": jax.random.normal(key, (3,))},
    loss=loss,
    data=data,
    score=loss,
    target=0.01,
    lower=True,
    steps=60,
    batches=(4, 16),
    hold=3,
    trials=8,
    seeds=3,
)
RATE = Knob("lr", 0.001, 1.0)
optimizers = (
    Optimizer("sgd", "SGD", "optax", (RATE,), lambda values, *_: optax.sgd(values["lr"])),
    Optimizer(
        "momentum",
        "SGD with momentum",
        "optax",
        (RATE, Knob("beta", 0.0, 0.9, log=False, least=0.0, most=1.0)),
        lambda values, *_: optax.sgd(values["lr"], momentum=values["beta"]),
    ),
)
