"""Controls and questions of our own, most on addition modulo 97, and the table of everything."""

from grokking import experiments
from grokking.experiments import PAPER, Experiment, changed

ADDITION = PAPER["addition-97"]
SGD = {"optimizer": "plain"}


def both() -> Experiment:
    changes = {"matrices": "all", "method": "auto", "switch_off": None, "epochs": 60}
    rows = [
        changed(PAPER[f"{op}-{p}"], f"{op}-{p}", f"{op}, p = {p}", 5, **changes)
        for p in (79, 97, 127)
        for op in ("addition", "multiplication")
    ]
    return Experiment("both", "Both matrices whitened", tuple(rows))


def spectra() -> Experiment:
    early = (0, 1, 2, 5, 10, 20, 40, 60, 80, 100, 120, 150)
    late = (0, 10, 30, 100, 300, 1_000, 2_000, 3_000, 4_000, 5_000)
    egd = {"epochs": 160, "target": None, "switch_off": None, "spectra_at": early}
    sgd = SGD | {"epochs": 6_000, "target": None, "measure_every": 10, "spectra_at": late}
    rows = (
        changed(ADDITION, "sgd", "SGD", 1, **sgd),
        changed(ADDITION, "egd", "EGD, coupled decay", 1, **egd),
        changed(ADDITION, "egd-decoupled", "EGD, decoupled decay", 1, decay="decoupled", **egd),
    )
    return Experiment("spectra", "The gradient's spectrum in the course of training", rows)


def decay() -> Experiment:
    coupled = [(0.0, 1), (1e-5, 1), (1e-4, 3), (1e-3, 1)]
    decoupled = [(1e-4, 2), (1e-2, 3), (1e-1, 1)]
    rows = [
        changed(
            ADDITION,
            f"{kind}-{decay:g}",
            f"{kind}, {decay:g}",
            seeds,
            decay=kind,
            weight_decay=decay,
            epochs=300,
        )
        for kind, settings in (("coupled", coupled), ("decoupled", decoupled))
        for decay, seeds in settings
    ]
    return Experiment("decay", "Coupled and decoupled decay, addition modulo 97", tuple(rows))


def switch() -> Experiment:
    base = ADDITION.changed(epochs=400, epochs_after_target=60)
    unlatched = "0.95-unlatched", "above 95 %, not latched (the published code)"
    rows = [
        changed(base, "never", "never", switch_off=None),
        changed(base, *unlatched),
        changed(base, "0.3-unlatched", "above 30 %, not latched", switch_off=0.3),
    ]
    for at in (0.3, 0.95, 0.99):
        label = f"above {100 * at:.0f} %, latched"
        rows.append(changed(base, f"{at:g}-latched", label, switch_off=at, latched=True))
    return Experiment("switch", "When EGD is switched off, addition modulo 97", tuple(rows))


def length() -> Experiment:
    """Is it the equal speeds, or only that a whitened step does not shrink with the gradient?"""
    base = ADDITION.changed(optimizer="scaled", rank=2 * 97, epochs=400)
    rows = tuple(
        changed(base, f"scaled-{rate:g}", f"learning rate {rate:g}", seeds, learning_rate=rate)
        for rate, seeds in ((0.07, 2), (0.2, 2), (0.7, 3))
    )
    return Experiment("length", "A gradient scaled to EGD's length, addition modulo 97", rows)


def floor() -> Experiment:
    base = ADDITION.changed(epochs=400)
    rows = [changed(base, "relative", "relative tolerance 1e-5 (ours)")]
    for floor in (1e-6, 1e-4):
        label = f"absolute floor {floor:g}"
        rows.append(changed(base, f"{floor:g}", label, method="floored", floor=floor))
    return Experiment("floor", "Absolute floor or relative tolerance", tuple(rows))


def power() -> Experiment:
    base = ADDITION.changed(epochs=300, switch_off=None)
    rates = {0.5: (2.0, 7.0, 20.0), 0.0: (0.7,), -0.5: (0.07, 0.02, 7e-3)}
    rows = []
    for q in rates:
        method = {"method": "fractional", "exponent": q} if q else {}
        for rate in rates[q]:
            name = f"{q:g}-lr{rate:g}"
            rows.append(changed(base, name, f"q = {q:g}", 1, learning_rate=rate, **method))
    return Experiment("power", "Fractional whitening U S^q V^T, addition modulo 97", tuple(rows))


def methods() -> Experiment:
    base = ADDITION.changed(epochs=400)
    subspace = {"method": "subspace_iteration", "rank": 128}
    rows = (
        changed(base, "svd", "SVD", 5),
        changed(base, "halley", "Halley", 5, method="halley"),
        changed(base, "newton_schulz", "Newton-Schulz, 8 steps", 2, method="newton_schulz"),
        changed(base, "subspace128", "Subspace iteration, rank 128", 2, **subspace),
        changed(base, "every2", "SVD, every 2nd step", 1, every=2),
        changed(base, "every4", "SVD, every 4th step", 1, every=4),
        changed(base, "blend400", "SVD, blended in over 400 steps", 1, blend_steps=400),
    )
    return Experiment("methods", "How the whitening is done, addition modulo 97", rows)


def parity_seeds() -> Experiment:
    """Parity k = 3 and 4 is learned or not depending on the seed: ten of them, and what helps."""
    rows = []
    for k in (3, 4):
        base = PAPER[f"parity-{k}"].changed(epochs=300)
        sgd = SGD | {"epochs": 1_000, "measure_every": 10}
        average = {"average": 0.98, "learning_rate": 0.02}
        rows += [
            changed(base, f"k{k}-sgd", f"k = {k}, SGD", 10, **sgd),
            changed(base, f"k{k}-egd", f"k = {k}, EGD", 10),
            changed(base, f"k{k}-egd-average", f"k = {k}, EGD of a moving average", 3, **average),
        ]
    return Experiment("parity-seeds", "Parity k = 3 and 4, seed by seed", tuple(rows))


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        experiments.modular("T2", "addition"),
        experiments.modular("T3", "multiplication"),
        experiments.parity(),
        experiments.transformer(),
        experiments.mnist(),
        experiments.shuffled(),
        both(),
        spectra(),
        decay(),
        switch(),
        length(),
        floor(),
        power(),
        methods(),
        parity_seeds(),
    )
}
