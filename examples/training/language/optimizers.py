"""Who trains the model: each optimizer with the ranges of its knobs, and settings to begin with.

As in the arena, every value may be traced, and an average is told by its reach, 1 / (1 - beta).
Embeddings, head, biases and norms are AdamW's, without decay and alike for all but SGD, which
trains everything.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from arena import controls
from arena.contract import Knob
from arena.optimizers import B1, COUPLED, DECAY, ENTRIES, LENGTHS, MEMORY, OTHERS, REACH
from arena.space import Settings

import egd_optax
from egd_optax import InferredAxes, MatrixAxes, matching, scale_by_egd
from egd_optax.polar import PolarMethod

Values: TypeAlias = Mapping[str, Any]  # of numbers
B2 = 0.95  # of Adam, as language models have it
# Whitened steps of .01 to 10 are as long as the weights of this model: a decade lower.
WHITENED = Knob("learning_rate", 0.001, 1.0)
# Optax's two factors by shape for whitened steps, as in `muon(consistent_rms=0.2)`.
SCALE = Knob("scale", choices=("muon", "consistent_rms"))
RMS = 0.2
# The average of the gradients is whitened, looking ahead, or the whitened gradients are averaged.
AVERAGE = Knob("average", choices=("before", "after"))


@dataclasses.dataclass(frozen=True)
class Choices:
    """What of an optimizer is no number; all but the scale is EGD's.

    Args:
        method: how polar factors are computed; None: exactly.
        average: "before" whitening, where it looks ahead, "after" it, where it does not, or None.
        decay: "decoupled", or "coupled" and a thousandth of it.
        scale: factor by shape; Muon and Shampoo have it, too.
        every: whiten at every so many steps; between, the gradient or its average at that length.
    """

    method: PolarMethod | None = None
    average: str | None = "before"
    decay: str = "decoupled"
    scale: str | None = "muon"
    every: int = 1

    def length(self, rows: int, columns: int) -> float:
        """Return the scale's factor."""
        if self.scale == "consistent_rms":
            return RMS * math.sqrt(max(rows, columns))
        return math.sqrt(max(1.0, columns / rows)) if self.scale == "muon" else 1.0


EXACT = Choices()


def choices_of(settings: Settings) -> Choices:
    """Return what of settings is no number."""
    return Choices(**{name: settings[name] for name in ("scale", "average") if name in settings})


class Recipe(NamedTuple):
    """What a transformation is made for: the model's matrices, and the course of the rates."""

    axes: InferredAxes
    schedule: optax.Schedule
    choices: Choices = EXACT

    def rate(self, peak: Any) -> optax.Schedule:
        """Return a learning rate's course."""
        return lambda step: peak * self.schedule(step)


class Entry(NamedTuple):
    """An optimizer, as in the arena's contract, but for a model and a schedule."""

    title: str
    source: str
    knobs: tuple[Knob, ...]
    make: Callable[[Values, Recipe], optax.GradientTransformation]
    settings: Settings
    """To begin with: the best that tuning found for the small model so far, rounded."""

    @property
    def numbers(self) -> tuple[Knob, ...]:
        """The knobs that are no choice."""
        return tuple(knob for knob in self.knobs if not knob.choices)


def adamw(values: Values, recipe: Recipe) -> optax.GradientTransformation:
    matrices = optax.adamw(
        recipe.rate(values["learning_rate"]),
        b1=_beta(values["reach"]),
        b2=B2,
        weight_decay=values["decay"],
    )
    return _apart(matrices, values, recipe)


def sgd(values: Values, recipe: Recipe) -> optax.GradientTransformation:
    decay = optax.add_decayed_weights(COUPLED * values["decay"])
    rate = recipe.rate(values["learning_rate"])
    return optax.chain(decay, optax.sgd(rate, _beta(values["reach"]), nesterov=True))


def muon(values: Values, recipe: Recipe) -> optax.GradientTransformation:
    def numbers(params: Any) -> Any:
        def of_leaf(path: Any, _: Any) -> optax.contrib.MuonDimensionNumbers | None:
            axes = recipe.axes.get(_name(path))
            return axes and optax.contrib.MuonDimensionNumbers(axes.rows, axes.columns)

        return jax.tree.map_with_path(of_leaf, params)

    return optax.contrib.muon(
        recipe.rate(values["learning_rate"]),
        beta=_beta(values["reach"]),
        weight_decay=values["decay"],
        adam_b1=B1,
        adam_b2=B2,
        adam_learning_rate=recipe.rate(values["others"]),
        muon_weight_dimension_numbers=numbers,
        consistent_rms=RMS if recipe.choices.scale == "consistent_rms" else None,
    )


def shampoo(values: Values, recipe: Recipe) -> optax.GradientTransformation:
    precondition = optax.chain(controls.shampoo(_beta(values["memory"])), _scale(recipe.choices))
    change = as_matrices(precondition, recipe.axes)
    return _stepped(values, recipe, _averaged(values["reach"], recipe.choices, change))


def egd(values: Values, recipe: Recipe) -> optax.GradientTransformation:
    choices, reach = recipe.choices, values["reach"]
    if choices.every > 1:
        return _stepped(values, recipe, _averaged(reach, choices, _at_every(choices, recipe.axes)))
    return egd_optax.egd(
        recipe.rate(values["learning_rate"]),
        method=choices.method,
        momentum=_beta(reach) if choices.average else None,
        nesterov=choices.average == "before",
        average=choices.average or "before",
        weight_decay=values["decay"] * (COUPLED if choices.decay == "coupled" else 1),
        decay=choices.decay,
        axes=recipe.axes,
        scale=choices.scale,
        others=_others(values, recipe),
    )


def as_matrices(
    inner: optax.GradientTransformation, axes: Mapping[str, MatrixAxes | None]
) -> optax.GradientTransformation:
    """Let a transformation of matrices see each leaf as the list of the matrices in it.

    Args:
        inner: transformation of leaves (m, n).
        axes: of each leaf by path; as in Flax, the axes of its layers, rows and columns in turn.
    """

    def view(tree: Any) -> Any:
        def of_leaf(path: Any, leaf: jax.Array) -> list[jax.Array]:
            found: Any = axes[_name(path)]
            rows, columns = (
                math.prod(leaf.shape[axis] for axis in np.atleast_1d(side))
                for side in (found.rows, found.columns)
            )
            return list(leaf.reshape(-1, rows, columns))

        return jax.tree.map_with_path(of_leaf, tree)

    def update(updates, state, params=None):
        del params
        changed, state = inner.update(view(updates), state)
        whole = jax.tree.map(
            lambda leaf, parts: jnp.stack(parts).reshape(leaf.shape), updates, changed
        )
        return whole, state

    return optax.GradientTransformation(lambda params: inner.init(view(params)), update)


def _averaged(
    reach: Any, choices: Choices, change: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Return a change of gradients with the average before or after it."""
    if choices.average == "after":
        return optax.chain(change, optax.ema(_beta(reach)))
    return optax.chain(controls.average(_beta(reach), lookahead=1.0), change)


def _stepped(
    values: Values, recipe: Recipe, change: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Return change, decay and step of the matrices, as in the arena."""
    coupled = recipe.choices.decay == "coupled"
    decay = optax.add_decayed_weights(values["decay"] * (COUPLED if coupled else 1))
    rate = optax.scale_by_learning_rate(recipe.rate(values["learning_rate"]))
    both = (decay, change) if coupled else (change, decay)
    return _apart(optax.chain(*both, rate), values, recipe)


def _at_every(choices: Choices, axes: InferredAxes) -> optax.GradientTransformation:
    """Whiten at every so many steps, else scale to the length of what is whitened."""
    length = as_matrices(optax.chain(controls.scale_to_whitened(), _scale(choices)), axes)
    whiten = scale_by_egd(axes=axes, scale=choices.scale)
    return optax.chain(
        optax.conditionally_transform(whiten, lambda step: step % choices.every == 0),
        optax.conditionally_transform(length, lambda step: step % choices.every != 0),
    )


def _apart(
    matrices: optax.GradientTransformation, values: Values, recipe: Recipe
) -> optax.GradientTransformation:
    """Return an optimizer of the matrices, with AdamW on the rest."""
    whitened = (path for path, axes in recipe.axes.items() if axes)
    mask = matching(*(f"^{re.escape(path)}$" for path in whitened))

    def labels(params: Any) -> Any:
        return jax.tree.map(lambda wanted: "matrices" if wanted else "others", mask(params))

    return optax.partition({"matrices": matrices, "others": _others(values, recipe)}, labels)


def _others(values: Values, recipe: Recipe) -> optax.GradientTransformation:
    # as in Optax's Muon, whose Adam looks ahead, too
    rate = recipe.rate(values["others"])
    return optax.adamw(rate, b1=B1, b2=B2, weight_decay=0.0, nesterov=True)


def _scale(choices: Choices) -> optax.GradientTransformation:
    def scale(matrix: jax.Array, _: Any) -> jax.Array:
        return matrix * choices.length(*matrix.shape)

    return optax.stateless_with_tree_map(scale)


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _beta(reach: Any) -> Any:
    return 1 - 1 / reach


OPTIMIZERS: dict[str, Entry] = {
    "adamw": Entry(
        "AdamW",
        "Optax",
        (ENTRIES, OTHERS, DECAY, REACH),
        adamw,
        {"learning_rate": 0.007, "others": 0.07, "decay": 0.045, "reach": 4.0},
    ),
    "sgd": Entry(
        "SGD with momentum",
        "Optax",
        (LENGTHS, DECAY, REACH),
        sgd,
        {"learning_rate": 0.05, "decay": 0.09, "reach": 1.35},
    ),
    "muon": Entry(
        "Muon",
        "Optax",
        (WHITENED, OTHERS, DECAY, REACH, SCALE),
        muon,
        {"learning_rate": 0.017, "others": 5e-4, "decay": 0.006, "reach": 9.0}
        | {"scale": "consistent_rms"},
    ),
    "egd": Entry(
        "EGD",
        "egd_optax, exact",
        (WHITENED, OTHERS, DECAY, REACH, SCALE, AVERAGE),
        egd,
        {"learning_rate": 0.055, "others": 0.0056, "decay": 0.07, "reach": 1.14}
        | {"scale": "consistent_rms", "average": "after"},
    ),
    "shampoo": Entry(
        "Shampoo",
        "Gupta et al. 2018, arXiv 1802.09568; the arena's control",
        (WHITENED, OTHERS, DECAY, REACH, MEMORY, SCALE),
        shampoo,
        {"learning_rate": 0.1, "others": 0.009, "decay": 0.1, "reach": 30.0}
        | {"memory": 20.0, "scale": "muon"},
    ),
}
