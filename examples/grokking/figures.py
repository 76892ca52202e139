"""The figures of the pages, drawn from logs."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from common.figures import COLORS, new_figure, save
from common.files import check_writable
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from grokking.log import LogError, Run
from grokking.outcomes import Outcome, outcomes
from grokking.training import first_at_target


def check_figure(path: Path) -> None:
    """Raise OSError now if `path` will not do for a figure; so a log cannot be drawn over."""
    if path.suffix.lower() != ".png":
        raise OSError(f"a figure's name must end in .png, got {path}; change its ending")
    check_writable(path)


def draw_runs(runs: Sequence[Run], path: Path) -> None:
    """Draw train (thin, dashed) and test (solid) accuracy against epochs, one color a run.

    Args:
        runs: at least one; the legend has their labels in this order.
        path: PNG to write, replacing what is there.

    Raises:
        LogError: no run has an epoch to draw.
        OSError: `path` does not end in .png, or cannot be written.
    """
    if not any(run.epochs for run in runs):
        raise LogError(
            f"a figure needs at least one run with an epoch in it, got {len(runs)} without"
        )
    check_figure(path)
    figure, (axes,) = new_figure(1, (8.0, 5.0))
    for color, run in zip(itertools.cycle(COLORS), runs):
        numbers = [epoch.epoch for epoch in run.epochs]
        train = [epoch.train_accuracy for epoch in run.epochs]
        test = [epoch.test_accuracy for epoch in run.epochs]
        axes.plot(numbers, train, color=color, linewidth=0.9, linestyle="--", alpha=0.7)
        axes.plot(numbers, test, color=color, linewidth=2.0, label=f"{run.label}: {_end(run)}")
    for target in sorted({run.config.target for run in runs if run.config.target is not None}):
        label = f"target, {target:.0%}"
        axes.axhline(target, color="0.6", linewidth=0.8, linestyle=":", label=label)
    _dress(axes)
    figure.legend(loc="outside upper left", frameon=False, ncols=2, fontsize="small")
    save(figure, path)


def _end(run: Run) -> str:
    reached = first_at_target(run.epochs, run.config.target)
    last = run.epochs[-1].epoch if run.epochs else 0
    return f"not in {last} epochs" if reached is None else f"epoch {reached.epoch}"


def _dress(axes: Axes) -> None:
    if axes.dataLim.xmax > 20:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("epoch")
    axes.set_ylabel("accuracy (solid: test, dashed: train)")


def accuracy(path: Path, name: str, *rows: str) -> None:
    """Draw train and test accuracy of the first seeds of some rows."""
    found = outcomes(name)
    draw_runs([found[row].runs[0] for row in rows if found[row].runs], path)


def published(path: Path, name: str) -> None:
    """Draw our median and range and the paper's figure, row by row, on a logarithmic axis."""
    found = [outcome for outcome in outcomes(name).values() if outcome.runs]
    figure, (axes,) = new_figure(1, (8.0, 0.27 * len(found) + 1.2))
    for place, outcome in enumerate(found):
        _draw_row(axes, place, outcome)
    axes.plot([], [], "o", color=COLORS[1], label="ours, median and range")
    axes.plot([], [], ">", color=COLORS[1], fillstyle="none", label="ours, not reached")
    axes.plot([], [], "|", color=COLORS[2], markersize=10, label="paper")
    axes.set_yticks(range(len(found)), [outcome.row.label for outcome in found])
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(f"{found[0].experiment.unit} to 95 % test accuracy" if found else "")
    figure.legend(loc="outside upper center", frameon=False, ncols=3, fontsize="small")
    save(figure, path)


def _draw_row(axes: Axes, place: int, outcome: Outcome) -> None:
    reached = [value if math.isfinite(value) else outcome.cap for value in outcome.reached]
    axes.plot([min(reached), max(reached)], [place, place], color=COLORS[1], linewidth=2)
    median = min(outcome.median, outcome.cap)
    marker, fill = ("o", COLORS[1]) if math.isfinite(outcome.median) else (">", "none")
    axes.plot([median], [place], color=COLORS[1], marker=marker, mfc=fill)
    if outcome.published:
        axes.plot([outcome.published], [place], "|", color=COLORS[2], markersize=12, mew=2.5)


def cost(path: Path) -> None:
    """Draw the time of an epoch against the number of epochs on addition modulo 97."""
    figure, (axes,) = new_figure(1, (7.0, 4.5))
    table, own = outcomes("T2"), outcomes("methods")
    methods = ("sgd", "egd_svd", "egd_rsvd128", "egd_rsvd64", "column_norm")
    found = [table[f"p97-{name}"] for name in methods]
    found += [own[name] for name in own if name != "svd"]
    for one in found:
        if not one.runs or math.isnan(one.epoch_ms):
            continue
        axes.plot([one.median], [one.epoch_ms], "o", color=COLORS[1])
        label, place = one.row.label.removeprefix("p=97, "), (one.median, one.epoch_ms)
        axes.annotate(label, place, (5, 3), textcoords="offset points", fontsize="x-small")
    epochs = np.array([50.0, 1e4])
    for total in (5, 10, 20, 50, 100):
        axes.plot(epochs, 1e3 * total / epochs, ":", color="0.7", linewidth=0.8, zorder=0)
        axes.annotate(f"{total} s", (1e3 * total / 16, 16), fontsize="x-small", color="0.4")
    axes.set(xscale="log", yscale="log", xlim=(50, 2e4), ylim=(15, 250))
    axes.set_xlabel("epochs to 95 % test accuracy, median")
    axes.set_ylabel("ms of training per epoch")
    save(figure, path)


def _draw_spectra(axes: Axes, run: Run) -> None:
    """Draw singular values of the first matrix's gradient, with and without the decay term."""
    chosen = np.unique(np.linspace(0, len(run.spectra) - 1, 5).round().astype(int))
    for color, index in zip(COLORS, chosen, strict=False):
        spectrum = run.spectra[index]
        ranks = range(1, len(spectrum.decayed) + 1)
        axes.semilogy(ranks, spectrum.decayed, color=color, label=f"epoch {spectrum.epoch}")
        axes.semilogy(ranks, spectrum.gradient, color=color, linestyle=":", linewidth=1)
    axes.plot([], [], ":", color="0.4", label="without the decay term")
    axes.set_ylim(1e-11, 1e-1)
    axes.set_xlabel("index")


def _draw_condition(axes: Axes, run: Run) -> None:
    """Draw the condition number over the range: one direction has no gradient ever."""
    epochs = [max(spectrum.epoch, 0.5) for spectrum in run.spectra]
    for kind, style, label in (
        ("decayed", "-", "with the decay term"),
        ("gradient", ":", "without it"),
    ):
        values = [getattr(spectrum, kind) for spectrum in run.spectra]
        ratios = [value[0] / value[-2] for value in values]
        axes.loglog(epochs, ratios, style, color=COLORS[1], marker="o", markersize=3, label=label)
    axes.set_ylim(1.0, 1e4)
    axes.set_xlabel("epoch (the start at 0.5)")


def _draw_progress(axes: Axes, run: Run) -> None:
    """Draw how far the weights went along the singular directions of the first gradient."""
    epochs = [max(spectrum.epoch, 0.5) for spectrum in run.spectra[1:]]
    last = len(run.spectra[0].progress) - 1
    for color, index in zip(COLORS, (0, 9, 49, 99, 149, last), strict=False):
        moved = [abs(spectrum.progress[index]) for spectrum in run.spectra[1:]]
        axes.loglog(epochs, np.maximum(moved, 1e-6), color=color, label=f"direction {index + 1}")
    axes.set_ylim(1e-5, 1e2)
    axes.set_xlabel("epoch")


def _panels(path: Path, draw: Callable[[Axes, Run], None], label: str) -> None:
    found = [outcome for outcome in outcomes("spectra").values() if outcome.runs]
    figure, panels = new_figure(max(1, len(found)), (10.0, 4.0))
    for axes, outcome in zip(panels, found, strict=False):
        draw(axes, outcome.runs[0])
        axes.set_title(outcome.row.label, fontsize="medium")
        axes.legend(frameon=False, fontsize="x-small")
    panels[0].set_ylabel(label)
    save(figure, path)


FIGURES: dict[str, Callable[..., None]] = {
    "accuracy": accuracy,
    "published": published,
    "cost": cost,
    "spectra": functools.partial(
        _panels, draw=_draw_spectra, label="singular value of the gradient"
    ),
    "condition": functools.partial(
        _panels, draw=_draw_condition, label="largest / second smallest singular value"
    ),
    "progress": functools.partial(
        _panels, draw=_draw_progress, label="progress along the direction"
    ),
}
