"""What the pages say about speed, against the committed logs."""

import re
from pathlib import Path

import pytest
from benchmarks import tables

DOCS = Path(__file__).parents[1] / "docs"
SVD, OPTAX = "peer: jnp.linalg.svd", "peer: optax muon"


def test_subspace_iteration_costs_at_most_four_products_a_step():
    _, measurements = tables.read("cpu.jsonl")
    (one,) = [
        m for m in measurements if (m["method"], m["shape"]) == ("SubspaceIteration 64", "512x512")
    ]
    assert one["products"] <= 4


def test_the_monitor_adds_at_most_five_per_cent_with_one_blas_thread():
    _, measurements = tables.read("training.jsonl")
    seconds = {(m["blas_threads"], m["prime"], m["row"]): m["seconds"] for m in measurements}
    for prime in (97, 127):
        for method in ("SVD", "Halley"):
            plain = seconds["one", prime, method]
            assert seconds["one", prime, f"{method}, monitor"] <= 1.05 * plain


def test_the_page_is_made_from_the_logs():
    assert (DOCS / "benchmarks.md").read_text(encoding="utf-8") == tables.page()


@pytest.mark.parametrize(
    ("row", "methods"),
    [
        ("Halley()", ["Halley"]),
        ("SVD()", ["SVD"]),
        ("NewtonSchulz()", ["NewtonSchulz 8 steps", "NewtonSchulz 5 steps"]),
        ("Randomized(rank)", ["Randomized 64"]),
        ("SubspaceIteration(rank)", ["SubspaceIteration 64"]),
    ],
)
def test_how_to_choose_quotes_the_logs(row, methods):
    (line,) = re.findall(
        rf"^\| `{re.escape(row)}` .*$",
        (DOCS / "how-to-choose.md").read_text(encoding="utf-8"),
        re.M,
    )
    assert re.findall(r"\d+ to \d+", line) == [tables.range_of_products(name) for name in methods]


def test_how_to_choose_quotes_the_training_log():
    _, measurements = tables.read("training.jsonl")
    seconds = {(m["blas_threads"], m["prime"], m["row"]): m["seconds"] for m in measurements}
    svd, monitor = [], []
    for prime in (97, 127):
        default, one = (
            seconds[threads, prime, "SVD"] - seconds[threads, prime, "no whitening"]
            for threads in ("default", "one")
        )
        svd.append(100 * (default / one - 1))
        slower = seconds["default", prime, "Halley, monitor"] / seconds["default", prime, "Halley"]
        monitor.append(100 * (slower - 1))
    text = " ".join((DOCS / "how-to-choose.md").read_text(encoding="utf-8").split())
    assert f"[{min(svd):.0f} to {max(svd):.0f} % more](benchmarks.md#within-training)" in text
    assert f"slows `Halley` down by {min(monitor):.0f} to {max(monitor):.0f} %" in text


@pytest.mark.parametrize(
    ("method", "than", "bounds"),
    [
        ("Auto", SVD, {"194x512": 2, "254x512": 2, "768x3072": 1.5, "512x512": 1, "1024x1024": 1}),
        (
            "NewtonSchulz 5 steps",
            OPTAX,
            {"194x512": 1.6, "254x512": 1.6, "768x3072": 1.6, "512x512": 1.3, "1024x1024": 1.3},
        ),
    ],
)
def test_how_many_times_faster(method, than, bounds):
    """In a running loop: the exact default than an SVD, five steps than five of Optax."""
    _, measurements = tables.read("cpu.jsonl")
    seconds = {(m["method"], m["shape"]): m["seconds"] for m in measurements}
    for shape, bound in bounds.items():
        assert seconds[than, shape] / seconds[method, shape] >= bound, shape
