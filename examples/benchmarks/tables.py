"""Write docs/benchmarks.md and its figure from the committed logs."""

import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import tyro
from common.pages import markdown, templates

from benchmarks import records
from benchmarks.records import draw

HERE = Path(__file__).parent
LOGS = HERE / "logs"
DOCS = HERE.parents[1] / "docs"
KERNELS = ("muon-small.jsonl", "muon.jsonl", "muon-large.jsonl")
PAUSED = ["peer: jnp.linalg.svd", "Halley", "Auto", "NewtonSchulz 5 steps", "peer: optax muon"]


def read(name: str) -> tuple[dict, list[dict]]:
    """Return the recipe and the measurements of a log."""
    return records.read(LOGS / name)


def distinct(measurements: list[dict], key: str) -> list:
    """Return the values of `key`, each once, in order."""
    return list(dict.fromkeys(m[key] for m in measurements))


def by_shape(methods: list[str], cell: Callable[[dict], str]) -> str:
    """Return a table with a row a method and a column a shape."""
    _, measurements = read("cpu.jsonl")
    shapes = distinct(measurements, "shape")
    found = {(m["method"], m["shape"]): m for m in measurements}
    rows = [[name, *(cell(found[name, shape]) for shape in shapes)] for name in methods]
    return markdown(["method", *shapes], rows)


def faster(methods: list[str], than: str, key: str = "seconds") -> str:
    """Return how many times faster than another one methods are."""
    _, measurements = read("cpu.jsonl")
    other = {m["shape"]: m[key] for m in measurements if m["method"] == than}
    return by_shape(methods, lambda m: f"{other[m['shape']] / m[key]:.2f}")


def products(methods: list[str]) -> str:
    """Return times in matrix products."""
    return by_shape(methods, lambda m: f"{m['products']:.1f}")


def milliseconds(record: dict) -> str:
    """Return the median and the quartiles."""
    low, high = (1000 * quartile for quartile in record["quartiles"])
    return f"{1000 * record['seconds']:.3g} ({low:.3g} to {high:.3g})"


def errors(methods: list[str]) -> str:
    """Return a table of compile seconds and worst gain errors."""
    _, measurements = read("cpu.jsonl")
    rows = []
    for method in methods:
        found = [m for m in measurements if m["method"] == method]
        compilation = max(m["compile_seconds"] for m in found)
        error = max(m["worst_gain_error"] for m in found)
        rows.append([method, f"{compilation:.1f}", f"{error:.0e}"])
    return markdown(["method", "compile, s", "worst gain error"], rows)


def small() -> str:
    """Return a table with a row a shape."""
    _, measurements = read("cpu-small.jsonl")
    names = ["SVD", "Halley", "Auto"]
    found = {(m["method"], m["shape"]): m for m in measurements}
    rows = []
    for shape in distinct(measurements, "shape"):
        svd, *others = (found[name, shape] for name in names)
        ratios = [f"{svd['seconds'] / other['seconds']:.2f}" for other in others]
        rows.append([shape, *(milliseconds(m) for m in (svd, *others)), *ratios])
    headings = [*(f"{name}, ms" for name in names), "Halley, times faster", "Auto, times faster"]
    return markdown(["shape", *headings], rows)


def training() -> str:
    """Return a table with a row for each number of BLAS threads and each modulus."""
    _, measurements = read("training.jsonl")
    found = {(m["blas_threads"], m["prime"], m["row"]): m["seconds"] for m in measurements}
    rows = []
    for threads, prime in dict.fromkeys((threads, prime) for threads, prime, _ in found):
        names = distinct(measurements, "row")
        plain, svd, svd_monitor, halley, halley_monitor = (found[threads, prime, n] for n in names)
        row = [f"{2 * prime}x512", threads, *(f"{1000 * s:.0f}" for s in (plain, svd, halley))]
        row += [f"{(svd - plain) / (halley - plain):.2f}"]
        row += [f"{svd_monitor / svd - 1:.1%}", f"{halley_monitor / halley - 1:.1%}"]
        rows.append(row)
    headings = ["matrix", "BLAS threads", "no whitening, ms", "SVD, ms", "Halley, ms"]
    headings += [
        "Halley's share, times faster than SVD's",
        "monitor adds, SVD",
        "monitor adds, Halley",
    ]
    return markdown(headings, rows)


def kernels(model: str, row: str) -> list[dict]:
    """Return what each process measured of an optimizer on a transformer's kernels."""
    return [m for log in KERNELS for m in read(log)[1] if (m["model"], m["row"]) == (model, row)]


def muon_share(model: str, row: str) -> str:
    """Return the part of the time of Optax's Muon on a transformer's kernels.

    It is the median over processes, each of which measured Muon first.
    """
    shares, muon = [], math.nan
    for one in (m for log in KERNELS for m in read(log)[1] if m["model"] == model):
        muon = one["seconds"] if one["row"] == "peer: optax muon" else muon
        shares += [one["seconds"] / muon] if one["row"] == row else []
    return f"{statistics.median(shares):.2f}"


def muon() -> str:
    """Return a table of updates of transformers' kernels, with a row for each model."""
    names = ["peer: optax muon", "five steps", "three steps", "exact"]
    called = ["Optax", *names[1:]]
    rows = []
    for log in KERNELS:
        for model in distinct(read(log)[1], "model"):
            several = [sorted(kernels(model, n), key=lambda m: m["seconds"]) for n in names]
            found = [processes[len(processes) // 2] for processes in several]
            cells = [milliseconds(one) for one in found]
            cells += [muon_share(model, name) for name in names[1:]]
            cells += [f"{one['trace_seconds'] + one['compile_seconds']:.1f}" for one in found]
            cells += ["{:.4f} to {:.4f}".format(*one["gains"]) for one in found]
            rows.append([model, *cells])
    headings = ["model", *(f"{name}, ms" for name in called)]
    headings += [f"{name} / Optax" for name in called[1:]]
    headings += [f"{name} compiles, s" for name in called]
    headings += [f"gains, {name}" for name in called]
    return markdown(headings, rows)


def mappings() -> str:
    """Return a table of the ways to take the matrices of a stack."""
    measurements = [m for log in KERNELS[:2] for m in read(log)[1]]
    models = distinct(measurements, "model")
    found = {(m["row"], m["model"]): m for m in measurements}
    names = [name for name in distinct(measurements, "row") if name.startswith("five steps, ")]
    rows = [
        [name.removeprefix("five steps, ")]
        + [milliseconds(found[name, model]) for model in models]
        + [f"{found[name, model]['compile_seconds']:.1f}" for model in models]
        for name in names
    ]
    compiles = [f"{model} compiles, s" for model in models]
    return markdown(["in a turn", *(f"{model}, ms" for model in models), *compiles], rows)


def range_of_products(method: str) -> str:
    """Return the least and the largest time in products over the shapes, as `8 to 15`."""
    _, measurements = read("cpu.jsonl")
    found = [m["products"] for m in measurements if m["method"] == method]
    return f"{min(found):.0f} to {max(found):.0f}"


def machine(recipe: dict) -> str:
    """Return versions and hardware as a sentence."""
    hardware, versions = recipe["hardware"], recipe["versions"]
    return (
        f"{hardware['platform']} ({hardware['machine']}, {hardware['cpu_count']} cores), "
        f"jax {versions['jax']}, {recipe['started'][:10]}"
    )


def page() -> str:
    """Return the page."""
    recipe, measurements = read("cpu.jsonl")
    muon_recipe, _ = read("muon.jsonl")
    environment = templates(HERE)
    return environment.get_template("benchmarks.md").render(
        machine=machine(recipe),
        config=recipe["config"],
        training_config=read("training.jsonl")[0]["config"],
        small_config=read("cpu-small.jsonl")[0]["config"],
        methods=[name for name in distinct(measurements, "method") if name != "product"],
        paused=PAUSED,
        faster=faster,
        milliseconds=lambda methods: by_shape(methods, milliseconds),
        products=products,
        errors=errors,
        small=small,
        training=training,
        muon=muon,
        muon_config=muon_recipe["config"] | {"started": muon_recipe["started"][:10]},
        mappings=mappings,
    )


def main() -> None:
    """Write docs/benchmarks.md and its figure from examples/benchmarks/logs.

    Logs of another machine take the names of those there: cpu.jsonl and training.jsonl, as `make
    bench` makes them, and cpu-small.jsonl by `benchmarks.factors` with the shapes in its first
    line and `--only SVD Halley Auto`. tests/test_benchmarks.py holds the other pages to them.
    """
    text = page()
    draw(read("cpu.jsonl")[1], DOCS / "figures" / "benchmark-cpu.png")
    (DOCS / "benchmarks.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        tyro.cli(main)
    except OSError as error:
        sys.exit(f"error: {error}")
