"""Figures: what tuning brings, what the batch size does, the course of runs, less data."""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common.figures import COLORS, new_figure, save
from matplotlib.axes import Axes
from matplotlib.ticker import (
    LogLocator,
    MaxNLocator,
    NullFormatter,
    PercentFormatter,
    StrMethodFormatter,
)

from arena.record import Record
from arena.results import Row, by_batch, rows, task_of

STYLES = ("-", "--", ":")


def draw(record: Record, titles: dict[str, str], path: Path) -> None:
    """Draw the best after k trials, and the fewest steps by batch size, a line an optimizer."""
    found = rows(record)
    figure, (tuning, sizes) = new_figure(2, (9.5, 5.2))
    for row, look in zip(found, looks(), strict=False):
        _draw_tuning(tuning, row, look, titles.get(row.optimizer, row.optimizer))
        best = by_batch(record, row.optimizer)
        sizes.plot(list(best), list(best.values()), marker="o", **look)
    for axes, label in ((tuning, "trials"), (sizes, "batch size")):
        axes.set_yscale("log")
        axes.set_xlabel(label)
        plain_numbers(axes)
    tuning.xaxis.set_major_locator(MaxNLocator(integer=True))
    sizes.set_xscale("log")
    batches = found[0].task.batches if found else ()
    sizes.set_xticks(batches, [str(size) for size in batches])
    sizes.xaxis.set_minor_formatter(NullFormatter())
    tuning.set_ylabel("steps to the target, tuning seeds")
    figure.legend(loc="outside upper center", frameon=False, ncols=3, fontsize="small")
    save(figure, path)


def _draw_tuning(axes: Axes, row: Row, look: dict, label: str) -> None:
    counts = range(1, row.task.trials + 1)
    steps = [min(row.last.best_after(count), row.task.steps) for count in counts]
    axes.plot(counts, steps, drawstyle="steps-post", label=label, **look)


def draw_course(lines: Sequence[dict], titles: dict[str, str], path: Path) -> None:
    """Draw scores, norms and ranks along the runs: the median over seeds, a line an optimizer."""
    panels = {
        "score": "score on the test data",
        "norm": "norm of the matrices",
        "rank": "rank, (nuclear norm / norm)²",
    }
    figure, every = new_figure(len(panels), (12, 4.6), share=False)
    names = list(dict.fromkeys(line["optimizer"] for line in lines))
    for name, look in zip(names, looks(), strict=False):
        runs = [line for line in lines if line["optimizer"] == name]
        for axes, (measure, label) in zip(every, panels.items(), strict=True):
            median = np.nanmedian(np.array([run[measure] for run in runs], float), axis=0)
            known = titles.get(name, name) if measure == "score" else None
            axes.plot(np.arange(1, len(median) + 1), median, label=known, **look)
            axes.set_xlabel("steps")
            axes.set_ylabel(label)
            if measure != "score":
                axes.set_yscale("log")
                plain_numbers(axes)
    figure.legend(loc="outside upper center", frameon=False, ncols=3, fontsize="small")
    save(figure, path)


def draw_less(lines: Sequence[dict], titles: dict[str, str], budget: int, path: Path) -> None:
    """Draw the median steps to the target against the share of the data, misses at the budget."""
    figure, (axes,) = new_figure(1, (6.5, 4.6))
    names = list(dict.fromkeys(line["optimizer"] for line in lines))
    for name, look in zip(names, looks(), strict=False):
        steps: dict[float, list[int]] = {}
        for line in (line for line in lines if line["optimizer"] == name):
            steps.setdefault(line["fraction"], []).append(line["steps"] or budget)
        shares = sorted(steps)
        medians = [float(np.median(steps[share])) for share in shares]
        axes.plot(shares, medians, marker="o", label=titles.get(name, name), **look)
    axes.axhline(budget, color="0.6", linewidth=1, linestyle=":")
    axes.set_xlabel("share of the table to train on")
    axes.set_ylabel("steps to the target")
    axes.set_yscale("log")
    plain_numbers(axes)
    figure.legend(loc="outside upper center", frameon=False, ncols=3, fontsize="small")
    save(figure, path)


def draw_batches(records: Sequence[Record], titles: dict[str, str], path: Path) -> None:
    """Draw the median steps by the batch size that was tuned alone; misses are left out."""
    figure, (axes,) = new_figure(1, (7.5, 5.6))
    sizes = [task_of(record).batches[0] for record in records]
    found = [{row.optimizer: row for row in rows(record)} for record in records]
    for name, look in zip(found[-1], looks(), strict=False):
        every = [one[name] for one in found]
        medians = [math.nan if row.missed else row.median for row in every]
        axes.plot(sizes, medians, marker="o", label=titles.get(name, name), **look)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("batch size")
    axes.set_ylabel("steps to the target, median")
    plain_numbers(axes)
    figure.legend(loc="outside upper center", frameon=False, ncols=3, fontsize="small")
    save(figure, path)


def looks() -> Iterator[dict[str, Any]]:
    """Yield how lines look, one after the other."""
    for style, color in itertools.cycle(itertools.product(STYLES, COLORS)):
        yield {"color": color, "linestyle": style, "linewidth": 1.8, "markersize": 4}


def plain_numbers(axes: Axes) -> None:
    """Write the numbers of a logarithmic axis without exponents."""
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))


def draw_demo(lines: Sequence[dict], ends: Sequence[str], target: float, path: Path) -> None:
    """Draw train (thin, dashed) and test (solid) accuracy against steps, one color a run."""
    figure, (axes,) = new_figure(1, (8.0, 5.0))
    for color, line, end in zip(COLORS, lines, ends, strict=False):
        label = f"{line['title']}: {end} steps"
        axes.plot(
            line["steps"], line["train"], color=color, linewidth=0.9, linestyle="--", alpha=0.7
        )
        axes.plot(line["steps"], line["test"], color=color, linewidth=2.0, label=label)
    axes.axhline(target, color="0.6", linewidth=0.8, linestyle=":", label=f"target, {target:.0%}")
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("optimizer steps")
    axes.set_ylabel("accuracy (solid: test, dashed: train)")
    figure.legend(loc="outside upper left", frameon=False, ncols=2, fontsize="small")
    save(figure, path)
