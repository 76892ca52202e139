"""How all figures look, and how they are written."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette, told apart by every kind of color vision.
COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def new_figure(
    panels: int, size: tuple[float, float], share: bool = True
) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels side by side."""
    figure = Figure(figsize=size, dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = list(np.atleast_1d(figure.subplots(1, panels, sharey=share)))
    for one in axes:
        one.grid(color="0.92")
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write a PNG that says by which command it is made."""
    figure.savefig(path, format="png", metadata={"Comment": "Made from logs: make pages"})
