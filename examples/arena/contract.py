"""What a task, a knob and an optimizer are: all that the two halves of the arena share."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import optax

Params: TypeAlias = Any
Batch: TypeAlias = Any


@dataclasses.dataclass(frozen=True)
class Task:
    """One thing to learn, and when it counts as learned."""

    name: str
    """File name of its log, such as "addition-97"."""
    title: str
    """Such as "Addition modulo 97"."""
    init: Callable[[jax.Array], Params]
    """Makes parameters from a key."""
    loss: Callable[[Params, Batch], jax.Array]
    """Scalar training loss of one batch."""
    data: Callable[[int], tuple[Batch, Batch]]
    """Makes training and test data from a seed: pytrees of arrays, examples on axis 0."""
    score: Callable[[Params, Batch], jax.Array]
    """Scalar of the averaged weights on the test data; more is better unless `lower`."""
    target: float
    """Score to reach, such as .95."""
    steps: int
    """Budget of one trial."""
    batches: tuple[int, ...]
    """Batch sizes to tune over, ascending; the whole set counts as its size."""
    every: int = 1
    """Looks at the test data every so many steps."""
    hold: int = 20
    """Looks in a row at the target."""
    trials: int = 64
    """Trials of each optimizer."""
    seeds: int = 10
    """Fresh seeds, those that count."""
    first_fresh_seed: int = 400
    """The first of these; those of 100 to 399 counted for earlier tuners."""
    tuning_seeds: tuple[int, ...] = (0, 1)
    """Seeds of every trial, below 100."""
    lower: bool = False
    """Less is better, as for a validation loss."""
    hidden: Callable[[Params], Any] | None = None
    """Parameters -> tree of bools: the matrices to whiten; None means all 2-D leaves."""
    note: str = ""
    """One sentence for the page."""


@dataclasses.dataclass(frozen=True)
class Knob:
    """One number or choice to tune."""

    name: str
    low: float | None = None
    """Lower end of a range; with `high`, unless there are choices. Trials may leave the range."""
    high: float | None = None
    log: bool = True
    """Sampled in log scale."""
    choices: tuple[Any, ...] = ()
    """Choices instead of a range; they arrive as 0, 1, ..., and have no edge."""
    least: float | None = None
    """Natural limit: no range goes below it, and a best there is at no edge."""
    most: float | None = None
    """Natural limit above."""


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A name, its knobs, and the transformation that they make."""

    name: str
    title: str
    source: str
    """Package or paper that it comes from."""
    knobs: tuple[Knob, ...]
    """Its own. The batch size and `ema`, the reach of the weights' average, are everybody's."""
    make: Callable[[Mapping[str, jax.Array | float], Task, Params], optax.GradientTransformation]
    """Called inside the traced training function: every value may be a tracer, so no branches."""
    note: str = ""
