"""Time every polar method and its peers on the same matrices, in one process.

    python examples/benchmarks/polar.py                        # about 8 minutes on two cores
    python examples/benchmarks/polar.py --shapes 8192x8192 --dtype bfloat16 --batch 4

Rounds go over all methods in turn, so that a noisy machine is noisy for all of them; medians are
reported. A turn begins with a pause: after a threaded LAPACK call, its idle threads spin for tens
of milliseconds and would slow the next method down instead of its own. What counts is the time of
a call in a loop that has run for a while, as training does. For some tens of milliseconds after a
pause, the threads of a program may share one core; the second call after the pause is timed, too,
and reported beside.

One `product` is an (m, m) by (m, n) matrix product: the unit. Two of them, one to form a Gram
matrix and one to apply a function of it, are a bound that no method of that kind can beat.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from egd_optax import polar
from egd_optax.grokking.record import check_writable, environment
from egd_optax.grokking.session import free_file

try:
    import torch
    from torch.optim._muon import _zeropower_via_newtonschulz
except ImportError:
    torch = None

RANK = 64  # of the sketches; their matrices have a gap after it, the promise's condition
MARKERS = "osD^vPX"
SHAPES = ("194x512", "254x512", "512x512", "768x3072", "1024x1024")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Time the polar methods and their peers.

    Args:
        shapes: shapes of the matrices, m x n.
        condition: the singular values are log-spaced from 1 to 1/condition; for the sketches,
            those after their rank are divided by 100.
        dtype: of the matrices.
        batch: matrices in a stack; 1 for plain matrices.
        rounds: rounds over all methods; the median over all calls counts.
        calls: timed calls of a method in a round.
        pause: seconds before each method's turn, for the threads of the one before to fall asleep.
        warm: seconds of untimed calls before the timed ones.
        only: names of the methods to time; empty for all.
        out: JSONL log to write, numbered where it exists; a PNG is drawn beside it.
    """

    shapes: tuple[str, ...] = SHAPES
    condition: float = 1e4
    dtype: str = "float32"
    batch: int = 1
    rounds: int = 15
    calls: int = 3
    pause: float = 0.05
    warm: float = 0.1
    only: tuple[str, ...] = ()
    out: Path = Path("runs/benchmark/polar.jsonl")


def of(method) -> Callable:
    """Return `method` as a compiled function on stacks."""
    return jax.jit(lambda x: polar.polar_factor(x, method))


def through_svd(x):
    """Return U V^T, the way it is written first."""
    u, _, vh = jnp.linalg.svd(x, full_matrices=False)
    return u @ vh


def optax_muon(x):
    """Return Optax's orthogonalisation, five steps of Jordan's coefficients."""
    coefficients = jnp.asarray((3.4445, -4.7750, 2.0315), x.dtype)
    return optax.contrib._muon.orthogonalize_via_newton_schulz(
        x, coefficients, 5, "frobenius", 1e-8, optax.contrib.MuonDimensionNumbers()
    )


def candidates(x: jax.Array) -> dict[str, Callable]:
    """Return the functions to time, by name; `product` is the unit."""
    square = jnp.ones((*x.shape[:-1], x.shape[-2]), x.dtype)
    single = x.ndim == 2
    found = {
        "product": lambda x: square @ x,
        "peer: jnp.linalg.svd": through_svd,
        "SVD": of(polar.SVD()),
        "Gram": of(polar.Gram()),
        "Auto": of(polar.Auto()),
        "NewtonSchulz 5 steps": of(polar.NewtonSchulz(steps=5)),
        "NewtonSchulz 8 steps": of(polar.NewtonSchulz()),
    }
    if single:
        found["peer: optax muon"] = optax_muon
    if single and x.dtype == jnp.float32:
        found["peer: scipy.linalg.polar"] = lambda x: jax.scipy.linalg.polar(x.T)[0].T
    return found


def sketches(x: jax.Array) -> dict[str, Callable]:
    """Return the sketches, Streaming one step after it has seen the matrix."""
    found = {f"Randomized {RANK}": of(polar.Randomized(RANK))}
    if x.ndim == 2:
        method = polar.Streaming(RANK)
        _, state = method.update(x, method.init(x))
        found[f"Streaming {RANK}"] = lambda x: method.update(x, state)[0]
    return found


def stack_of(benchmark: Benchmark, matrix: np.ndarray) -> jax.Array:
    """Return the matrix, or a stack of copies, in the benchmark's dtype."""
    x = jnp.asarray(matrix, benchmark.dtype)
    return jnp.tile(x, (benchmark.batch, 1, 1)) if benchmark.batch > 1 else x


def torch_muon(x: jax.Array) -> Callable | None:
    """Return torch's five steps, in the bfloat16 that it insists on; None without torch."""
    if torch is None or x.ndim != 2:
        return None
    matrix = torch.from_numpy(np.array(x, np.float32))
    return lambda: _zeropower_via_newtonschulz(matrix, (3.4445, -4.7750, 2.0315), 5, 1e-7)


def matrices(benchmark: Benchmark, m: int, n: int) -> tuple[np.ndarray, ...]:
    """Return u, s, vh of float64 matrices with the benchmark's spectrum."""
    rng = np.random.default_rng(0)
    k = min(m, n)
    u = np.linalg.qr(rng.standard_normal((m, k)))[0]
    v = np.linalg.qr(rng.standard_normal((n, k)))[0]
    return u, np.geomspace(1, 1 / benchmark.condition, k), v.T


def worst_gain_error(factor, u, vh) -> float:
    """Return the largest |u_i^T P v_i - 1|."""
    factor = np.asarray(factor, np.float64).reshape(-1, u.shape[0], vh.shape[1])[0]
    return float(np.abs(np.sum((u.T @ factor) * vh, axis=1) - 1).max())


def compiled(function: Callable, x: jax.Array) -> tuple[Callable, float]:
    """Return the function compiled for `x`, and the seconds that took."""
    start = time.perf_counter()
    executable = jax.jit(function).lower(x).compile()
    return lambda: jax.block_until_ready(executable(x)), time.perf_counter() - start


def seconds(run: Callable) -> float:
    """Return how long one call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def turn(benchmark: Benchmark, run: Callable) -> tuple[float, list[float]]:
    """Return the seconds of the second call after a pause, and of calls in a running loop."""
    time.sleep(benchmark.pause)
    run()
    second = seconds(run)
    start = time.perf_counter()
    while time.perf_counter() - start < benchmark.warm:
        run()
    return second, [seconds(run) for _ in range(benchmark.calls)]


def measure(benchmark: Benchmark, shape: str) -> list[dict]:
    """Return one record for each method on one shape."""
    m, n = map(int, shape.split("x"))
    u, s, vh = matrices(benchmark, m, n)
    gap = np.where(np.arange(len(s)) < RANK, 1.0, 0.01)
    x, gapped = (stack_of(benchmark, (u * spectrum) @ vh) for spectrum in (s, s * gap))
    given = {name: (function, x) for name, function in candidates(x).items()}
    given |= {name: (function, gapped) for name, function in sketches(gapped).items()}
    runs, compile_seconds = {}, {}
    for name, (function, matrix) in given.items():
        if not benchmark.only or name == "product" or name in benchmark.only:
            runs[name], compile_seconds[name] = compiled(function, matrix)
    if not benchmark.only and (run_torch := torch_muon(x)) is not None:
        runs["peer: torch muon"], compile_seconds["peer: torch muon"] = run_torch, 0.0
    factors = {name: run() for name, run in runs.items()}
    turns = {name: [] for name in runs}
    for _ in range(benchmark.rounds):
        for name, run in runs.items():
            turns[name].append(turn(benchmark, run))
    times = {name: [s for _, calls in turns[name] for s in calls] for name in runs}
    unit = statistics.median(times["product"])
    return [
        {
            "kind": "measurement",
            "shape": shape,
            "method": name,
            "seconds": statistics.median(times[name]),
            "quartiles": np.quantile(times[name], (0.25, 0.75)).tolist(),
            "products": statistics.median(times[name]) / unit,
            "seconds_after_pause": statistics.median(second for second, _ in turns[name]),
            "compile_seconds": compile_seconds[name],
            "worst_gain_error": gain_error(name, factors[name], u, vh),
        }
        for name in runs
    ]


def gain_error(name: str, factor, u, vh) -> float | None:
    """Return the worst gain error over the directions that the method promises something for."""
    if name == "product":
        return None
    rank = RANK if name.endswith(f" {RANK}") else u.shape[1]
    return worst_gain_error(to_numpy(factor), u[:, :rank], vh[:rank])


def to_numpy(array) -> np.ndarray:
    """Return a JAX or torch array as float32 NumPy."""
    if isinstance(array, jax.Array):
        return np.asarray(array.astype(jnp.float32))
    return array.float().numpy()


def table(records: list[dict]) -> Table:
    """Return the measurements of one shape as a table."""
    columns = ("method", "ms", "products", "paused, ms", "compile s", "gain error")
    result = Table(*columns, title=records[0]["shape"], box=None)
    for record in records:
        error = record["worst_gain_error"]
        result.add_row(
            record["method"],
            f"{1000 * record['seconds']:.2f}",
            f"{record['products']:.1f}",
            f"{1000 * record['seconds_after_pause']:.2f}",
            f"{record['compile_seconds']:.1f}",
            "" if error is None else f"{error:.0e}",
        )
    result.caption = "bound: 2 products (form a Gram matrix, apply a function of it)"
    return result


def draw(records: list[dict], path: Path) -> None:
    """Draw error against time, one panel a shape."""
    shapes = list(dict.fromkeys(record["shape"] for record in records))
    figure = Figure(figsize=(4 * len(shapes), 4), layout="constrained")
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


def main(benchmark: Benchmark) -> None:
    """Run, print, log and draw."""
    out = free_file(benchmark.out)
    check_writable(out)
    records = []
    with out.open("x") as log:
        recipe = {**dataclasses.asdict(benchmark), "out": str(out)}
        log.write(json.dumps({"kind": "recipe", "config": recipe, **environment()}) + "\n")
        for shape in benchmark.shapes:
            found = measure(benchmark, shape)
            records += found
            log.writelines(json.dumps(record) + "\n" for record in found)
            log.flush()
            Console().print(table(found))
    draw(records, out.with_suffix(".png"))
    print(f"written: {out}, {out.with_suffix('.png')}")


if __name__ == "__main__":
    main(tyro.cli(Benchmark))
