"""Who competes: each optimizer with its knobs, all ranges from one place.

Values may be traced, so nothing here branches on them: an average that reaches back 1 step is the
gradient itself, and of the coupled and the decoupled decay one is zero.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import optax
from grokking.controls import grokfast_ema, normalize_columns

from arena import controls
from arena.contract import Knob, Optimizer, Params, Task
from egd_optax import polar, scale_by_egd

Values: TypeAlias = Mapping[str, Any]  # of numbers

# The one rule for ranges: three decades of learning rates and of decay, and what is an optimizer's
# own. Nobody's range is narrowed by what is known of its best.
LENGTHS = Knob("learning_rate", 0.01, 10.0)  # steps as long as a gradient, or as a whitened one
ENTRIES = Knob("learning_rate", 1e-4, 0.1)  # every entry moves by about the learning rate
OTHERS = Knob("others", ENTRIES.low, ENTRIES.high)  # AdamW's rate on what is no matrix
DECAY = Knob("decay", 0.01, 10.0)  # lambda: weights shrink by learning rate times lambda
DECAYED = Knob("kind", choices=("decoupled", "coupled"))
REACH = Knob("reach", 1.0, 30.0, least=1.0)  # steps an average reaches back, 1 / (1 - beta)
MEMORY = Knob("memory", 3.0, 3_000.0, least=1.0)  # the same, of squared gradients
LOOKAHEAD = Knob("lookahead", choices=("no", "Nesterov"))
METHOD = Knob("method", choices=("exact", "five Newton-Schulz steps"))
SLOW = Knob("slow", 5.0, 500.0, least=1.0)
STRENGTH = Knob("strength", 0.01, 10.0)
LONGEST = Knob("longest", 0.3, 10.0)
POWER = Knob("power", 0.0, 1.0, log=False, least=0.0, most=1.0)

COUPLED = 1e-3  # a decay that joins the gradient is this much smaller, as gradients are
B1, B2 = 0.9, 0.98  # of the Adam on what is no matrix

WHITENED = (LENGTHS, DECAY, OTHERS, DECAYED, REACH, LOOKAHEAD)
EGD = (*WHITENED, METHOD)


def matrices_of(task: Task, params: Params) -> Any:
    """Return the tree of bools that marks what is whitened, by the task or all leaves of two axes.

    Raises:
        ValueError: nothing is marked, or a leaf that has not two axes.
    """
    if task.hidden is None:
        marked = jax.tree.map(lambda leaf: leaf.ndim == 2, params)
    else:
        marked = jax.tree.map(lambda _, wanted: bool(wanted), params, task.hidden(params))
    pairs = zip(jax.tree.leaves(params), jax.tree.leaves(marked), strict=True)
    shapes = [leaf.shape for leaf, wanted in pairs if wanted]
    if not shapes or any(len(shape) != 2 for shape in shapes):
        raise ValueError(
            f"the matrices of {task.name} must be leaves of two axes, at least one, got {shapes}; "
            "reshape them in its loss, or mark others in `hidden`"
        )
    return marked


def sgd(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    rate, decay = values["learning_rate"], COUPLED * values["decay"]
    return optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate))


def momentum(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    rate, decay = values["learning_rate"], COUPLED * values["decay"]
    heavy = optax.sgd(rate, _beta(values["reach"]), nesterov=True)
    return optax.chain(optax.add_decayed_weights(decay), heavy)


def adamw(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    return optax.adamw(
        values["learning_rate"],
        b1=_beta(values["reach"]),
        b2=_beta(values["memory"]),
        weight_decay=values["decay"],
    )


def muon(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    numbers = jax.tree.map(
        lambda wanted: optax.contrib.MuonDimensionNumbers() if wanted else None,
        matrices_of(task, params),
    )
    return optax.contrib.muon(
        values["learning_rate"],
        beta=_beta(values["reach"]),
        weight_decay=values["decay"],
        adam_b1=B1,
        adam_b2=B2,
        adam_learning_rate=values["others"],
        adam_weight_decay=values["decay"],
        muon_weight_dimension_numbers=numbers,
    )


def grokfast(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    slow = grokfast_ema(_beta(values["slow"]), values["strength"])
    return optax.chain(slow, adamw(values, task, params))


def orthograd(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    return optax.chain(controls.orthogonal_gradients(), adamw(values, task, params))


def lion(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    clip = controls.clip_columns(values["longest"], matrices_of(task, params))
    averages = {"b1": _beta(values["reach"]), "b2": _beta(values["memory"])}
    signs = optax.lion(values["learning_rate"], **averages, weight_decay=values["decay"])
    return optax.chain(signs, clip)


def shampoo(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    change = controls.shampoo(_beta(values["memory"]))
    return changed(values, task, params, change)


def column_norm(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    return changed(values, task, params, normalize_columns(controls.TINY))


def scaled(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    return changed(values, task, params, controls.scale_to_whitened())


def weighted(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    weigh = controls.weigh_rows(values["power"])
    return changed(values, task, params, optax.chain(weigh, scale_by_egd()))


def egd(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    """Return `egd_optax.egd`, whose choices are no numbers, as a chain."""
    return changed(values, task, params, whiten(values))


def whiten(values: Values) -> optax.GradientTransformation:
    """Return the whitening by a method that is tuned."""
    polynomial = scale_by_egd(polar.NewtonSchulz(steps=5))
    return controls.either(values.get("method", 0), scale_by_egd(), polynomial)


def changed(
    values: Values, task: Task, params: Params, change: optax.GradientTransformation
) -> optax.GradientTransformation:
    """Return decay, average, change and step of the matrices, and AdamW for the rest.

    Args:
        values: `learning_rate`, `decay`, `others`, `reach`; where they are tuned, `kind` and
            `lookahead`, which are decoupled and Nesterov's otherwise.
        task: says which leaves are matrices.
        params: the parameters.
        change: what becomes of the averaged gradient of a matrix.
    """
    coupled = jnp.asarray(values.get("kind", 0), jnp.float32)
    decay = values["decay"]
    whole = optax.chain(
        optax.add_decayed_weights(COUPLED * coupled * decay),
        controls.average(_beta(values["reach"]), values.get("lookahead", 1)),
        change,
        optax.add_decayed_weights((1 - coupled) * decay),
        optax.scale_by_learning_rate(values["learning_rate"]),
    )
    labels = jax.tree.map(
        lambda wanted: "matrices" if wanted else "others", matrices_of(task, params)
    )
    # as in Optax's Muon, whose Adam looks ahead, too
    others = optax.adamw(values["others"], b1=B1, b2=B2, weight_decay=decay, nesterov=True)
    return optax.partition({"matrices": whole, "others": others}, labels)


def _beta(reach: Any) -> Any:
    return 1 - 1 / reach


Make: TypeAlias = Callable[[Values, Task, Params], optax.GradientTransformation]


def _entry(
    make: Make, title: str, source: str, knobs: tuple[Knob, ...], note: str = ""
) -> Optimizer:
    return Optimizer(make.__name__, title, source, knobs, make, note)


OPTIMIZERS: dict[str, Optimizer] = {
    entry.name: entry
    for entry in (
        _entry(sgd, "SGD", "Optax", (LENGTHS, DECAY), "The decay is coupled."),
        _entry(
            momentum,
            "SGD with momentum",
            "Optax",
            (LENGTHS, DECAY, REACH),
            "Nesterov's; the decay is coupled.",
        ),
        _entry(adamw, "AdamW", "Optax", (ENTRIES, DECAY, REACH, MEMORY)),
        _entry(
            muon,
            "Muon",
            "Optax",
            (LENGTHS, DECAY, OTHERS, REACH),
            "AdamW on what is no matrix, with a learning rate of its own.",
        ),
        _entry(
            grokfast,
            "Grokfast on AdamW",
            "Lee et al. 2024, arXiv 2405.20233",
            (ENTRIES, DECAY, REACH, MEMORY, SLOW, STRENGTH),
            "A moving average is added to the gradient, AdamW does the rest.",
        ),
        _entry(
            orthograd,
            "OrthoGrad on AdamW",
            "Prieto et al. 2025, arXiv 2501.04697",
            (ENTRIES, DECAY, REACH, MEMORY),
        ),
        _entry(
            lion,
            "Lion, clipped norms",
            "Optax, clipped as in Clip-to-Grok",
            (ENTRIES, DECAY, REACH, MEMORY, LONGEST),
            "After each step the weights into a unit are shortened to a norm.",
        ),
        _entry(
            shampoo,
            "Shampoo",
            "Gupta et al. 2018, arXiv 1802.09568; ours",
            (LENGTHS, DECAY, OTHERS, REACH, MEMORY),
            "Exact roots at every step, averaged statistics; AdamW on the rest, as for Muon.",
        ),
        _entry(
            column_norm,
            "Column norm",
            "Pasand, Dohmatob 2025, arXiv 2510.04930",
            WHITENED,
            "The weights into a unit move by an equal length.",
        ),
        _entry(
            scaled,
            "Gradient of the whitened length",
            "ours, a control",
            WHITENED,
            "What of EGD is the length of its step alone: EGD's knobs, no whitening.",
        ),
        _entry(
            weighted,
            "EGD, rows weighted by noise",
            "ours, a variant",
            (*WHITENED, POWER),
            "Rows are divided by a power of their noise, then the matrix is whitened.",
        ),
        _entry(
            egd,
            "EGD",
            "egd_optax",
            EGD,
            "Decay, average and method are knobs; AdamW on the rest, as for Muon.",
        ),
    )
}
