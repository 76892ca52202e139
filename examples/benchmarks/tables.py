"""Write docs/benchmarks.md and its figure from the committed logs."""

import json
from pathlib import Path

from polar import draw

LOGS = Path(__file__).parent / "logs"
DOCS = Path(__file__).parents[2] / "docs"


def read(name: str) -> tuple[dict, list[dict]]:
    """Return the recipe and the measurements of a log."""
    recipe, *measurements = map(json.loads, (LOGS / name).read_text().splitlines())
    return recipe, measurements


def table(measurements: list[dict]) -> str:
    """Return a table with a row a method and a column a shape: ms, products, against the SVD."""
    shapes = list(dict.fromkeys(m["shape"] for m in measurements))
    methods = list(dict.fromkeys(m["method"] for m in measurements))
    cell = {(m["method"], m["shape"]): m for m in measurements}
    lines = ["| method | " + " | ".join(shapes) + " |", "|---" * (len(shapes) + 1) + "|"]
    for method in methods:
        row = []
        for shape in shapes:
            found = cell.get((method, shape))
            svd = cell.get(("peer: jnp.linalg.svd", shape)) or cell[("SVD", shape)]
            row.append(
                f"{1000 * found['seconds']:.2f} ms, {found['products']:.1f} p, "
                f"{svd['seconds'] / found['seconds']:.2f}x"
                if found
                else ""
            )
        lines.append(f"| {method} | " + " | ".join(row) + " |")
    return "\n".join(lines)


def errors(measurements: list[dict]) -> str:
    """Return a table of compile seconds and worst gain errors."""
    lines = ["| method | compile, s | worst gain error |", "|---|---|---|"]
    for method in dict.fromkeys(m["method"] for m in measurements):
        found = [m for m in measurements if m["method"] == method]
        worst = [m["worst_gain_error"] for m in found if m["worst_gain_error"] is not None]
        seconds = max(m["compile_seconds"] for m in found)
        lines.append(f"| {method} | {seconds:.1f} | {max(worst):.0e} |" if worst else "")
    return "\n".join(line for line in lines if line)


def machine(recipe: dict) -> str:
    """Return versions and hardware as a sentence."""
    hardware, versions = recipe["hardware"], recipe["versions"]
    return (
        f"{hardware['platform']} ({hardware['machine']}, {hardware['cpu_count']} cores), "
        f"jax {versions['jax']}, {recipe['started'][:10]}"
    )


def main() -> None:
    """Write the page."""
    recipe, large = read("cpu.jsonl")
    _, small = read("cpu-small.jsonl")
    _, (monitor,) = read("monitor.jsonl")
    draw(large, DOCS / "figures" / "benchmark-cpu.png")
    config = recipe["config"]
    text = f"""# Benchmarks

Made by `python examples/benchmarks/tables.py` from the logs in `examples/benchmarks/logs`; `make
bench` makes new ones. {machine(recipe)}. Float32, log-spaced singular values to
1/{config["condition"]:g}; medians of {config["rounds"]} rounds, all methods in turn in one process.
Each cell: time, time in matrix products (p; 2 p is the bound for methods that form a Gram matrix
and apply a function of it), and how many times faster than U Vᵀ through `jnp.linalg.svd`.

{table(large)}

![Worst gain error against time in products for every method, one panel a shape: the exact methods
lie at the bottom, the polynomial and sketched ones at the top](figures/benchmark-cpu.png)

Longest compilation and worst gain error over these shapes; for sketches over their leading
directions, on the same spectrum with all that follows the 64th singular value divided by 100
(without a gap the last of the leading directions are shared with the tail). Few polynomial steps
leave small directions small by design.

{errors(large)}

torch's iteration runs in bfloat16, which this machine multiplies faster than float32: there we
lose. `Gram` misses its aim, twice the SVD's speed, on 194x512 and 254x512.

## Small matrices: where `Auto` changes over

{table(small)}

## The monitor

`spectrum_monitor` every ten updates on addition modulo 97: {monitor["monitored_ms"]:.1f} ms an
epoch against {monitor["plain_ms"]:.1f} without, {monitor["overhead"]:.1%} more
(`python examples/benchmarks/monitor.py`).
"""
    (DOCS / "benchmarks.md").write_text(text)


if __name__ == "__main__":
    main()
