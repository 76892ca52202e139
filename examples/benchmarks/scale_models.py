"""Kernels of known models with their multiplicity, and the optimizers that are compared on them.

As a program it compiles one optimizer for a model that is too large to run, and prints JSON lines:

    PYTHONPATH=examples python -m benchmarks.scale_models llama-7b "egd, exact"
"""

import functools
import json
import re
import sys
import time
from collections.abc import Callable

import jax
import optax
import optax.contrib

from egd_optax import MatrixAxes, egd, polar, scale_by_egd

Shapes = dict[str, tuple[int, ...]]  # by path; convolutions are (height, width, in, out)
FIVE = polar.NewtonSchulz("standard", steps=5)
THREE = polar.NewtonSchulz("three_steps")
STACK = 2**29  # entries; only Llama's stacks reach the default, 2**26


def transformer(layers: int, width: int) -> Shapes:
    """Return GPT-2's kernels: query, key and value are one."""
    block = {"qkv": (width, 3 * width), "o": (width, width)}
    block |= {"up": (width, 4 * width), "down": (4 * width, width)}
    return _repeated(layers, block)


def llama(layers: int, width: int, hidden: int, keys: int) -> Shapes:
    """Return Llama's kernels; `keys` is the width of all key heads together."""
    block = {"q": (width, width), "k": (width, keys), "v": (width, keys), "o": (width, width)}
    block |= {"gate": (width, hidden), "up": (width, hidden), "down": (hidden, width)}
    return _repeated(layers, block)


def vision_transformer(layers: int, width: int, patch: int) -> Shapes:
    """Return ViT's kernels: a transformer's, and the convolution that makes patches."""
    return {"patches": (patch, patch, 3, width), **transformer(layers, width)}


def resnet50() -> Shapes:
    """Return ResNet-50's 53 convolutions."""
    found: Shapes = {"stem": (7, 7, 3, 64)}
    before = 64
    for stage, (blocks, width) in enumerate(((3, 64), (4, 128), (6, 256), (3, 512))):
        for block in range(blocks):
            name = f"stage{stage}/block{block}"
            found[f"{name}/reduce"] = (1, 1, before, width)
            found[f"{name}/window"] = (3, 3, width, width)
            found[f"{name}/expand"] = (1, 1, width, 4 * width)
            if block == 0:
                found[f"{name}/shortcut"] = (1, 1, before, 4 * width)
            before = 4 * width
    return found


def _repeated(layers: int, block: Shapes) -> Shapes:
    return {f"layer{i}/{name}": shape for i in range(layers) for name, shape in block.items()}


NAMED: dict[str, Callable[[], Shapes]] = {
    "gpt2-small": functools.partial(transformer, 12, 768),
    "gpt2-medium": functools.partial(transformer, 24, 1024),
    "vit-s16": functools.partial(vision_transformer, 12, 384, 16),
    "resnet-50": resnet50,
    "llama-7b": functools.partial(llama, 32, 4096, 11008, 4096),
    "llama-7b-layer": functools.partial(llama, 1, 4096, 11008, 4096),
    "llama-405b": functools.partial(llama, 126, 16384, 53248, 1024),
}


def shapes(model: str) -> Shapes:
    """Return the kernels of a model by name, or of 4x128: 4 layers of width 128.

    Raises:
        ValueError: another name.
    """
    if model in NAMED:
        return NAMED[model]()
    if found := re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", model):
        return transformer(int(found[1]), int(found[2]))
    raise ValueError(f"a model is one of {', '.join(NAMED)}, or as 4x128, got {model!r}.")


def matrix(shape: tuple[int, ...]) -> tuple[int, int]:
    """Return short and long side of a kernel's matrix."""
    *rows, columns = shape
    m, n = sorted((functools.reduce(int.__mul__, rows), columns))
    return m, n


def _axes(shape: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """Return rows, a convolution's window among them, and columns."""
    return tuple(range(len(shape) - 1)), len(shape) - 1


def optimizers(kernels: Shapes) -> dict[str, optax.GradientTransformation]:
    """Return the optimizers by name; all but AdamW whiten every kernel."""
    numbers = {
        name: optax.contrib.MuonDimensionNumbers(*_axes(shape)) for name, shape in kernels.items()
    }
    axes = {name: MatrixAxes(*_axes(shape)) for name, shape in kernels.items()}
    ours = functools.partial(
        egd,
        0.02,
        momentum=0.95,
        nesterov=True,
        axes=axes,
        scale="muon",
        decay="decoupled",
        max_stack_size=STACK,
    )
    return {
        "AdamW": optax.adamw(1e-3),
        "peer: optax muon": optax.contrib.muon(0.02, muon_weight_dimension_numbers=numbers),
        "egd, five steps": ours(method=FIVE),
        "egd, three steps": ours(method=THREE),
        "egd, exact": ours(),
        "whitening alone, five steps": scale_by_egd(FIVE, axes=axes, max_stack_size=STACK),
    }


def structs(kernels: Shapes) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the kernels as shapes in float32."""
    return {name: jax.ShapeDtypeStruct(shape, "float32") for name, shape in kernels.items()}


def lower(optimizer: optax.GradientTransformation, kernels: Shapes) -> jax.stages.Lowered:
    """Trace one update of all kernels; the state is given up for the next."""
    tree = structs(kernels)
    update = jax.jit(optimizer.update, donate_argnums=1)
    return update.lower(tree, jax.eval_shape(optimizer.init, tree), tree)


def main(model: str, name: str) -> None:
    """Print how long one optimizer takes to trace, then to compile, and the memory it needs."""
    kernels = shapes(model)
    optimizer = optimizers(kernels)[name]
    start = time.perf_counter()
    lowered = lower(optimizer, kernels)
    traced = time.perf_counter()
    print(json.dumps({"trace_seconds": traced - start}), flush=True)
    executable = lowered.compile()
    seconds = time.perf_counter() - traced
    print(json.dumps({"compile_seconds": seconds, "temporary": temporary(executable)}), flush=True)


def temporary(executable: jax.stages.Compiled) -> int | None:
    """Return the bytes that a program needs beside arguments and results, where known."""
    analysis = executable.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)


if __name__ == "__main__":
    main(*sys.argv[1:])
