"""Logs of the benchmarks: JSON lines, the first with the whole configuration and the machine."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from egd_optax.grokking.record import check_writable, environment
from egd_optax.grokking.session import free_file


def begin(config: Any) -> tuple[Path, list[dict]]:
    """Return a free, writable path for the log of a dataclass with `out`, and its first line."""
    out = free_file(config.out)
    check_writable(out)
    recipe = {**dataclasses.asdict(config), "out": str(out)}
    return out, [{"kind": "recipe", "config": recipe, **environment()}]


def write(out: Path, lines: list[dict]) -> None:
    """Write the lines that there are."""
    out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def read(path: Path) -> tuple[dict, list[dict]]:
    """Return the recipe and the measurements of a log."""
    recipe, *measurements = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return recipe, measurements
