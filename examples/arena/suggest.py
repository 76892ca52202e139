"""The next settings of a tuning that goes on: where a model of the trials expects the most.

A Gaussian process is fitted to the scores, and asked for the point with the largest expected
improvement (Jones, Schonlau, Welch, J. Global Optim. 13, 1998), among points around the best and
all over the ranges. The ranges follow the best: if it lies at an edge, some points look beyond.
Scores above a quantile count as that: how bad a bad trial is says nothing of
the best.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import norm
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from arena.contract import Knob
from arena.space import DIGITS, Settings, ends

CANDIDATES = 2048  # near the best, and as many anywhere
REACH = 0.2  # largest standard deviation of a candidate around the best; a range is 1 wide
BEYOND = 0.1  # how far a candidate may lie outside of the range and of the best
PROBE = 0.02, 0.2  # how far beyond the best a knob is tried where it lies at an edge
QUANTILE = 0.6


def suggested(
    knobs: Sequence[Knob],
    tried: Sequence[tuple[Settings, float]],
    number: int,
    probed: tuple[str, str] | None = None,
) -> Settings:
    """Return settings to try next: the same ones for the same arguments.

    Args:
        knobs: with ranges, which are left by a tenth of them at a time, and natural limits.
        tried: settings and scores; low ones are good, infinite ones are failures.
        number: of the trial; seeds the candidates.
        probed: a knob, and the side, "low" or "high", to try beyond the best.
    """
    scores = np.array([score for _, score in tried])
    scores = np.minimum(scores, np.quantile(scores, QUANTILE, method="lower"))
    known = np.isfinite(scores)
    values = np.where(known, scores, scores[known].max() if known.any() else 0.0)
    values = (values - values.mean()) / (values.std() or 1.0)
    places = np.array([[_place(knob, one[knob.name]) for knob in knobs] for one, _ in tried])
    least, most = np.array([_limits(knob) for knob in knobs]).T
    center = places[values.argmin()]
    first = np.maximum(np.minimum(center, 0) - BEYOND, least)
    last = np.minimum(np.maximum(center, 1) + BEYOND, most)
    draw = np.random.default_rng(number)
    candidates = np.clip(_candidates(center, knobs, draw), first, last)
    if probed is not None:
        column = [knob.name for knob in knobs].index(probed[0])
        beyond = draw.uniform(*PROBE, size=len(candidates))
        so_far = places[:, column]
        beyond = so_far.max() + beyond if probed[1] == "high" else so_far.min() - beyond
        candidates[:, column] = np.clip(beyond, least[column], most[column])
    gains = _expected_improvement(places, values, candidates)
    best = candidates[gains.argmax()]
    return {knob.name: _value(knob, float(u)) for knob, u in zip(knobs, best, strict=True)}


def _candidates(center: np.ndarray, knobs: Sequence[Knob], draw: np.random.Generator) -> np.ndarray:
    """Return points at all distances from the center, then points anywhere; choices at random."""
    shape = CANDIDATES, len(knobs)
    spread = REACH * draw.uniform(size=(CANDIDATES, 1))
    around = center + spread * draw.standard_normal(shape)
    points = np.concatenate([around, draw.uniform(size=shape)])
    for column, knob in enumerate(knobs):
        if knob.choices:
            chosen = draw.integers(len(knob.choices), size=len(points))
            points[:, column] = chosen / max(1, len(knob.choices) - 1)
    return points


def _expected_improvement(
    places: np.ndarray, values: np.ndarray, candidates: np.ndarray
) -> np.ndarray:
    smooth = Matern([0.5] * places.shape[1], [(0.1, 5.0)] * places.shape[1], nu=2.5)
    kernel = ConstantKernel(1.0, (0.1, 30.0)) * smooth + WhiteKernel(1e-2, (1e-4, 1.0))
    process = GaussianProcessRegressor(kernel, n_restarts_optimizer=2, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a scale at its bound
        process.fit(places, values)
    means, deviations = process.predict(candidates, return_std=True)
    gains = values.min() - means
    return gains * norm.cdf(gains / deviations) + deviations * norm.pdf(gains / deviations)


def _place(knob: Knob, value: Any) -> float:
    """Return where in its range a value is: from 0 to 1."""
    if knob.choices:
        return knob.choices.index(value) / max(1, len(knob.choices) - 1)
    low, high = ends(knob)
    if knob.log:
        return math.log(value / low) / math.log(high / low)
    return (value - low) / (high - low)


def _limits(knob: Knob) -> tuple[float, float]:
    """Return where the natural limits are, and the choices."""
    if knob.choices:
        return 0.0, 1.0
    below = knob.least is None or (knob.log and knob.least <= 0)
    least = -math.inf if below else _place(knob, knob.least)
    return least, math.inf if knob.most is None else _place(knob, knob.most)


def _value(knob: Knob, u: float) -> Any:
    if knob.choices:
        return knob.choices[round(u * (len(knob.choices) - 1))]
    low, high = ends(knob)
    value = low * (high / low) ** u if knob.log else low + (high - low) * u
    return float(f"{value:.{DIGITS}g}")
