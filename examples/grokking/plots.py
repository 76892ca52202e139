"""The grokking figure, drawn from logs."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter, PercentFormatter, StrMethodFormatter

from grokking.record import Log, LogError, check_writable
from grokking.train import first_at_target

# Okabe and Ito's palette, told apart by every kind of colour vision.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def plot_runs(logs: Sequence[Log], path: Path) -> None:
    """Draw train (thin, dashed) and test (solid) accuracy against epochs, one color a run.

    The figure is a PNG.

    Args:
        logs: at least one, as `read_log` returns them; the legend has their labels in this order.
        path: file to write, replacing what is there.

    Raises:
        LogError: no log has an epoch to draw.
        OSError: `path` does not end in .png, or cannot be written.
    """
    if not any(log.epochs for log in logs):
        raise LogError(
            f"a figure needs at least one log with an epoch in it, got {len(logs)} without"
        )
    check_figure(path)
    figure = Figure(figsize=(8.0, 5.0), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for index, log in enumerate(logs):
        _draw_run(axes, log, COLORS[index % len(COLORS)])
    for target in sorted({log.config.target for log in logs if log.config.target is not None}):
        axes.axhline(
            target, color="0.6", linewidth=0.8, linestyle=":", label=f"target, {target:.0%}"
        )
    _dress(axes)
    figure.savefig(path, format="png")


def check_figure(path: Path) -> None:
    """Raise OSError now if `path` will not do for a figure; so a log cannot be drawn over."""
    if path.suffix.lower() != ".png":
        raise OSError(f"a figure's name must end in .png, got {path}; change its ending")
    check_writable(path)


def _draw_run(axes: Axes, log: Log, color: str) -> None:
    numbers = [epoch.epoch for epoch in log.epochs]
    reached = first_at_target(log.epochs, log.config.target)
    outcome = (
        f"not in {max(numbers, default=0)} epochs" if reached is None else f"epoch {reached.epoch}"
    )
    train = [epoch.train_accuracy for epoch in log.epochs]
    test = [epoch.test_accuracy for epoch in log.epochs]
    axes.plot(numbers, train, color=color, linewidth=0.9, linestyle="--", alpha=0.7)
    axes.plot(numbers, test, color=color, linewidth=2.0, label=f"{log.label}: {outcome}")


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
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.figure.legend(loc="outside upper left", frameon=False, ncols=2, fontsize="small")
