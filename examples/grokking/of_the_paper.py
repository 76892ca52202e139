"""The runs of the paper's tables 2 to 4 and 6 to 8."""

import dataclasses
from pathlib import Path

from grokking.config import Config
from grokking.images import Images
from grokking.recipes import RECIPES
from grokking.rows import Experiment, Row, changed, paper_rows, sketch, sweep

EPOCHS_OF_A_PHASE = 20


def modular(table: str, operation: str) -> Experiment:
    cap = {"epochs": 1_000}
    kinds = {
        "sgd": ("SGD", {"gradient": "raw", "measure_every": 10}, 1),
        "egd_svd": ("EGD", cap, 3),
        "egd_rsvd128": ("EGD, sketch 128", cap | sketch(128), 3),
        "egd_rsvd64": ("EGD, sketch 64", cap | sketch(64), 3),
        "column_norm": (
            "column norm",
            {"gradient": "column_norm", "epochs": 3_000, "measure_every": 2},
            3,
        ),
    }
    rows = [row for p in (79, 97, 127) for row in paper_rows(f"{operation}-{p}", f"p={p}", kinds)]
    return Experiment(table, f"Modular {operation}", tuple(rows))


def parity() -> Experiment:
    kinds = {
        "sgd": ("SGD", {"gradient": "raw"}, {2: 16_000, 3: 4_000, 4: 12_000}),
        "egd_svd": ("EGD", {}, {2: 1_000, 3: 1_000, 4: 2_500}),
        "egd_rsvd40": ("EGD, sketch 40", sketch(40), {2: 1_000, 3: 1_000}),
        "egd_rsvd30": ("EGD, sketch 30", sketch(30), {2: 2_000, 3: 1_000, 4: 1_000}),
        "egd_rsvd20": ("EGD, sketch 20", sketch(20), {2: 3_000, 3: 1_000, 4: 2_000}),
        "egd_rsvd10": ("EGD, sketch 10", sketch(10), {2: 6_000, 3: 2_000, 4: 3_000}),
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
        rows += paper_rows(f"parity-{k}", f"k={k}", chosen)
    return Experiment("T4", "Sparse parity", tuple(rows))


def _paced(epochs: int) -> dict[str, int]:
    """Return a cap, and how often to measure so that a log stays small."""
    every = 10 if epochs > 3_000 else 2 if epochs > 1_000 else 1
    return {"epochs": epochs, "measure_every": every}


def transformer() -> Experiment:
    """Multiplication modulo 97; where the decay joins is not in the text, so both ways are here."""
    base = dataclasses.replace(RECIPES["transformer-97"], epochs=280)
    plain = {"gradient": "raw", "measure_every": 2}
    undecayed = {"weight_decay": 0.0, "epochs": 160, "measure_every": 2}
    coupled = {"decay": "coupled"}
    variant = "p=97"
    rows = (
        Row("adam", "Adam, no decay", dataclasses.replace(base, gradient="raw", **undecayed), 1,
            (variant, "adam")),
        Row("grokfast_ema-nodecay", "Grokfast-EMA, no decay",
            dataclasses.replace(base, gradient="grokfast_ema", **undecayed), 1),
        Row("egd-nodecay", "EGD, no decay", dataclasses.replace(base, **undecayed), 1),
        Row("adam-decay", "Adam, decay 0.005", dataclasses.replace(base, **plain), 2),
        Row("grokfast_ema", "Grokfast-EMA", dataclasses.replace(base, gradient="grokfast_ema"), 2,
            (variant, "grokfast")),
        Row("grokfast_ma", "Grokfast-MA", dataclasses.replace(base, gradient="grokfast_ma"), 1),
        Row("egd", "EGD, coupled decay", dataclasses.replace(base, **coupled), 2,
            (variant, "egd_svd")),
        Row("egd-between", "EGD, decay after it", base, 2),
        Row("egd_rsvd36", "EGD, sketch 36, coupled decay",
            dataclasses.replace(base, **coupled, **sketch(36)), 1, (variant, "egd_rsvd36")),
    )  # fmt: skip
    return Experiment("T7", "Transformer on multiplication modulo 97", rows, "steps")


def digits() -> Experiment:
    """T6 on the digits: every method gets the same four settings, the published one among them."""
    base = RECIPES["digits"]
    kinds = {
        "adamw": ("AdamW", {"gradient": "raw"}),
        "grokfast": ("Grokfast", {"gradient": "grokfast_ema"}),
        "egd": ("EGD", {}),
        "egd_rsvd16": ("EGD, sketch 16", sketch(16)),
        "egd_rsvd4": ("EGD, sketch 4", sketch(4)),
        "muon": ("Muon", {"gradient": "raw", "optimizer": "muon"}),
    }
    grid = {
        name: (label, changes, (1e-3, 3e-3), (2.0, 4.0)) for name, (label, changes) in kinds.items()
    }
    rows = sweep(base, grid)
    return Experiment("T6", "Digits, few points, large initial values", rows, "steps")


def relabelled() -> Experiment:
    """T8 on the digits."""
    rows = _phases(RECIPES["digits-relabelled"], (2, 5, 10))
    return Experiment("T8", "Digits with re-shuffled labels", tuple(rows), "area")


def from_folder(folder: Path) -> dict[str, Experiment]:
    """Return tables 6 and 8 themselves, for whoever has the files of MNIST or CIFAR-10."""
    digits = dataclasses.replace(RECIPES["mnist"], task=Images("mnist", 1_000, str(folder)))
    kinds = {
        "adamw": ("AdamW", {"gradient": "raw"}),
        "grokfast": ("Grokfast", {"gradient": "grokfast_ema"}),
        "egd_svd": ("EGD", {}),
        **{f"egd_rsvd{rank}": (f"EGD, sketch {rank}", sketch(rank)) for rank in (16, 8, 4)},
    }
    rows = [changed(digits, name, label, 1, **changes) for name, (label, changes) in kinds.items()]
    labels = RECIPES["cifar10-relabelled"]
    labels = dataclasses.replace(labels, task=dataclasses.replace(labels.task, folder=str(folder)))
    return {
        "mnist": Experiment("mnist", "MNIST, few points", tuple(rows), "steps"),
        "cifar10": Experiment(
            "cifar10", "CIFAR-10, re-shuffled", tuple(_phases(labels, (2, 4, 5, 10), 1)), "area"
        ),
    }


def _phases(base: Config, counts: tuple[int, ...], seeds: int = 3) -> list[Row]:
    return [
        changed(
            base,
            f"{phases - 1}-{optimizer}-{gradient}",
            f"{phases - 1} shuffles, {optimizer}{' after EGD' if gradient == 'egd' else ''}",
            seeds,
            phases=phases,
            epochs=EPOCHS_OF_A_PHASE * phases,
            optimizer=optimizer,
            gradient=gradient,
        )
        for phases in counts
        for optimizer in ("adam", "radam", "rmsprop")
        for gradient in ("raw", "egd")
    ]
