"""Count products and received bytes on forced CPU devices, from the compiled program.

As a program, which `benchmarks.scale` starts with eight devices, it prints JSON lines:

    PYTHONPATH=examples XLA_FLAGS=--xla_force_host_platform_device_count=8 \
        python -m benchmarks.scale_devices 24x256x1024 gpt2-small --devices 1 2 4 8

Nothing is run. FLOPs inside LAPACK's Cholesky factors and solves are not counted: XLA's program
only calls them.
"""

import argparse
import functools
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import optax
import optax.contrib
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.programs import Program
from benchmarks.scale_models import FIVE, THREE, Shapes, shapes, temporary
from egd_optax import polar, scale_by_egd

MESHES = {1: {"a": 1}, 2: {"a": 2}, 4: {"a": 2, "b": 2}, 8: {"a": 4, "b": 2}}
LAYOUTS = {  # axes of rows and of columns
    "replicated": ("", ""),
    "rows cut": ("ab", ""),
    "columns cut": ("", "ab"),
    "two axes": ("a", "b"),
    "rows cut over half": ("a", ""),
}
WITHOUT, CUT = ", without mesh_axes", ", matrices cut"


def stack_of(name: str) -> Shapes:
    """Return the matrices of `24x256x1024`, or of a model's kernels."""
    if found := re.fullmatch(r"(\d+)x(\d+)x(\d+)", name):
        count, m, n = map(int, found.groups())
        return {f"matrix{i}": (m, n) for i in range(count)}
    return {path: (math.prod(rows), n) for path, (*rows, n) in shapes(name).items()}


def optimizers(axes: Sequence[str] = "ab") -> dict[str, optax.GradientTransformation]:
    """Return the transformations, ours with and without these axes of the mesh."""
    axes = tuple(axes)
    ours = {"five steps": FIVE, "three steps": THREE, "exact": polar.Auto()}
    found = {name: scale_by_egd(method, mesh_axes=axes) for name, method in ours.items()}
    found |= {name + WITHOUT: scale_by_egd(method) for name, method in ours.items()}
    found |= {
        name + CUT: scale_by_egd(method, mesh_axes=axes, mesh_cut="matrix")
        for name, method in ours.items()
    }
    numbers = optax.contrib.MuonDimensionNumbers()
    found["peer: optax muon"] = optax.contrib.scale_by_muon(
        beta=0.0,  # the average is the gradient
        nesterov=False,
        weight_dimension_numbers=functools.partial(jax.tree.map, lambda _: numbers),
    )
    return found


def cases(devices: int) -> Iterator[tuple[str, str]]:
    """Yield layouts and transformations: what is special, on the most devices alone."""
    common = {1: ["replicated"], 2: ["replicated", "rows cut", "columns cut"]}
    layouts = common.get(devices, [*LAYOUTS][:4])
    plain = ["five steps", "three steps", "exact", "peer: optax muon"]
    yield from itertools.product(layouts, plain)
    if devices == 8:
        without = [name for name in optimizers() if WITHOUT in name]
        yield from itertools.product(["replicated", "rows cut"], without)
        yield from itertools.product(["rows cut over half"], plain[:3])
        yield from itertools.product(["columns cut"], [f"{name}{CUT}" for name in plain[:3]])


def record(stack: str, devices: int, layout: str, name: str) -> dict[str, Any]:
    """Compile one update for a mesh, and return what its program does."""
    sizes = MESHES[devices]
    kinds = (AxisType.Auto,) * len(sizes)
    some = jax.devices()[:devices]
    mesh = jax.make_mesh(tuple(sizes.values()), tuple(sizes), axis_types=kinds, devices=some)
    cut = (tuple(axis for axis in axes if axis in sizes) or None for axes in LAYOUTS[layout])
    sharding = NamedSharding(mesh, P(*cut))
    leaves = {
        path: jax.ShapeDtypeStruct(shape, "float32", sharding=sharding)
        for path, shape in stack_of(stack).items()
    }
    optimizer = optimizers(tuple(sizes))[name]
    with jax.set_mesh(mesh):
        state = jax.eval_shape(optimizer.init, leaves)
        executable = jax.jit(optimizer.update).lower(leaves, state).compile()
    program = Program(executable.as_text())
    sent: dict[str, int] = {}
    for one in program.collectives:
        sent[one.kind] = sent.get(one.kind, 0) + one.times
    return {
        "kind": "devices",
        "stack": stack,
        "devices": devices,
        "layout": layout,
        "row": name,
        "product_flops": program.product_flops,
        "received": program.received,
        "sent": sent,
        "temporary": temporary(executable),
    }


def main() -> None:
    """Print one line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("stacks", nargs="+")
    parser.add_argument("--devices", nargs="+", type=int, choices=(1, 2, 4, 8), default=[8])
    options = parser.parse_args()
    jax.config.update("jax_disable_most_optimizations", True)  # the products are the same
    for stack in options.stacks:
        for devices in options.devices:
            for layout, name in cases(devices):
                print(json.dumps(record(stack, devices, layout, name)), flush=True)


if __name__ == "__main__":
    main()
