"""Achieved FLOP/s of the factors beside the product rate of the same machine."""

import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import scale_paper
from benchmarks.factors import optax_muon, torch
from benchmarks.scale_timing import Row, product, take_turns
from egd_optax import polar
from egd_optax.polar._lapack import inverse_by_library, root_and_inverse

STEPS = 5  # of every polynomial iteration
BLOCK = 256  # block inverses call the library from this size down
Work = tuple[Callable[[jax.Array], jax.Array], float]  # a function, its FLOPs on one matrix


def iteration_flops(m: int, n: int) -> float:
    """Return the FLOPs of five quintic steps, each a Gram matrix, its square and a product."""
    return STEPS * (4.0 * m * m * n + 2.0 * m**3)


@functools.cache
def _exact() -> scale_paper.Count:
    counted = scale_paper.count("exact")
    return scale_paper.Count(counted["long"], counted["short"])


def exact_flops(m: int, n: int) -> float:
    """Return the FLOPs of the exact factor as an accelerator's program has them."""
    return _exact().long * m * m * n + _exact().short * m**3


def factors(m: int, n: int, dtype: str) -> dict[str, Work]:
    """Return what is timed on matrices (*batch, m, n)."""
    five = functools.partial(
        polar.polar_factor, method=polar.NewtonSchulz("standard", steps=STEPS, dtype=dtype)
    )
    muon = functools.partial(jnp.vectorize, signature="(m,n)->(m,n)")(optax_muon)
    return {
        "exact": (polar.polar_factor, exact_flops(m, n)),
        "five steps": (five, iteration_flops(m, n)),
        "peer: optax muon": (muon, iteration_flops(m, n)),
    }


def inverses(m: int) -> dict[str, Work]:
    """Return two inverses of a positive definite matrix (m, m); 2 m^3 by convention."""
    flops = 2.0 * m**3
    return {
        "inverse by solves": (inverse_by_library, flops),
        "inverse by blocks": (lambda s: root_and_inverse(s, BLOCK)[1], flops),
    }


def torch_muon(x: jax.Array) -> Callable[[], object] | None:
    """Return torch's five steps in its bfloat16, where torch is; one matrix at a time."""
    if torch is None or x.ndim != 2:
        return None
    from torch.optim._muon import _zeropower_via_newtonschulz

    gpu = torch.cuda.is_available()
    matrix = torch.from_numpy(np.asarray(x, np.float32)).to("cuda" if gpu else "cpu")

    def run() -> None:
        _zeropower_via_newtonschulz(matrix, (3.4445, -4.7750, 2.0315), STEPS, 1e-7)
        if gpu:
            torch.cuda.synchronize()

    return run


def positive_definite(shape: tuple[int, ...]) -> jax.Array:
    """Return I + x x^T / n of a random x, as the exact method inverts it."""
    x = jax.random.normal(jax.random.key(1), (*shape[:-1], shape[-2]))
    return jnp.eye(shape[-2]) + x @ x.mT / shape[-2]


def rows(shape: tuple[int, ...], dtype: str) -> list[tuple[Row, float]]:
    """Return compiled rows with the FLOPs of a call, products first."""
    *batch, m, n = shape
    count = int(np.prod(batch, dtype=int))
    unit = 2.0 * m * m * n * count
    x = jax.random.normal(jax.random.key(0), shape, dtype)
    found = [(product(shape, dtype), unit)]
    if dtype == "float32":
        highest = product(shape, dtype, "highest")
        highest.name = "product, highest precision"
        found.append((highest, unit))
    given = {name: (*work, x) for name, work in factors(m, n, dtype).items()}
    if dtype == "float32":
        s = positive_definite(shape)
        whole = functools.partial(jnp.vectorize, signature="(m,m)->(m,m)")
        given |= {name: (whole(f), flops, s) for name, (f, flops) in inverses(m).items()}
    for name, (function, flops, argument) in given.items():
        executable = jax.jit(function).lower(argument).compile()
        run = functools.partial(lambda f, a: jax.block_until_ready(f(a)), executable, argument)
        found.append((Row(name, run), flops * count))
    if peer := torch_muon(x):
        found.append((Row("peer: torch muon, bfloat16", peer), iteration_flops(m, n)))
    return found


def measure(shape_name: str, dtype: str, budget: float, calls: int) -> Iterator[dict]:
    """Yield a record for each row of one shape."""
    *batch, m, n = map(int, shape_name.split("x"))
    found = rows((*batch, *sorted((m, n))), dtype)
    take_turns([row for row, _ in found], budget, calls, f"{shape_name} {dtype}")
    for row, flops in found:
        measured = row.record()
        yield {
            "kind": "accelerator",
            "shape": shape_name,
            "dtype": dtype,
            "row": row.name,
            **measured,
            "flops": flops,
            "teraflops": flops / measured["seconds"] / 1e12,
        }
