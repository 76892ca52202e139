"""What the log of a network says: a table of errors and steps, and a figure."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from arena.figures import looks
from arena.record import Record
from common.figures import new_figure, save
from language.results import NONE, Row, rows, settings_table
from language.results import is_finished as is_finished
from matplotlib.ticker import PercentFormatter
from tabulate import tabulate

YARDSTICK = "adamw"
ERRORS = (0.1, 0.05)  # to count the steps to
CUT = 0.3  # larger errors are not drawn

__all__ = ["draw", "is_finished", "rows", "settings_table", "table"]


def table(record: Record, style: str = "simple") -> str:
    """Return test error at the end and steps to some errors, lowest error first.

    Steps are those of the first look at which the error is as low, the median over the seeds.
    """
    found = rows(record)
    yardstick = next((row.loss for row in found if row.name == YARDSTICK and row.runs), None)
    headings = ["optimizer", "seeds", "test error at the end (range)"]
    headings += [f"steps to {error:.0%}" for error in ERRORS] + ["steps to AdamW's error"]
    headings += ["a step, ms"]
    cells = [_cells(row, yardstick, record.header["task"]["steps"]) for row in found]
    return tabulate(cells, headings, tablefmt=style, disable_numparse=True)


def draw(records: Sequence[Record], path: Path) -> None:
    """Draw the bests' median error against steps, a panel a network."""
    figure, panels = new_figure(len(records), (9.5, 4.2))
    for axes, record in zip(panels, records, strict=True):
        # one look for each optimizer, whatever its place
        found = sorted((row for row in rows(record) if row.runs), key=lambda row: row.name)
        for row, look in zip(found, looks(), strict=False):
            courses = [run["course"] for run in row.runs]
            errors = np.median([course["validation"] for course in courses], axis=0)
            label = row.title if axes is panels[0] else None
            axes.plot(courses[0]["step"], errors, label=label, **look)
        axes.set_title(record.header["task"]["title"], fontsize="medium")
        axes.set_xlabel("steps")
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    panels[0].set_ylim(0.0, CUT)
    panels[0].set_ylabel("test error, median over the seeds")
    figure.legend(loc="outside upper center", frameon=False, ncols=4, fontsize="small")
    save(figure, path)


def percent(value: float) -> str:
    return f"{100 * value:.1f} %" if math.isfinite(value) else "not finite"


def _cells(row: Row, yardstick: float | None, cap: int) -> list[object]:
    if not row.runs:
        return [row.title, 0, f"({percent(row.loss)} tuning)", *[NONE] * (len(ERRORS) + 2)]
    told = f"{percent(row.loss)} ({percent(min(row.losses))} to {percent(max(row.losses))})"
    targets = [*ERRORS, yardstick]
    steps = [NONE if target is None else _steps(row.steps_to(target), cap) for target in targets]
    step = NONE if row.step_seconds is None else f"{1000 * row.step_seconds:.3g}"
    return [row.title, len(row.runs), told, *steps, step]


def _steps(value: float, cap: int) -> str:
    return f"{value:g}" if math.isfinite(value) else f"> {cap}"
