"""Every experiment as data: which runs, how many seeds, and what the paper has for them.

`paper.py` runs them and `pages.py` makes tables and figures from their logs.
"""

import csv
import dataclasses
from pathlib import Path
from typing import Any

from egd_optax.grokking import RECIPES, Config

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


def _row(base: Config, name: str, label: str, seeds: int = 3, **changes: Any) -> Row:
    return Row(name, label, dataclasses.replace(base, **changes), seeds)


def _paper_rows(recipe: str, variant: str, kinds: dict[str, tuple[str, dict, int]]) -> list[Row]:
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


def _sketch(rank: int) -> dict[str, Any]:
    return {"method": "randomized", "rank": rank}


def _modular(table: str, operation: str) -> Experiment:
    cap = {"epochs": 1_000}
    kinds = {
        "sgd": ("SGD", {"gradient": "raw", "measure_every": 10}, 1),
        "egd_svd": ("EGD", cap, 3),
        "egd_rsvd128": ("EGD, sketch 128", cap | _sketch(128), 3),
        "egd_rsvd64": ("EGD, sketch 64", cap | _sketch(64), 3),
        "column_norm": (
            "column norm",
            {"gradient": "column_norm", "epochs": 3_000, "measure_every": 2},
            3,
        ),
    }
    rows = [row for p in (79, 97, 127) for row in _paper_rows(f"{operation}-{p}", f"p={p}", kinds)]
    return Experiment(table, f"Modular {operation}", tuple(rows))


def _parity() -> Experiment:
    kinds = {
        "sgd": ("SGD", {"gradient": "raw"}, {2: 16_000, 3: 4_000, 4: 12_000}),
        "egd_svd": ("EGD", {}, {2: 1_000, 3: 1_000, 4: 2_500}),
        "egd_rsvd40": ("EGD, sketch 40", _sketch(40), {2: 1_000, 3: 1_000}),
        "egd_rsvd30": ("EGD, sketch 30", _sketch(30), {2: 2_000, 3: 1_000, 4: 1_000}),
        "egd_rsvd20": ("EGD, sketch 20", _sketch(20), {2: 3_000, 3: 1_000, 4: 2_000}),
        "egd_rsvd10": ("EGD, sketch 10", _sketch(10), {2: 6_000, 3: 2_000, 4: 3_000}),
        "column_norm": (
            "column norm",
            {"gradient": "column_norm"},
            {2: 2_000, 3: 1_000, 4: 2_500},
        ),
    }
    rows: list[Row] = []
    for k in (2, 3, 4):
        chosen = {
            method: (label, {**changes, **_paced(caps[k])}, 3)
            for method, (label, changes, caps) in kinds.items()
            if k in caps
        }
        rows += _paper_rows(f"parity-{k}", f"k={k}", chosen)
    return Experiment("T4", "Sparse parity", tuple(rows))


def _paced(epochs: int) -> dict[str, int]:
    """Return a cap, and how often to measure so that a log stays small."""
    every = 10 if epochs > 3_000 else 2 if epochs > 1_000 else 1
    return {"epochs": epochs, "measure_every": every}


def _both() -> Experiment:
    changes = {"matrices": "all", "method": "auto", "switch_off": None, "epochs": 60}
    rows = [
        _row(RECIPES[f"{op}-{p}"], f"{op}-{p}", f"{op}, p = {p}", 5, **changes)
        for p in (79, 97, 127)
        for op in ("addition", "multiplication")
    ]
    return Experiment("both", "Both matrices whitened", tuple(rows))


def _transformer() -> Experiment:
    """Multiplication modulo 97; where the decay joins is not in the text, so both ways are here."""
    base = dataclasses.replace(RECIPES["transformer-97"], epochs=280)
    plain = {"gradient": "raw", "measure_every": 2}
    undecayed = plain | {"weight_decay": 0.0, "epochs": 160}
    coupled = {"decay": "coupled"}
    variant = "p=97"
    rows = (
        Row("adam", "Adam, no decay", dataclasses.replace(base, **undecayed), 1,
            (variant, "adam")),
        Row("adam-decay", "Adam, decay 0.005", dataclasses.replace(base, **plain), 1),
        Row("grokfast_ema", "Grokfast-EMA", dataclasses.replace(base, gradient="grokfast_ema"), 2,
            (variant, "grokfast")),
        Row("grokfast_ma", "Grokfast-MA", dataclasses.replace(base, gradient="grokfast_ma"), 1),
        Row("egd", "EGD, coupled decay", dataclasses.replace(base, **coupled), 2,
            (variant, "egd_svd")),
        Row("egd-between", "EGD, decay after it", base, 1),
        Row("egd_rsvd36", "EGD, sketch 36, coupled decay",
            dataclasses.replace(base, **coupled, **_sketch(36)), 1, (variant, "egd_rsvd36")),
    )  # fmt: skip
    return Experiment("T7", "Transformer on multiplication modulo 97", rows, "steps")


def _digits() -> Experiment:
    """T6 on the digits: every method gets the same six settings, the published one among them."""
    base = RECIPES["digits"]
    kinds = {
        "adamw": ("AdamW", {"gradient": "raw"}),
        "grokfast": ("Grokfast", {"gradient": "grokfast_ema"}),
        "egd": ("EGD", {}),
        "egd_rsvd16": ("EGD, sketch 16", _sketch(16)),
        "egd_rsvd8": ("EGD, sketch 8", _sketch(8)),
        "egd_rsvd4": ("EGD, sketch 4", _sketch(4)),
        "muon": ("Muon", {"gradient": "raw", "optimizer": "muon"}),
    }
    rows = [
        _row(
            base,
            f"{name}-lr{rate:g}-wd{decay:g}",
            label,
            learning_rate=rate,
            weight_decay=decay,
            **changes,
        )
        for name, (label, changes) in kinds.items()
        for rate in (1e-3, 3e-3)
        for decay in (1.0, 2.0, 4.0)
    ]
    return Experiment("T6", "Digits, few points, large initial values", tuple(rows), "steps")


def _relabelled() -> Experiment:
    base = RECIPES["digits-relabelled"]
    rows = [
        _row(
            base,
            f"{phases - 1}-{optimizer}-{gradient}",
            f"{phases - 1} shuffles, {optimizer}{' after EGD' if gradient == 'egd' else ''}",
            phases=phases,
            epochs=EPOCHS_OF_A_PHASE * phases,
            optimizer=optimizer,
            gradient=gradient,
        )
        for phases in (2, 4, 5, 10)
        for optimizer in ("adam", "radam", "rmsprop")
        for gradient in ("raw", "egd")
    ]
    return Experiment("T8", "Digits with re-shuffled labels", tuple(rows), "area")


def _peers() -> Experiment:
    """Addition modulo 97 with tuned peers: six settings each."""
    base = dataclasses.replace(RECIPES["addition-97"], method="auto", matrices="all")
    base = dataclasses.replace(base, switch_off=None, epochs=100)
    adam = {"gradient": "raw", "optimizer": "adam", "decay": "decoupled"}
    muon = {"gradient": "raw", "optimizer": "muon", "decay": "decoupled"}
    kinds = {
        "egd": ("EGD, both matrices", {}, (0.35, 0.7, 1.0), (3e-5, 1e-4)),
        "adamw": ("AdamW", adam, (0.003, 0.01, 0.03), (0.3, 1.0)),
        "muon": ("Muon", muon, (0.02, 0.05, 0.2), (0.03, 0.1)),
        "grokfast": (
            "Grokfast and AdamW",
            adam | {"gradient": "grokfast_ema"},
            (0.003, 0.01, 0.03),
            (0.3, 1.0),
        ),
    }
    rows = [
        _row(
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
    ]
    return Experiment("peers", "Addition modulo 97 against tuned peers", tuple(rows))


def _spectra() -> Experiment:
    base = RECIPES["addition-97"]
    early = (0, 1, 2, 5, 10, 20, 40, 60, 80, 100, 120, 150)
    late = (0, 10, 30, 100, 300, 1_000, 2_000, 3_000, 4_000, 5_000)
    egd = {"epochs": 160, "target": None, "switch_off": None, "spectra_at": early}
    rows = (
        _row(base, "sgd", "SGD", 1, gradient="raw", measure_every=10, target=None, epochs=6_000,
             spectra_at=late),
        _row(base, "egd", "EGD, coupled decay", 1, **egd),
        _row(base, "egd-decoupled", "EGD, decoupled decay", 1, decay="decoupled", **egd),
    )  # fmt: skip
    return Experiment("spectra", "The gradient's spectrum in the course of training", rows)


def _decay() -> Experiment:
    base = dataclasses.replace(RECIPES["addition-97"], epochs=300)
    coupled = [(0.0, 1), (1e-5, 1), (1e-4, 3), (3e-4, 1), (1e-3, 1)]
    decoupled = [(1e-4, 3), (1e-3, 1), (1e-2, 1), (1e-1, 1)]
    rows = [
        _row(base, f"{kind}-{decay:g}", f"{kind}, {decay:g}", seeds, decay=kind, weight_decay=decay)
        for kind, settings in (("coupled", coupled), ("decoupled", decoupled))
        for decay, seeds in settings
    ]
    return Experiment("decay", "Coupled and decoupled decay, addition modulo 97", tuple(rows))


def _switch() -> Experiment:
    base = dataclasses.replace(RECIPES["addition-97"], epochs=400, epochs_after_target=60)
    rows = [
        _row(base, "never", "never", switch_off=None),
        _row(base, "0.95-unlatched", "above 95 %, not latched (the published code)"),
        *(
            _row(base, f"{at:g}-latched", f"above {at:.0%}, latched", switch_off=at, latch=True)
            for at in (0.3, 0.7, 0.95, 0.99)
        ),
    ]
    return Experiment("switch", "When EGD is switched off, addition modulo 97", tuple(rows))


def _floor() -> Experiment:
    base = dataclasses.replace(RECIPES["addition-97"], epochs=400)
    rows = [
        _row(base, "relative", "relative tolerance 1e-5 (ours)"),
        *(
            _row(base, f"{floor:g}", f"absolute floor {floor:g}", floor=floor)
            for floor in (1e-8, 1e-6, 1e-5, 1e-4)
        ),
    ]
    return Experiment("floor", "Absolute floor or relative tolerance", tuple(rows))


def _power() -> Experiment:
    base = dataclasses.replace(RECIPES["addition-97"], epochs=300, switch_off=None)
    settings = {1.0: (0.7, 7.0, 70.0), 0.5: (0.7, 7.0, 70.0), 0.0: (0.35, 0.7, 1.4)}
    settings[-0.5] = (0.07, 7e-3, 7e-4)
    rows = [
        _row(base, f"{q:g}-lr{rate:g}", f"q = {q:g}", 1, power=q, learning_rate=rate)
        for q, rates in settings.items()
        for rate in rates
    ]
    return Experiment("power", "Fractional whitening U S^q V^T, addition modulo 97", tuple(rows))


def _methods() -> Experiment:
    base = dataclasses.replace(RECIPES["addition-97"], epochs=400)
    rows = (
        _row(base, "svd", "SVD", 6),
        _row(base, "gram", "Gram", 6, method="gram"),
        _row(base, "newton_schulz", "Newton-Schulz, 8 steps", method="newton_schulz"),
        _row(base, "streaming128", "Streaming, rank 128", method="streaming", rank=128),
        _row(base, "every2", "SVD, every 2nd step", every=2),
        _row(base, "every4", "SVD, every 4th step", every=4),
        _row(base, "blend100", "SVD, blended in over 100 steps", blend_steps=100),
        _row(base, "blend400", "SVD, blended in over 400 steps", blend_steps=400),
    )
    return Experiment("methods", "How the whitening is done, addition modulo 97", rows)


def _parity_seeds() -> Experiment:
    """Parity k = 3 and 4 is learnt or not depending on the seed: ten of them, and what helps."""
    rows = []
    for k in (3, 4):
        base = dataclasses.replace(RECIPES[f"parity-{k}"], epochs=300)
        sgd = {"gradient": "raw", "epochs": 2_000, "measure_every": 10}
        average = {"momentum": 0.98, "learning_rate": 0.02}
        rows += [
            _row(base, f"k{k}-sgd", f"k = {k}, SGD", 10, **sgd),
            _row(base, f"k{k}-egd", f"k = {k}, EGD", 10),
            _row(base, f"k{k}-egd-sketch30", f"k = {k}, EGD, sketch 30", 10, **_sketch(30)),
            _row(base, f"k{k}-egd-half", f"k = {k}, EGD, half the learning rate", 5,
                 learning_rate=base.learning_rate / 2),
            _row(base, f"k{k}-egd-batch128", f"k = {k}, EGD, batches of 128", 5, batch_size=128),
            _row(base, f"k{k}-egd-average", f"k = {k}, EGD of a moving average", 5, **average),
        ]  # fmt: skip
    return Experiment("parity-seeds", "Parity k = 3 and 4, seed by seed", tuple(rows))


EPOCHS_OF_A_PHASE = 30

EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        _modular("T2", "addition"),
        _modular("T3", "multiplication"),
        _parity(),
        _transformer(),
        _digits(),
        _relabelled(),
        _both(),
        _peers(),
        _spectra(),
        _decay(),
        _switch(),
        _floor(),
        _power(),
        _methods(),
        _parity_seeds(),
    )
}
