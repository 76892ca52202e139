"""Count products and received bytes on forced CPU devices, from the compiled program.

As a program, which `benchmarks.scale` starts with eight devices, it prints JSON lines:

    PYTHONPATH=examples XLA_FLAGS=--xla_force_host_platform_device_count=8 \
        python -m benchmarks.scale_devices 24x256x1024 gpt2-small --devices 1 2 4 8

Nothing is run. FLOPs inside LAPACK's Cholesky factors and solves are not counted: XLA's program
only calls them.
"""

import argparse
import functools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

import jax
import optax
import optax.contrib
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmarks.programs import Program
from benchmarks.scale_models import FIVE, Shapes, shapes, temporary
from egd_optax import polar, scale_by_egd

LAYOUTS = {
    "replicated": P(),
    "rows cut": P(("a", "b"), None),
    "columns cut": P(None, ("a", "b")),
    "two axes": P("a", "b"),
    "rows cut over half": P("a", None),
}
WITHOUT = ", without mesh_axes"
AXES = ("a", "b")


def stack_of(name: str) -> Shapes:
    """Return the matrices of `24x256x1024`, or of a model's kernels."""
    if found := re.fullmatch(r"(\d+)x(\d+)x(\d+)", name):
        count, m, n = map(int, found.groups())
        return {f"matrix{i}": (m, n) for i in range(count)}
    return {path: (math.prod(rows), n) for path, (*rows, n) in shapes(name).items()}


def optimizers() -> dict[str, optax.GradientTransformation]:
    """Return the transformations, ours with and without the axes of the mesh."""
    ours = {"five steps": FIVE, "exact": polar.Auto()}
    found = {name: scale_by_egd(method, mesh_axes=AXES) for name, method in ours.items()}
    found |= {name + WITHOUT: scale_by_egd(method) for name, method in ours.items()}
    found["exact, matrices cut"] = scale_by_egd(mesh_axes=AXES, mesh_cut="matrix")
    found["five steps, matrices cut"] = scale_by_egd(FIVE, mesh_axes=AXES, mesh_cut="matrix")
    numbers = optax.contrib.MuonDimensionNumbers()
    found["peer: optax muon"] = optax.contrib.scale_by_muon(
        beta=0.0,  # the average is the gradient
        nesterov=False,
        weight_dimension_numbers=functools.partial(jax.tree.map, lambda _: numbers),
    )
    return found


def cases(devices: int) -> Iterator[tuple[str, str]]:
    """Yield layouts and transformations: what leaves the mesh out, on the most devices alone."""
    whole = devices == 8
    for layout in LAYOUTS if whole else [*LAYOUTS][:4]:
        for name in optimizers():
            if layout == "rows cut over half" and name not in ("five steps", "exact"):
                continue
            if WITHOUT in name and not (whole and layout in ("replicated", "rows cut")):
                continue
            if "matrices cut" in name and not (whole and layout == "columns cut"):
                continue
            if devices > 1 or layout == "replicated":
                yield layout, name


def record(stack: str, devices: int, layout: str, name: str) -> dict[str, Any]:
    """Compile one update for a mesh, and return what its program does."""
    sizes = {1: (1, 1), 2: (2, 1), 4: (2, 2), 8: (4, 2)}[devices]
    mesh = jax.make_mesh(
        sizes, AXES, axis_types=(AxisType.Auto,) * 2, devices=jax.devices()[:devices]
    )
    sharding = NamedSharding(mesh, LAYOUTS[layout])
    leaves = {
        path: jax.ShapeDtypeStruct(shape, "float32", sharding=sharding)
        for path, shape in stack_of(stack).items()
    }
    optimizer = optimizers()[name]
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
