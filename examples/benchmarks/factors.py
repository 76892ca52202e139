"""Time every polar method and its peers on the same matrices, in one process.

    PYTHONPATH=examples python -m benchmarks.factors          # about 8 minutes on two cores
    PYTHONPATH=examples python -m benchmarks.factors --shapes 8192x8192 --dtype bfloat16 --batch 4

Rounds go over all methods in random order, so that a noisy machine is noisy for all of them;
medians are reported. A turn begins with a pause: after a threaded LAPACK call, its idle threads
spin for tens of milliseconds and would slow the next method down instead of its own. What counts is
the time of a call in a loop that has run for a while, as training does. For some tens of
milliseconds after a pause, the threads of a program may share one core; the second call after the
pause is timed, too, and reported beside.

One `product` is an (m, m) by (m, n) matrix product: the unit. Two of them, one to form a Gram
matrix and one to apply a function of it, are a bound that no method of that kind can beat.
"""

import contextlib
import dataclasses
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax.contrib
import tyro
from common.environment import one_blas_thread
from rich.console import Console
from tqdm import tqdm

from benchmarks import records
from benchmarks.records import draw, table
from egd_optax import polar

try:
    import torch
    from torch.optim._muon import _zeropower_via_newtonschulz
except ImportError:
    torch = None

SHAPES = ("194x512", "254x512", "512x512", "768x3072", "1024x1024")


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """Time the polar methods and their peers.

    Args:
        shapes: shapes of the matrices, such as 194x512.
        condition: the singular values are log-spaced from 1 to 1/condition; for the sketches,
            those after their rank are divided by 100, since a gap is what their promise asks for.
        dtype: dtype of the matrices.
        batch: matrices in a stack; 1 for plain matrices.
        rank: rank of the sketches, which are timed on shapes with a larger short side.
        rounds: rounds over all methods; the median over all calls counts.
        calls: timed calls of a method in a round.
        pause: seconds before each method's turn, for the threads of the one before to fall asleep.
        warm: seconds of untimed calls before the timed ones.
        blas_threads: of LAPACK on CPU: as many as it takes by itself, or one. On a busy machine an
            SVD with more than one may take many times as long.
        only: names of the methods to time, as in the table; empty for all.
        out: JSONL log to write, numbered where it exists; a PNG is drawn beside it.
    """

    shapes: tuple[str, ...] = SHAPES
    condition: float = 1e4
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    batch: int = 1
    rank: int = 64
    rounds: int = 15
    calls: int = 3
    pause: float = 0.05
    warm: float = 0.1
    blas_threads: Literal["default", "one"] = "default"
    only: tuple[str, ...] = ()
    out: Path = Path("runs/benchmark/polar.jsonl")

    def __post_init__(self) -> None:
        for shape in self.shapes:
            if not re.fullmatch(r"[1-9]\d*x[1-9]\d*", shape):
                raise ValueError(f"a shape is written as 194x512, got {shape!r}.")
        for name, least in (("batch", 1), ("rank", 1), ("rounds", 1), ("calls", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if not self.shapes or self.condition < 1 or self.pause < 0 or self.warm < 0:
            raise ValueError("shapes, a condition of at least 1, and times of at least 0 s.")


def of(method) -> Callable:
    return jax.jit(lambda x: polar.polar_factor(x, method))


def through_svd(x):
    """Return U V^T, the way it is written first; 16-bit matrices by way of float32."""
    u, _, vh = jnp.linalg.svd(x.astype(jnp.promote_types(x.dtype, jnp.float32)), False)
    return (u @ vh).astype(x.dtype)


def optax_muon(x):
    """Return Optax's orthogonalization, five steps of its coefficients."""
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
        "Halley": of(polar.Halley()),
        "Auto": of(polar.Auto()),
        "NewtonSchulz 5 steps": of(polar.NewtonSchulz(steps=5)),
        "NewtonSchulz 8 steps": of(polar.NewtonSchulz()),
    }
    if single:
        found["peer: optax muon"] = optax_muon
    if single and x.dtype == jnp.float32:
        found["peer: scipy.linalg.polar"] = lambda x: jax.scipy.linalg.polar(x.T)[0].T
    return found


def sketches(x: jax.Array, rank: int) -> dict[str, Callable]:
    """Return the sketches, SubspaceIteration one step after it has seen the matrix."""
    if rank >= min(x.shape[-2:]):
        return {}
    found = {f"Randomized {rank}": of(polar.Randomized(rank))}
    if x.ndim == 2:
        method = polar.SubspaceIteration(rank)
        _, state = method.update(x, method.init(x))
        found[f"SubspaceIteration {rank}"] = lambda x: method.update(x, state)[0]
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


@dataclasses.dataclass
class Row:
    """A method on one shape: its compiled call, and what was measured of it."""

    name: str
    run: Callable
    compile_seconds: float = 0.0
    times: list[float] = dataclasses.field(default_factory=list)
    paused: list[float] = dataclasses.field(default_factory=list)

    def record(self, shape: str, unit: float, error: float | None) -> dict:
        """Return the log's line; `unit` is the median time of a product."""
        median = statistics.median(self.times)
        return {
            "kind": "measurement",
            "shape": shape,
            "method": self.name,
            "seconds": median,
            "quartiles": np.quantile(self.times, (0.25, 0.75)).tolist(),
            "products": median / unit,
            "seconds_after_pause": statistics.median(self.paused),
            "compile_seconds": self.compile_seconds,
            "worst_gain_error": error,
        }


def rows(benchmark: Benchmark, plain: jax.Array, gapped: jax.Array, shape: str) -> list[Row]:
    """Return the chosen methods, compiled; the sketches get the matrix with a gap."""
    given = {name: (function, plain) for name, function in candidates(plain).items()}
    given |= {
        name: (function, gapped) for name, function in sketches(gapped, benchmark.rank).items()
    }
    peer = torch_muon(plain)
    names = [*given, *(["peer: torch muon"] if peer else [])]
    if unknown := set(benchmark.only) - set(names):
        raise ValueError(f"no method {sorted(unknown)} for {shape}; there are {names}.")
    if benchmark.only:
        names = [name for name in names if name in ("product", *benchmark.only)]
    return [
        Row(name, *compiled(*given[name])) if name in given else Row(name, peer)
        for name in tqdm(names, desc=f"{shape}, compile", leave=False)
    ]


def measure(benchmark: Benchmark, shape: str) -> list[dict]:
    """Return one record for each method on one shape."""
    m, n = map(int, shape.split("x"))
    u, s, vh = matrices(benchmark, m, n)
    gap = np.where(np.arange(len(s)) < benchmark.rank, 1.0, 0.01)
    plain, gapped = (stack_of(benchmark, (u * spectrum) @ vh) for spectrum in (s, s * gap))
    found = rows(benchmark, plain, gapped, shape)
    errors = [gain_error(row.name, row.run(), u, vh, benchmark.rank) for row in found]
    order = np.random.default_rng(0)  # who comes after whom matters
    for _ in tqdm(range(benchmark.rounds), desc=f"{shape}, rounds", leave=False):
        for index in order.permutation(len(found)):
            second, calls = turn(benchmark, found[index].run)
            found[index].paused.append(second)
            found[index].times += calls
    unit = statistics.median(found[0].times)  # the product's
    return [row.record(shape, unit, error) for row, error in zip(found, errors, strict=True)]


def gain_error(name: str, factor, u, vh, rank: int) -> float | None:
    """Return the worst gain error over the directions that the method promises something for."""
    if name == "product":
        return None
    promised = rank if name in (f"Randomized {rank}", f"SubspaceIteration {rank}") else u.shape[1]
    return worst_gain_error(to_numpy(factor), u[:, :promised], vh[:promised])


def to_numpy(array) -> np.ndarray:
    """Return a JAX or torch array as float32 NumPy."""
    if isinstance(array, jax.Array):
        return np.asarray(array.astype(jnp.float32))
    return array.float().numpy()


def main(benchmark: Benchmark) -> None:
    """Run, print, log and draw."""
    out, lines = records.begin(benchmark)
    if benchmark.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    lines[0]["versions"] |= {"torch": torch.__version__} if torch else {}
    threads = contextlib.nullcontext() if benchmark.blas_threads == "default" else one_blas_thread()
    print(f"{benchmark.dtype}, BLAS threads: {benchmark.blas_threads}")
    with threads:
        for shape in benchmark.shapes:
            lines += measure(benchmark, shape)
            records.write(out, lines)
            console = Console(width=max(Console().width, 100))
            console.print(table([line for line in lines if line.get("shape") == shape]))
    draw(lines[1:], out.with_suffix(".png"))
    print(f"written: {out}, {out.with_suffix('.png')}")


if __name__ == "__main__":
    try:
        main(tyro.cli(Benchmark))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
