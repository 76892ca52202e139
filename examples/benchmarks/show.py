"""Measurements of polar factors as a table on the terminal and as a figure."""

from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table

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
