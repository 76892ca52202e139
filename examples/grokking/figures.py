"""The figures of the pages, each drawn from logs into one file."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from grokking.experiments import LOGS
from grokking.plots import COLORS, plot_runs
from grokking.record import Log
from grokking.results import Outcome, outcomes
from grokking.spectra import Spectrum
from grokking.toy_figure import plot_toy

Panel = Callable[[Axes, Log], None]


def toy(path: Path) -> None:
    """Draw theory and simulation of the toy problem on top of each other."""
    plot_toy(LOGS / "toy" / "toy.jsonl", path)


def accuracy(path: Path, name: str, *rows: str) -> None:
    """Draw train and test accuracy of the first seeds of some rows."""
    found = outcomes(name)
    if logs := [found[row].logs[0] for row in rows if found[row].logs]:
        plot_runs(logs, path)


def published(path: Path, name: str) -> None:
    """Draw our median and range and the paper's figure, row by row, on a logarithmic axis."""
    found = [outcome for outcome in outcomes(name).values() if outcome.logs]
    figure, (axes,) = _figure(1, (8.0, 0.27 * len(found) + 1.2))
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
    figure.savefig(path)


def _draw_row(axes: Axes, place: int, outcome: Outcome) -> None:
    reached = [value if math.isfinite(value) else outcome.cap for value in outcome.reached]
    axes.plot([min(reached), max(reached)], [place, place], color=COLORS[1], linewidth=2)
    median = min(outcome.median, outcome.cap)
    style = {"marker": "o"} if math.isfinite(outcome.median) else {"marker": ">", "mfc": "none"}
    axes.plot([median], [place], color=COLORS[1], **style)
    if outcome.published:
        axes.plot([outcome.published], [place], "|", color=COLORS[2], markersize=12, mew=2.5)


def cost(path: Path) -> None:
    """Draw what an epoch costs against how many it takes on addition modulo 97."""
    figure, (axes,) = _figure(1, (7.0, 4.5))
    table, own = outcomes("T2"), outcomes("methods")
    found = [table[f"p97-{name}"] for name in ("sgd", "egd_svd", "egd_rsvd128", "egd_rsvd64")]
    found += [table["p97-column_norm"], *(own[name] for name in own if name != "svd")]
    shown = [one for one in found if one.logs and math.isfinite(one.pace)]
    for one in shown:
        axes.plot([one.median], [one.pace], "o", color=COLORS[1])
        label = one.row.label.removeprefix("p=97, ")
        axes.annotate(label, (one.median, one.pace), xytext=(5, 3), textcoords="offset points",
                      fontsize="x-small")  # fmt: skip
    epochs = np.array([50.0, 1e4])
    for total in (5, 10, 20, 50, 100):
        axes.plot(epochs, 1e3 * total / epochs, ":", color="0.7", linewidth=0.8, zorder=0)
        axes.annotate(f"{total} s", (1e3 * total / 16, 16), fontsize="x-small", color="0.4")
    axes.set(xscale="log", yscale="log", xlim=(50, 2e4), ylim=(15, 250))
    axes.set_xlabel("epochs to 95 % test accuracy, median")
    axes.set_ylabel("ms of training per epoch")
    figure.savefig(path)


def spectra(path: Path) -> None:
    """Draw the singular values of the first matrix's gradient, with and without the decay term."""
    _panels(path, _draw_spectra, "singular value of the gradient")


def condition(path: Path) -> None:
    """Draw how the condition number, with and without the decay term, changes over the epochs.

    Over the range: both one-hots of an input sum to 1, so one direction has no gradient ever.
    """
    _panels(path, _draw_condition, "largest / second smallest singular value")


def progress(path: Path) -> None:
    """Draw how far the weights went along the singular directions of the first gradient."""
    _panels(path, _draw_progress, "progress along the direction")


def _panels(path: Path, draw: Panel, label: str) -> None:
    found = [outcome for outcome in outcomes("spectra").values() if outcome.logs]
    figure, panels = _figure(max(1, len(found)), (10.0, 4.0))
    for axes, outcome in zip(panels, found, strict=False):
        draw(axes, outcome.logs[0])
        axes.set_title(outcome.row.label, fontsize="medium")
        axes.legend(frameon=False, fontsize="x-small")
    panels[0].set_ylabel(label)
    figure.savefig(path)


def _draw_spectra(axes: Axes, log: Log) -> None:
    chosen = _some(log.spectra, 5)
    for color, spectrum in zip(itertools.cycle(COLORS), chosen):
        ranks = range(1, len(spectrum.decayed) + 1)
        axes.semilogy(ranks, spectrum.decayed, color=color, label=f"epoch {spectrum.epoch}")
        axes.semilogy(ranks, spectrum.gradient, color=color, linestyle=":", linewidth=1)
    axes.plot([], [], ":", color="0.4", label="without the decay term")
    axes.set_ylim(1e-11, 1e-1)
    axes.set_xlabel("index")


def _draw_condition(axes: Axes, log: Log) -> None:
    epochs = [max(spectrum.epoch, 0.5) for spectrum in log.spectra]
    for kind, style in (("decayed", "-"), ("gradient", ":")):
        values = [getattr(spectrum, kind) for spectrum in log.spectra]
        label = "with the decay term" if kind == "decayed" else "without it"
        ratios = [value[0] / value[-2] for value in values]
        axes.loglog(epochs, ratios, style, color=COLORS[1], marker="o", markersize=3, label=label)
    axes.set_ylim(1.0, 1e4)
    axes.set_xlabel("epoch (the start at 0.5)")


def _draw_progress(axes: Axes, log: Log) -> None:
    epochs = [max(spectrum.epoch, 0.5) for spectrum in log.spectra[1:]]
    count = len(log.spectra[0].progress)
    for color, index in zip(COLORS, (0, 9, 49, 99, 149, count - 1), strict=False):
        moved = [abs(spectrum.progress[index]) for spectrum in log.spectra[1:]]
        axes.loglog(epochs, np.maximum(moved, 1e-6), color=color, label=f"direction {index + 1}")
    axes.set_ylim(1e-5, 1e2)
    axes.set_xlabel("epoch")


def _some(spectra: tuple[Spectrum, ...], count: int) -> list[Spectrum]:
    """Return at most `count` of them, evenly spaced, the first and the last among them."""
    chosen = np.unique(np.linspace(0, len(spectra) - 1, count).round().astype(int))
    return [spectra[index] for index in chosen]


def _figure(panels: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(1, panels, sharey=True)))
    for one in axes:
        one.grid(color="0.92")
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes
