"""Ranges of an optimizer's knobs: quasirandom points in them, their edges, and wider ones."""

import dataclasses
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy.stats import qmc

from arena.contract import Knob

BATCH = "batch"
DIGITS = 4
LATER, SHARE = 6, 8  # stages after the first one, each with one in so many of the trials
CLOSER = 1.5  # times narrower than the ranges of the stage before
Settings: TypeAlias = dict[str, Any]


def points(
    name: str, number: int, knobs: Sequence[Knob], batches: Sequence[int], count: int
) -> list[Settings]:
    """Return the settings of a round of trials: the same ones for the same arguments.

    They are the first points of a scrambled Sobol sequence with a coordinate for each knob and one
    for the batch size. The optimizer's name and the round's number are the scrambling's seed.
    """
    seed = np.random.default_rng(zlib.crc32(f"{name}/{number}".encode()))
    sobol = qmc.Sobol(len(knobs) + 1, scramble=True, seed=seed)
    cube = sobol.random_base2(math.ceil(math.log2(count)))[:count]
    sizes = Knob(BATCH, choices=tuple(batches))
    return [
        {knob.name: _value(knob, float(u)) for knob, u in zip((*knobs, sizes), point, strict=True)}
        for point in cube
    ]


def stages(trials: int) -> list[int]:
    """Return how many trials each stage has."""
    later = [trials // SHARE] * LATER
    return [trials - sum(later), *later]


def closer(
    name: str,
    number: int,
    knobs: Sequence[Knob],
    batches: Sequence[int],
    count: int,
    best: Settings,
    stage: int,
) -> list[Settings]:
    """Return the settings of a later stage of a round: quasirandom points around the best so far.

    The ranges are narrower by the same factor for everybody, and may go beyond those of the first
    stage, though not beyond a natural limit. Half of the points keep the best one's choice.
    """
    sizes = Knob(BATCH, choices=tuple(batches))
    near = [_near(knob, best[knob.name], CLOSER**stage) for knob in (*knobs, sizes)]
    return points(f"{name}/{stage}", number, near[:-1], near[-1].choices, count)


def _near(knob: Knob, center: Any, factor: float) -> Knob:
    """Return a knob around its best value, with a range that is narrower by a factor."""
    if knob.choices:
        others = tuple(choice for choice in knob.choices if choice != center)
        return dataclasses.replace(knob, choices=(center,) * max(1, len(others)) + others)
    low, high = ends(knob)
    if knob.log:
        half = (high / low) ** (0.5 / factor)
        low, high = center / half, center * half
    else:
        half = (high - low) / 2 / factor
        low, high = center - half, center + half
    low = low if knob.least is None else max(low, knob.least)
    high = high if knob.most is None else min(high, knob.most)
    return dataclasses.replace(knob, low=low, high=high)


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

    It does if no trial of the round has a value beyond it, unless the range ends at a natural limit
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


def widened(knobs: Iterable[Knob], sides: Mapping[str, str]) -> tuple[Knob, ...]:
    """Return knobs with a decade more (half the width, if not in log scale) on the given sides."""
    return tuple(_wider(knob, sides.get(knob.name)) for knob in knobs)


def _wider(knob: Knob, side: str | None) -> Knob:
    if side is None:
        return knob
    low, high = ends(knob)
    if side == "low":
        low = low / 10 if knob.log else low - (high - low) / 2
        low = low if knob.least is None else max(low, knob.least)
    else:
        high = high * 10 if knob.log else high + (high - low) / 2
        high = high if knob.most is None else min(high, knob.most)
    return dataclasses.replace(
        knob, low=float(f"{low:.{DIGITS}g}"), high=float(f"{high:.{DIGITS}g}")
    )


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
