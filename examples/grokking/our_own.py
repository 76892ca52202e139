"""Controls and questions of our own, most of them on addition modulo 97."""

import dataclasses

from grokking.recipes import RECIPES
from grokking.rows import Experiment, changed, sweep


def both() -> Experiment:
    changes = {"matrices": "all", "method": "auto", "switch_off": None, "epochs": 60}
    rows = [
        changed(RECIPES[f"{op}-{p}"], f"{op}-{p}", f"{op}, p = {p}", 5, **changes)
        for p in (79, 97, 127)
        for op in ("addition", "multiplication")
    ]
    return Experiment("both", "Both matrices whitened", tuple(rows))


def peers() -> Experiment:
    """Addition modulo 97 with tuned peers: four settings each."""
    base = dataclasses.replace(RECIPES["addition-97"], method="auto", matrices="all")
    base = dataclasses.replace(base, switch_off=None, epochs=100)
    adam = {"gradient": "raw", "optimizer": "adam", "decay": "decoupled"}
    muon = {"gradient": "raw", "optimizer": "muon", "decay": "decoupled"}
    kinds = {
        "egd": ("EGD, both matrices", {}, (0.7, 1.0), (3e-5, 1e-4)),
        "adamw": ("AdamW", adam, (0.01, 0.03), (0.3, 1.0)),
        "muon": ("Muon", muon, (0.05, 0.2), (0.03, 0.1)),
        "grokfast": (
            "Grokfast and AdamW",
            adam | {"gradient": "grokfast_ema"},
            (0.01, 0.03),
            (0.3, 1.0),
        ),
    }
    rows = sweep(base, kinds)
    return Experiment("peers", "Addition modulo 97 against tuned peers", rows)


def spectra() -> Experiment:
    base = RECIPES["addition-97"]
    early = (0, 1, 2, 5, 10, 20, 40, 60, 80, 100, 120, 150)
    late = (0, 10, 30, 100, 300, 1_000, 2_000, 3_000, 4_000, 5_000)
    egd = {"epochs": 160, "target": None, "switch_off": None, "spectra_at": early}
    rows = (
        changed(base, "sgd", "SGD", 1, gradient="raw", measure_every=10, target=None, epochs=6_000,
             spectra_at=late),
        changed(base, "egd", "EGD, coupled decay", 1, **egd),
        changed(base, "egd-decoupled", "EGD, decoupled decay", 1, decay="decoupled", **egd),
    )  # fmt: skip
    return Experiment("spectra", "The gradient's spectrum in the course of training", rows)


def decay() -> Experiment:
    base = dataclasses.replace(RECIPES["addition-97"], epochs=300)
    coupled = [(0.0, 1), (1e-5, 1), (1e-4, 3), (1e-3, 1)]
    decoupled = [(1e-4, 2), (1e-2, 3), (1e-1, 1)]
    rows = [
        changed(
            base, f"{kind}-{decay:g}", f"{kind}, {decay:g}", seeds, decay=kind, weight_decay=decay
        )
        for kind, settings in (("coupled", coupled), ("decoupled", decoupled))
        for decay, seeds in settings
    ]
    return Experiment("decay", "Coupled and decoupled decay, addition modulo 97", tuple(rows))


def switch() -> Experiment:
    base = dataclasses.replace(RECIPES["addition-97"], epochs=400, epochs_after_target=60)
    rows = [
        changed(base, "never", "never", switch_off=None),
        changed(base, "0.95-unlatched", "above 95 %, not latched (the published code)"),
        changed(base, "0.3-unlatched", "above 30 %, not latched", switch_off=0.3),
        *(
            changed(
                base,
                f"{at:g}-latched",
                f"above {100 * at:.0f} %, latched",
                switch_off=at,
                latch=True,
            )
            for at in (0.3, 0.95, 0.99)
        ),
    ]
    return Experiment("switch", "When EGD is switched off, addition modulo 97", tuple(rows))


def length() -> Experiment:
    """Is it the equal speeds, or only that a whitened step does not shrink with the gradient?"""
    base = dataclasses.replace(RECIPES["addition-97"], epochs=400, gradient="norm")
    rows = tuple(
        changed(base, f"norm-{rate:g}", f"learning rate {rate:g}", seeds, learning_rate=rate)
        for rate, seeds in ((0.07, 2), (0.2, 2), (0.7, 3))
    )
    return Experiment("length", "A gradient scaled to EGD's length, addition modulo 97", rows)


def floor() -> Experiment:
    base = dataclasses.replace(RECIPES["addition-97"], epochs=400)
    rows = [
        changed(base, "relative", "relative tolerance 1e-5 (ours)"),
        *(
            changed(base, f"{floor:g}", f"absolute floor {floor:g}", floor=floor)
            for floor in (1e-6, 1e-4)
        ),
    ]
    return Experiment("floor", "Absolute floor or relative tolerance", tuple(rows))


def power() -> Experiment:
    base = dataclasses.replace(RECIPES["addition-97"], epochs=300, switch_off=None)
    settings = {0.5: (2.0, 7.0, 20.0), 0.0: (0.7,)}
    settings[-0.5] = (0.07, 0.02, 7e-3)
    rows = [
        changed(base, f"{q:g}-lr{rate:g}", f"q = {q:g}", 1, power=q, learning_rate=rate)
        for q, rates in settings.items()
        for rate in rates
    ]
    return Experiment("power", "Fractional whitening U S^q V^T, addition modulo 97", tuple(rows))


def methods() -> Experiment:
    base = dataclasses.replace(RECIPES["addition-97"], epochs=400)
    rows = (
        changed(base, "svd", "SVD", 5),
        changed(base, "gram", "Gram", 5, method="gram"),
        changed(base, "newton_schulz", "Newton-Schulz, 8 steps", 2, method="newton_schulz"),
        changed(base, "streaming128", "Streaming, rank 128", 2, method="streaming", rank=128),
        changed(base, "every2", "SVD, every 2nd step", 1, every=2),
        changed(base, "every4", "SVD, every 4th step", 1, every=4),
        changed(base, "blend400", "SVD, blended in over 400 steps", 1, blend_steps=400),
    )
    return Experiment("methods", "How the whitening is done, addition modulo 97", rows)


def parity_seeds() -> Experiment:
    """Parity k = 3 and 4 is learnt or not depending on the seed: ten of them, and what helps."""
    rows = []
    for k in (3, 4):
        base = dataclasses.replace(RECIPES[f"parity-{k}"], epochs=300)
        sgd = {"gradient": "raw", "epochs": 1_000, "measure_every": 10}
        average = {"momentum": 0.98, "learning_rate": 0.02}
        rows += [
            changed(base, f"k{k}-sgd", f"k = {k}, SGD", 10, **sgd),
            changed(base, f"k{k}-egd", f"k = {k}, EGD", 10),
            changed(base, f"k{k}-egd-average", f"k = {k}, EGD of a moving average", 3, **average),
        ]  # fmt: skip
    return Experiment("parity-seeds", "Parity k = 3 and 4, seed by seed", tuple(rows))
