"""Logs of measurements, and how they are shown: a table on the console, a figure."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from common.environment import environment
from common.files import free_file
from matplotlib.figure import Figure
from rich.table import Table


def begin(config: Any) -> tuple[Path, list[dict]]:
    """Return a free path for the log of a dataclass with `out`, and the log's first line."""
    out = free_file(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.touch()  # fails now rather than after the measurements
    recipe = {**dataclasses.asdict(config), "out": str(out)}
    return out, [{"kind": "recipe", "config": recipe, **environment()}]


def write(out: Path, lines: list[dict]) -> None:
    """Write the lines that there are."""
    out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read(path: Path) -> tuple[dict, list[dict]]:
    """Return the recipe and the measurements of a log."""
    recipe, *measurements = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return recipe, measurements


MARKERS = "osD^vPX"


def table(records: list[dict]) -> Table:
    """Return the measurements of one shape as a table."""
    columns = ("ms", "quartiles", "products", "paused, ms", "compile, s", "gain error")
    result = Table(title=records[0]["shape"], box=None)
    result.add_column("method", no_wrap=True)
    for column in columns:
        result.add_column(column)
    for record in records:
        error = record["worst_gain_error"]
        result.add_row(
            record["method"],
            f"{1000 * record['seconds']:.3g}",
            " to ".join(f"{1000 * quartile:.3g}" for quartile in record["quartiles"]),
            f"{record['products']:.1f}",
            f"{1000 * record['seconds_after_pause']:.3g}",
            f"{record['compile_seconds']:.1f}",
            "" if error is None else f"{error:.0e}",
        )
    result.caption = "bound: 2 products, Gram matrix and a function of it"
    return result


def draw(records: list[dict], path: Path) -> None:
    """Draw error against time, one panel a shape."""
    shapes = list(dict.fromkeys(record["shape"] for record in records))
    figure = Figure(figsize=(max(8, 4 * len(shapes)), 4), layout="constrained")
    panels = figure.subplots(1, len(shapes), squeeze=False, sharey=True)[0]
    names = list(dict.fromkeys(r["method"] for r in records if r["method"] != "product"))
    for axes, shape in zip(panels, shapes, strict=True):
        axes.axvspan(0.5, 2, color="0.9", label="below the bound")
        for index, name in enumerate(names):
            points = [r for r in records if (r["shape"], r["method"]) == (shape, name)]
            for point in points:
                marker = MARKERS[index % len(MARKERS)]
                error = max(point["worst_gain_error"], 1e-8)
                axes.plot(point["products"], error, marker, color=f"C{index % 10}", label=name)
        axes.set(title=shape, xscale="log", yscale="log", xlabel="time, in products")
    panels[0].set_ylabel("worst gain error")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small")
    figure.savefig(path, dpi=120)
