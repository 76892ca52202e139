"""The figure of a task: what tuning brings, and what the batch size does."""

import itertools
from pathlib import Path
from typing import Any

from grokking.figures import COLORS, new_figure, save
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

from arena.record import Record
from arena.results import Row, by_batch, rows

STYLES = ("-", "--", ":")


def draw(record: Record, titles: dict[str, str], path: Path) -> None:
    """Draw the best after k trials, and the fewest steps by batch size, a line an optimizer."""
    found = rows(record)
    figure, (tuning, sizes) = new_figure(2, (9.5, 5.2))
    looks = itertools.cycle(itertools.product(STYLES, COLORS))
    for row, (style, color) in zip(found, looks, strict=False):
        look: dict[str, Any] = {
            "color": color,
            "linestyle": style,
            "linewidth": 1.8,
            "markersize": 4,
        }
        _draw_tuning(tuning, row, look, titles.get(row.optimizer, row.optimizer))
        best = by_batch(record, row.optimizer)
        inside = {size: steps for size, steps in best.items() if steps < row.task.steps}
        sizes.plot(list(inside), list(inside.values()), marker="o", **look)
    for axes, label in ((tuning, "trials"), (sizes, "batch size")):
        axes.set_yscale("log")
        axes.set_xlabel(label)
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter(StrMethodFormatter("{x:g}"))
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
