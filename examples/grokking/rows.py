"""A table of runs: its rows, their seeds, and the paper's figures for them."""

import csv
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grokking.config import Config
from grokking.recipes import RECIPES

LOGS = Path(__file__).parent / "logs"
PUBLISHED = Path(__file__).parent / "published.csv"


@dataclasses.dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone.

    Args:
        name: file name of the logs, unique in the experiment.
        label: name for people.
        config: the run of seed 0.
        seeds: number of seeds, from 0 on.
        published: key (variant, method) of the paper's figure in published.csv, if it has one.
    """

    name: str
    label: str
    config: Config
    seeds: int = 3
    published: tuple[str, str] | None = None

    def runs(self) -> list[Config]:
        return [dataclasses.replace(self.config, seed=seed) for seed in range(self.seeds)]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A table of the pages: its rows, and what is counted (epochs or steps)."""

    name: str
    title: str
    rows: tuple[Row, ...]
    unit: str = "epochs"

    def log_of(self, row: Row, seed: int, logs: Path = LOGS) -> Path:
        return logs / self.name / f"{row.name}-seed{seed}.jsonl"


@functools.cache
def published() -> dict[tuple[str, str, str], tuple[float | None, float | None]]:
    """Return the paper's epochs (or steps) and seconds by (table, variant, method)."""
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return {
            (line["table"], line["variant"], line["method"]): (
                float(line["epochs_or_steps"]) if line["epochs_or_steps"] else None,
                float(line["seconds"]) if line["seconds"] else None,
            )
            for line in csv.DictReader(file)
        }


def changed(base: Config, name: str, label: str, seeds: int = 3, **changes: Any) -> Row:
    return Row(name, label, dataclasses.replace(base, **changes), seeds)


def paper_rows(recipe: str, variant: str, kinds: dict[str, tuple[str, dict, int]]) -> list[Row]:
    """Return one row a method of a table of the paper, beside the paper's figure."""
    return [
        Row(
            f"{variant.replace('=', '')}-{method}",
            f"{variant}, {label}",
            dataclasses.replace(RECIPES[recipe], **changes),
            seeds,
            (variant, method),
        )
        for method, (label, changes, seeds) in kinds.items()
    ]


def sweep(
    base: Config,
    kinds: Mapping[str, tuple[str, dict[str, Any], Sequence[float], Sequence[float]]],
) -> tuple[Row, ...]:
    """Return a row for each learning rate and decay of each kind: label, changes, rates, decays."""
    return tuple(
        changed(
            base,
            f"{name}-lr{rate:g}-wd{decay:g}",
            label,
            learning_rate=rate,
            weight_decay=decay,
            **changes,
        )
        for name, (label, changes, rates, decays) in kinds.items()
        for rate in rates
        for decay in decays
    )


def sketch(rank: int) -> dict[str, Any]:
    return {"method": "randomized", "rank": rank}
