"""Write docs/scale.md, and the table of docs/guides/distributed.md, from the committed logs."""

import fractions
import re
import statistics
import sys
from pathlib import Path

import tyro
from common.pages import markdown, templates

from benchmarks import records, scale_paper
from benchmarks.scale_models import shapes
from benchmarks.tables import DOCS, HERE, LOGS, distinct, machine, muon_share, read

PAGE, GUIDE = DOCS / "scale.md", DOCS / "guides" / "distributed.md"
LOG, ACCELERATOR = "scale.jsonl", "scale-gpu.jsonl"
GUIDE_TABLE = re.compile(r"^\| layout of the leaves.*?\n(?=\n)", re.M | re.S)
STACK = "24x256x1024"
MEBIBYTE = 2**20


def of_kind(kind: str, log: str = LOG) -> list[dict]:
    """Return the measurements of one kind."""
    return [m for m in read(log)[1] if m["kind"] == kind]


def runs(model: str) -> list[dict[str, dict]]:
    """Return what each process measured of a model, from the least part of Muon's step on."""
    found: dict[str, list[dict]] = {}
    for m in of_kind("model"):
        if m["run"] and m["model"] == model:
            found.setdefault(m["row"], []).append(m)
    each = [dict(zip(found, rows, strict=True)) for rows in zip(*found.values(), strict=True)]
    return sorted(each, key=lambda rows: part(rows, "egd, three steps"))


def part(rows: dict[str, dict], row: str) -> float:
    """Return a row's part of the time of Muon's step, in the same process."""
    return rows[row]["seconds"] / rows["peer: optax muon"]["seconds"]


def parts(model: str, row: str) -> list[float]:
    """Return a row's part of Muon's step in each process, from the least on."""
    return sorted(part(rows, row) for rows in runs(model))


def ran() -> dict[tuple[str, str], dict]:
    """Return what was measured of each model and optimizer that ran.

    Where several processes ran a model, its rows are those of the median one, of an even number the
    slower of the middle two; tracing and compilation are medians of all.
    """
    found = {}
    for model in distinct([m for m in of_kind("model") if m["run"]], "model"):
        several = runs(model)
        for row, one in several[len(several) // 2].items():
            ready = {
                key: statistics.median(rows[row][key] for rows in several)
                for key in ("trace_seconds", "compile_seconds")
            }
            found[model, row] = one | ready
    return found


def rates(model: str) -> str:
    """Return the least and the largest rate of products of a model's processes, in GFLOP/s."""
    found = [rows["peer: optax muon"]["product_rate"] / 1e9 for rows in runs(model)]
    return f"{min(found):.0f} to {max(found):.0f}"


def deeper(row: str) -> str:
    """Return how many times as long 48 layers take to trace and compile as 12, in turn."""
    found = {m["model"]: m["ready_seconds"] for m in of_kind("depth") if m["row"] == row}
    few, many = (statistics.median(found[model]) for model in ("12x256", "48x256"))
    return f"{many / few:.2f}"


def processes() -> str:
    """Return a table of parts of Muon's step, from the fastest process to the slowest."""
    names = ["egd, five steps", "egd, three steps", "egd, exact"]
    cells = []
    for model in distinct(list(ran().values()), "model"):
        found = [parts(model, name) for name in names]
        if len(found[0]) > 1:
            each = (
                f"{one[0]:.2f} to {one[-1]:.2f}, median {statistics.median(one):.2f}"
                for one in found
            )
            cells.append([model, str(len(found[0])), *each])
    return markdown(["model", "processes", *(f"{name} / Muon" for name in names)], cells)


def number(value: float | None, scale: float = 1.0) -> str:
    """Return a measured number with three digits, a dash where there is none."""
    return "-" if value is None else f"{float(f'{value * scale:.3g}'):,.10g}"


def steps() -> str:
    """Return a table with a row for each model that was run and each optimizer."""
    rows = [
        [
            m["model"],
            m["row"],
            number(m["trace_seconds"]),
            number(m["compile_seconds"]),
            number(m["seconds"], 1000),
            f"{m['products']:.1f}",
            number(m["temporary"], 1 / MEBIBYTE),
            str(m["calls"]),
        ]
        for m in ran().values()
    ]
    headings = ["model", "optimizer", "trace, s", "compile, s", "step, ms", "products"]
    return markdown([*headings, "temporary, MiB", "calls"], rows)


def compilations() -> str:
    """Return how often each model was compiled in a process."""
    found: dict[str, set[int]] = {}
    for m in of_kind("model"):
        if m["run"]:
            found.setdefault(m["model"], set()).add(m.get("compilations", 1))
    each = ((model, *sorted({min(counts), max(counts)})) for model, counts in found.items())
    return ", ".join(f"{model} {' to '.join(map(str, counts))}" for model, *counts in each)


def ready(model: str, row: str) -> str:
    """Return a row's part of the time that Muon takes to trace and compile."""
    seconds = (
        sum(ran()[model, one][f"{key}_seconds"] for key in ("trace", "compile"))
        for one in (row, "peer: optax muon")
    )
    own, muon = seconds
    return f"{own / muon:.2f}"


def depth() -> str:
    """Return a table of one width's models: seconds to trace and compile, and of a step."""
    rows = ["AdamW", "peer: optax muon", "egd, five steps", "egd, three steps", "egd, exact"]
    found = {key: r for key, r in ran().items() if r["model"].endswith("x256")}
    cells = []
    for model in dict.fromkeys(model for model, _ in found):
        ready, step = (
            [sum(found[model, row][f"{key}seconds"] for key in keys) for row in rows]
            for keys in (("trace_", "compile_"), ("",))
        )
        cells.append([model])
        for seconds in (ready, step):
            _, muon, *ours = seconds
            cells[-1] += [*map(number, seconds), *(f"{one / muon:.2f}" for one in ours)]
    names = ["AdamW", "Muon", "five steps", "three steps", "exact"]
    headings = ["model"]
    for measured in ("ready", "step"):
        headings += [f"{name} {measured}, s" for name in names]
        headings += [f"{name} / Muon" for name in names[2:]]
    return markdown(headings, cells)


def bounds() -> str:
    """Return a table of the bound, two products a matrix, and how many times it the steps take."""
    found = ran()
    rows = []
    for model in dict.fromkeys(model for model, _ in found):
        names = [name for one, name in found if one == model and name != "AdamW"]
        one = found[model, names[0]]
        times = [f"{found[model, name]['products'] / 2:.1f}" for name in names]
        rate, bound = number(one["product_rate"], 1e-9), number(one["product_seconds"], 2000)
        rows.append([model, number(one["parameters"], 1e-6), rate, bound, *times])
    headings = ["model", "parameters, M", "product rate, GFLOP/s", "bound, ms"]
    return markdown([*headings, *names], rows)


def compiled() -> str:
    """Return a table of the models that were compiled and not run."""
    rows = [
        [
            m["model"],
            str(m["leaves"]),
            m["row"],
            number(m["trace_seconds"]),
            "the compiler crashed"
            if "failed" in m
            else f"ended after {m['stopped_after']:.0f} s"
            if "stopped_after" in m
            else number(m["compile_seconds"]),
            number(m["temporary"], 2.0**-30),
        ]
        for m in of_kind("model")
        if not m["run"]
    ]
    headings = ["model", "leaves", "optimizer", "trace, s", "compile, s", "temporary, GiB"]
    return markdown(headings, rows)


def by_case(stack: str) -> dict[tuple[str, str, int], dict]:
    """Return the records of a stack by layout, row and devices."""
    found = [m for m in of_kind("devices") if m["stack"] == stack]
    return {(m["layout"], m["row"], m["devices"]): m for m in found}


def share(record: dict) -> str:
    """Return a device's part of the work that the same method does on one device."""
    name = record["row"].split(", ")[0]
    whole = by_case(record["stack"])["replicated", name, 1]["product_flops"]
    ratio = record["product_flops"] / whole
    near = fractions.Fraction(ratio).limit_denominator(8)
    if abs(near - ratio) > 0.02 * ratio:
        return f"{ratio:.2f}"
    return "all" if near == 1 else str(near)


def sent(record: dict) -> str:
    """Return the collectives with their number."""
    pairs = record["sent"].items()
    parts = [f"{times:,} {kind}{'s' if times > 1 else ''}" for kind, times in pairs]
    return ", ".join(parts) or "nothing"


def received(record: dict) -> str:
    """Return the received bytes."""
    return f"{number(record['received'], 1 / MEBIBYTE)} MiB" if record["received"] else "nothing"


def devices(stack: str) -> str:
    """Return a table of all cases on the most devices."""
    found = by_case(stack)
    most = max(number for _, _, number in found)
    cases = [m for (_, _, number), m in found.items() if number == most]
    rows = [
        [
            m["layout"],
            m["row"],
            share(m),
            sent(m),
            received(m),
            number(m["temporary"], 1 / MEBIBYTE),
        ]
        for m in cases
    ]
    headings = ["layout", "transformation", "work on a device", "sent", "received by a device"]
    return markdown([*headings, "temporary, MiB"], rows)


def growth(stack: str) -> str:
    """Return a table with the numbers of devices as columns."""
    found = by_case(stack)
    numbers = sorted({number for _, _, number in found})
    kinds = dict.fromkeys((layout, row) for layout, row, number in found if number > 1)
    rows = []
    for layout, row in kinds:
        if layout == "rows cut over half" or "," in row:  # on the most devices alone
            continue
        cells = (
            found.get((layout if number > 1 else "replicated", row, number)) for number in numbers
        )
        rows.append([layout, row, *map(_work_and_received, cells)])
    return markdown(["layout", "transformation", *map(str, numbers)], rows)


def _work_and_received(record: dict | None) -> str:
    if record is None:
        return "-"
    work, received = record["product_flops"], record["received"]
    return f"{number(work, 1e-9)} ({number(received, 1 / MEBIBYTE)})"


def guide() -> str:
    """Return the guide's table."""
    found = by_case(STACK)
    cases = {
        "rows cut": ("rows cut", "exact"),
        "columns cut": ("columns cut", "exact"),
        "rows and columns cut": ("two axes", "exact"),
        "rows cut over 4 of 8 devices": ("rows cut over half", "exact"),
        "replicated": ("replicated", "exact"),
        "replicated, without `mesh_axes`": ("replicated", "exact, without mesh_axes"),
        "rows cut, without `mesh_axes`": ("rows cut", "exact, without mesh_axes"),
        "the same, five steps": ("rows cut", "five steps, without mesh_axes"),
        "rows cut, `optax.contrib.muon`": ("rows cut", "peer: optax muon"),
    }
    lines = ["| layout of the leaves | work on a device | sent | received by a device |"]
    lines.append("|---|---|---|---|")
    for label, (layout, row) in cases.items():
        one = found[layout, row, 8]
        kinds = len(one["sent"])
        what = sent(one) if kinds < 3 else f"{sum(one['sent'].values()):,} collectives"
        lines.append(f"| {label} | {share(one)} | {what} | {received(one)} |")
    return "\n".join(lines) + "\n"


def accelerator() -> str:
    """Return a table of achieved TFLOP/s, a column for each shape and dtype."""
    found = of_kind("accelerator", ACCELERATOR)
    cases = list(dict.fromkeys((m["shape"], m["dtype"]) for m in found))
    cells = {(m["row"], m["shape"], m["dtype"]): m for m in found}
    rows = []
    for name in distinct(found, "row"):
        each = (cells.get((name, *case)) for case in cases)
        rows.append([name, *("" if m is None else number(m["teraflops"]) for m in each)])
    return markdown(["TFLOP/s", *(f"{shape} {dtype}" for shape, dtype in cases)], rows)


def count_of(name: str) -> scale_paper.Count:
    """Return what was counted of a factor."""
    (one,) = (m for m in of_kind("count") if m["row"] == name)
    return scale_paper.Count(one["long"], one["short"])


def paper() -> str:
    """Return a table of one whitening step on many chips, and its part of the model's own."""
    rows = []
    for model in scale_paper.PARAMETERS:
        kernels = shapes(model)
        for name in scale_paper.METHODS:
            for cut, label in ((None, "by the rule"), ("matrix", "all")):
                load = scale_paper.load(kernels, count_of(name), cut)
                cells = [model, name, f"{label}: {load.cut} of {load.stacks} stacks"]
                cells += [number(load.flops, 1e-12), number(load.received, 1e-9)]
                for chip in (scale_paper.H100, scale_paper.V5P):
                    work, sending = load.seconds(chip, name)
                    part = (work + sending) / scale_paper.model_seconds(model, chip)
                    cells.append(f"{number(work)} + {number(sending)} s ({number(part, 100)} %)")
                rows.append(cells)
    headings = ["model", "method", "matrices are cut", "TFLOP", "received, GB", "H100", "TPU v5p"]
    return markdown(headings, rows)


def page() -> str:
    """Return the page."""
    recipe, _ = read(LOG)
    environment = templates(HERE)
    own = {
        f"{model} {chip.name}": number(scale_paper.model_seconds(model, chip))
        for model in scale_paper.PARAMETERS
        for chip in (scale_paper.H100, scale_paper.V5P)
    }
    gpu = LOGS / ACCELERATOR
    return environment.get_template("scale.md").render(
        machine=machine(recipe),
        config=recipe["config"],
        paper_constants=scale_paper,
        own=own,
        gpu_machine=machine(records.read(gpu)[0]) if gpu.exists() else None,
        counts={m["row"]: m for m in of_kind("count")},
        stacks=distinct(of_kind("devices"), "stack"),
        **{
            one.__name__: one
            for one in (processes, steps, depth, bounds, compiled, devices, growth, accelerator)
        },
        compilations=compilations,
        ready=ready,
        paper=paper,
        parts=parts,
        rates=rates,
        deeper=deeper,
        median=statistics.median,
        muon_share=muon_share,
    )


def guide_page() -> str:
    """Return the guide with its table."""
    text = GUIDE.read_text(encoding="utf-8")
    return GUIDE_TABLE.sub(lambda _: guide(), text, count=1)


def main() -> None:
    """Write docs/scale.md and the guide's table from examples/benchmarks/logs.

    A log of `make bench-scale` takes the name scale.jsonl there, one of a GPU scale-gpu.jsonl.
    """
    texts: dict[Path, str] = {PAGE: page(), GUIDE: guide_page()}
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except OSError as error:
        sys.exit(f"error: {error}")
