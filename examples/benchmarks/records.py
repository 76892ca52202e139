"""Logs of the benchmarks: JSON lines, the first with the whole configuration and the machine."""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import jax
from threadpoolctl import threadpool_limits

PACKAGES = {"egd_optax": "egd-optax", "jax": "jax", "jaxlib": "jaxlib", "optax": "optax"}
PACKAGES |= {"flax": "flax", "numpy": "numpy"}


def one_blas_thread() -> contextlib.AbstractContextManager:
    """Return a context in which BLAS has one thread, as by OPENBLAS_NUM_THREADS=1."""
    return threadpool_limits(limits=1, user_api="blas")


def begin(config: Any) -> tuple[Path, list[dict]]:
    """Return a free path for the log of a dataclass with `out`, and the log's first line."""
    out = free_file(config.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.touch()  # fails now rather than after the measurements
    recipe = {**dataclasses.asdict(config), "out": str(out)}
    return out, [{"kind": "recipe", "config": recipe, **environment()}]


def free_file(path: Path) -> Path:
    """Return `path`, or the first of `path`-2, -3, ... that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_stem(f"{path.stem}-{number}")
    return candidate


def environment() -> dict[str, Any]:
    """Return the versions, the hardware and the start: times depend on them."""
    device = jax.devices()[0]
    versions = {name: importlib.metadata.version(package) for name, package in PACKAGES.items()}
    return {
        "versions": {"python": platform.python_version(), **versions},
        "hardware": {
            "platform": device.platform,
            "device_kind": device.device_kind,
            "devices": jax.device_count(),
            "cpu_count": os.cpu_count(),
            "machine": platform.machine(),
        },
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def write(out: Path, lines: list[dict]) -> None:
    """Write the lines that there are."""
    out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read(path: Path) -> tuple[dict, list[dict]]:
    """Return the recipe and the measurements of a log."""
    recipe, *measurements = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return recipe, measurements
