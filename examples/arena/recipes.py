"""EGD's choices apart, each tuned as far as all of it: `run examples/arena/recipes.py`.

Each entry makes one choice of EGD and leaves the others to be tuned; two have a constraint in
place of the decay.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from arena import controls
from arena.contract import Knob, Optimizer, Params, Task
from arena.optimizers import (
    EGD,
    Values,
    changed,
    egd,
    matrices_of,
    whiten,
)
from arena.tasks import TASKS
from egd_optax import polar, scale_by_egd

HORIZON = Knob("horizon", 10.0, 1_000.0)  # steps of a cosine to a tenth, after which it stays
NORM = Knob("norm", 0.3, 10.0)  # of each matrix, relative to its initial values
NUCLEAR = Knob("decay", 1e-3, 1.0)  # singular values shrink by learning rate times this
SKETCH = 64


def without(*names: str) -> tuple[Knob, ...]:
    """Return EGD's knobs but for some."""
    return tuple(knob for knob in EGD if knob.name not in names)


def decoupled(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    return egd({**values, "kind": 0}, task, params)


def coupled(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    return egd({**values, "kind": 1}, task, params)


def raw(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    return egd({**values, "reach": 1.0, "lookahead": 0}, task, params)


def after(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    """Average the whitened gradients."""
    average = controls.average(1 - 1 / values["reach"], values["lookahead"])
    first = {**values, "reach": 1.0, "lookahead": 0}
    return changed(first, task, params, optax.chain(whiten(values), average))


def exact(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    return egd({**values, "method": 0}, task, params)


def polynomial(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    return egd({**values, "method": 1}, task, params)


def sketch(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    return changed(values, task, params, scale_by_egd(polar.Randomized(SKETCH)))


def first(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    """Whiten the first matrix alone, as the paper does; AdamW has the other one, too."""
    every = matrices_of(task, params)
    leaves, structure = jax.tree.flatten(every)
    place = leaves.index(True)
    alone = jax.tree.unflatten(structure, [i == place for i in range(len(leaves))])
    return egd(values, dataclasses.replace(task, hidden=lambda _: alone), params)


def cosine(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    horizon = values["horizon"]

    def rate(count: jax.Array) -> jax.Array:
        done = jnp.minimum(count / horizon, 1.0)
        return 0.1 + 0.9 * 0.5 * (1 + jnp.cos(jnp.pi * done))

    return optax.chain(egd(values, task, params), optax.scale_by_schedule(rate))


def clamped(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    """Hold the norm of each matrix, in place of the decay."""
    chosen = matrices_of(task, params)
    free = egd({**values, "decay": 0.0}, task, params)
    return optax.chain(free, controls.hold_norms(values["norm"], chosen))


def nuclear(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    """Let the singular values decay all by the same length, decoupled."""
    decay = controls.add_nuclear_decay(values["decay"])
    return changed({**values, "decay": 0.0}, task, params, optax.chain(whiten(values), decay))


def _recipe(make: Any, title: str, knobs: tuple[Knob, ...], note: str = "") -> Optimizer:
    return Optimizer(make.__name__, title, "egd_optax", knobs, make, note)


optimizers = (
    _recipe(egd, "EGD", EGD),
    _recipe(decoupled, "Decay decoupled", without("kind")),
    _recipe(coupled, "Decay coupled", without("kind")),
    _recipe(raw, "Raw gradients", without("reach", "lookahead")),
    _recipe(after, "Average after the whitening", EGD),
    _recipe(exact, "Exact factor", without("method")),
    _recipe(polynomial, "Five Newton-Schulz steps", without("method")),
    _recipe(sketch, f"Sketch of {SKETCH} directions", without("method")),
    _recipe(first, "First matrix alone", EGD),
    _recipe(cosine, "Cosine schedule", (*EGD, HORIZON)),
    _recipe(clamped, "Norms held", (NORM, *without("decay", "kind"))),
    _recipe(nuclear, "Nuclear-norm decay", (NUCLEAR, *without("decay", "kind"))),
)
task = dataclasses.replace(
    TASKS["addition-79"],
    name="recipes",
    title="EGD's choices apart",
    batches=(780,),
    note="Addition modulo 79 at a quarter of the training set, where a trial takes a second.\n"
    "Each row makes one choice of EGD, and tunes the rest.",
)
