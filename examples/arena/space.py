"""Ranges of an optimizer's knobs: quasirandom points in them, and edges."""

import dataclasses
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy.stats import qmc

from arena.contract import Knob

BATCH = "batch"
# Every optimizer's: steps that the average of the weights, which is looked at, reaches back.
EMA = Knob("ema", 1.0, 30.0, least=1.0)
DIGITS = 4
Settings: TypeAlias = dict[str, Any]


def points(
    name: str, knobs: Sequence[Knob], batches: Sequence[int], count: int, number: int = 0
) -> list[Settings]:
    """Return the settings of an optimizer's first trials: the same ones for the same arguments.

    They are the first points of a scrambled Sobol sequence with a coordinate for each knob and one
    for the batch size. The optimizer's name, and the round's number, are the scrambling's seed.
    """
    seed = np.random.default_rng(zlib.crc32(f"{name}/{number}".encode()))
    sobol = qmc.Sobol(len(knobs) + 1, scramble=True, seed=seed)
    cube = sobol.random_base2(math.ceil(math.log2(count)))[:count]
    sizes = Knob(BATCH, choices=tuple(batches))
    return [
        {knob.name: _value(knob, float(u)) for knob, u in zip((*knobs, sizes), point, strict=True)}
        for point in cube
    ]


def spread(trials: int) -> int:
    """Return how many of the trials are spread over the ranges: a quarter."""
    return -(-trials // 4)


def _value(knob: Knob, u: float) -> Any:
    """Return the knob's value at `u` in [0, 1), to a few digits, as logs have it."""
    if knob.choices:
        return knob.choices[int(u * len(knob.choices))]
    low, high = ends(knob)
    value = low * (high / low) ** u if knob.log else low + (high - low) * u
    return float(f"{value:.{DIGITS}g}")


def ends(knob: Knob) -> tuple[float, float]:
    """Return both ends of a range."""
    assert knob.low is not None
    assert knob.high is not None
    return knob.low, knob.high


def edges(knobs: Iterable[Knob], best: Settings, tried: Sequence[Settings]) -> dict[str, str]:
    """Return the knobs whose best value lies at an edge, with the side: `low` or `high`.

    It does if no trial has a value beyond it, unless the range ends at a natural limit
    there. Choices have no edge.
    """
    found = {}
    for knob in knobs:
        if knob.choices:
            continue
        low, high = ends(knob)
        values = [settings[knob.name] for settings in tried]
        value = best[knob.name]
        if value <= min(values) and (knob.least is None or knob.least < min(low, value)):
            found[knob.name] = "low"
        elif value >= max(values) and (knob.most is None or knob.most > max(high, value)):
            found[knob.name] = "high"
    return found


def to_json(knob: Knob) -> dict[str, Any]:
    """Return the knob for a log, without what is not set."""
    values = {**dataclasses.asdict(knob), "choices": list(knob.choices)}
    if knob.choices:
        return {"name": knob.name, "choices": values["choices"]}
    return {name: value for name, value in values.items() if value not in (None, [])}


def from_json(values: Mapping[str, Any]) -> Knob:
    """Return the knob of `to_json`."""
    return Knob(**{**values, "choices": tuple(values.get("choices", ()))})


def traced(knobs: Iterable[Knob], settings: Settings) -> dict[str, np.generic]:
    """Return the values that an optimizer's `make` gets: float32, or the number of a choice."""
    return {
        knob.name: np.int32(knob.choices.index(settings[knob.name]))
        if knob.choices
        else np.float32(settings[knob.name])
        for knob in knobs
    }
