"""Loss against steps and against seconds."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from arena.figures import looks
from common.figures import new_figure, save

CUT = 0.6  # nats above the least loss are not drawn


class Curve(NamedTuple):
    """The course of a run, or the median of several."""

    label: str
    steps: Sequence[int]
    seconds: Sequence[float]
    validation: Sequence[float]
    train: Sequence[float] = ()


def draw(curves: Sequence[Curve], path: Path, zoom: bool = False) -> None:
    """Draw validation loss (solid) and training loss (thin, dashed), where there is one.

    Args:
        curves: one color each.
        path: PNG to write, replacing what is there.
        zoom: leave out the losses far above the least one.
    """
    figure, panels = new_figure(2, (9.5, 4.6))
    losses = [loss for curve in curves for loss in curve.validation if math.isfinite(loss)]
    most = min(losses, default=math.inf) + CUT
    for curve, look in zip(curves, looks(), strict=False):
        for axes, places in zip(panels, (curve.steps, curve.seconds), strict=True):
            inside = any(loss <= most for loss in curve.validation)
            shown = axes is panels[0] and (inside or not zoom)
            label = curve.label if shown else None
            axes.plot(places, curve.validation, label=label, **look)
            if curve.train:
                thin = {**look, "linestyle": "--", "linewidth": 0.9}
                axes.plot(places, curve.train, label=label and f"{label}, training", **thin)
    if zoom and losses:
        panels[0].set_ylim(most - 1.05 * CUT, most)
    for axes, label in zip(panels, ("steps", "seconds of training"), strict=True):
        axes.set_xlabel(label)
    panels[0].set_ylabel("validation loss, nats a byte")
    figure.legend(loc="outside upper center", frameon=False, ncols=3, fontsize="small")
    save(figure, path)
