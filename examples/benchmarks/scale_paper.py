"""A whitening step of a large model on many chips, on paper: counted work, published rates.

Nothing here was run on such chips. FLOPs are counted in the programs that JAX lowers for CUDA;
bytes follow from the layout; rates are those of data sheets, taken at one utilization throughout.
"""

import dataclasses
import math
from typing import NamedTuple

import jax

from benchmarks.scale_models import FIVE, Shapes, structs
from egd_optax import MatrixAxes, polar
from egd_optax._buckets import plan_buckets
from egd_optax._matrix_view import matrix_views
from egd_optax._mesh import Spread

CHIPS = 256
TOKENS = 4_000_000
UTILIZATION = 0.4
LIMIT = 2**26  # max_stack_size's default
PARAMETERS = {"llama-7b": 6.74e9, "llama-405b": 405e9}
METHODS = {"exact": polar.Auto(), "five steps": FIVE}
WIDTH = {"float32": 4, "bfloat16": 2}


class Chip(NamedTuple):
    """Published rates: FLOP/s of products by precision, bytes/s to other chips."""

    name: str
    model: float  # of the model's own products, bfloat16
    exact: float  # of float32 products at the highest precision
    five: float  # of float32 products at JAX's default precision
    link: float


H100 = Chip("H100", 989e12, 67e12, 494e12, 50e9)
V5P = Chip("TPU v5p", 459e12, 459e12 / 6, 459e12, 600e9)


@dataclasses.dataclass(frozen=True)
class Count:
    """FLOPs of one factor: `long` m m n along the long side, `short` m m m on the short one."""

    long: float
    short: float

    @property
    def grams(self) -> int:
        """Gram matrices, 2 m m n each; each one has a product of the same size with it."""
        return round(self.long / 4)


def count(name: str) -> dict:
    """Return the log's line, counted in the programs of 1024 x 4096 and 1024 x 8192."""
    m, n = 1024, 4096
    once, twice = _lowered(name, m, n), _lowered(name, m, 2 * n)
    found = Count((twice - once) / (m * m * n), (2 * once - twice) / m**3)
    return {"kind": "count", "row": name, "m": m, **dataclasses.asdict(found)}


def _lowered(name: str, m: int, n: int) -> float:
    """Return the FLOPs of the program for CUDA: products and solves; Cholesky is a call."""
    factor = jax.jit(lambda x: polar.polar_factor(x, METHODS[name]))
    traced = factor.trace(jax.ShapeDtypeStruct((m, n), "float32"))
    return float(traced.lower(lowering_platforms=("cuda",)).cost_analysis()["flops"])


@dataclasses.dataclass(frozen=True)
class Load:
    """What the busiest chip does in a step: FLOPs, bytes received, and how many stacks are cut."""

    flops: float
    received: float
    cut: int
    stacks: int

    def seconds(self, chip: Chip, name: str) -> tuple[float, float]:
        """Return the seconds of the products, and of what is sent."""
        rate = chip.exact if name == "exact" else chip.five
        return self.flops / (UTILIZATION * rate), self.received / (UTILIZATION * chip.link)


def stacks(kernels: Shapes, spread: Spread) -> list[tuple[int, int, int]]:
    """Return (count, m, n) of the stacks that the library makes."""
    leaves = structs(kernels)
    views = matrix_views(leaves, {name: MatrixAxes(0, 1) for name in leaves}, True)
    flat = jax.tree.leaves(leaves)
    buckets = plan_buckets(views, flat, LIMIT, spread)
    return [(sum(v.batch for v in b.views), *b.views[0].shape) for b in buckets]


def load(
    kernels: Shapes,
    one: Count,
    cut: str | None = None,
    dtype: str = "float32",
    chips: int = CHIPS,
) -> Load:
    """Return the load of a chip for parameters cut over all chips, as in FSDP.

    A stack of whole matrices: its share of them, which comes and goes. Cut matrices: an equal part
    of the long products, all of the short ones, and a sum of each Gram matrix over the chips, which
    a ring sends twice.

    Args:
        kernels: of the model.
        one: what is counted of a factor.
        cut: `mesh_cut`; None: the library's rule.
        dtype: in which matrices travel.
        chips: over which they are spread.
    """
    spread = Spread(("chips",), chips, cut)
    flops = received = 0.0
    planned = stacks(kernels, spread)
    whether = [spread.cuts_matrices(*stack) for stack in planned]
    for (number, m, n), cut_up in zip(planned, whether, strict=True):
        share, long, short = math.ceil(number / chips), one.long * m * m * n, one.short * m**3
        received += 2 * WIDTH[dtype] * m * n * (number / chips if cut_up else share)
        if cut_up:
            flops += number * (long / chips + short)
            received += number * one.grams * 2 * WIDTH["float32"] * m * m
        else:
            flops += share * (long + short)
    return Load(flops, received, sum(whether), len(planned))


def model_seconds(model: str, chip: Chip) -> float:
    """Return the seconds of the model's own step: 6 N FLOPs a token."""
    return 6 * PARAMETERS[model] * TOKENS / (CHIPS * UTILIZATION * chip.model)
