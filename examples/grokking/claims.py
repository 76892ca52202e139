"""The paper's claims and ours in one table, and the numbers of the pages that no table has."""

import dataclasses
import math
from collections.abc import Iterator

from arena.optimizers import OPTIMIZERS
from arena.record import read
from arena.tables import tasks_table
from common.pages import markdown

from grokking.experiments import LOGS
from grokking.outcomes import Outcome, baseline, epoch_times, outcomes
from grokking.tables import NONE, count, each, percent, plain_and_whitened, ratio
from grokking.toy_experiment import ToyLog, read_toy, slope, worst_gap

TOY = LOGS / "toy.jsonl"
ARENA = LOGS.parents[1] / "arena" / "logs"
Claim = tuple[str, str, str]


def claims_table() -> str:
    """Return claims beside their numbers, the paper's and ours."""
    claims = [*_modular(), *_parity(), *_transformer(), *_images(), *_times()]
    return markdown(("", "paper", "ours"), claims)


def arena_table() -> str:
    """Return two of the arena's tasks, everybody tuned alike."""
    records = [read(ARENA / f"{task}.jsonl") for task in ("addition-97", "multiplication-97")]
    return tasks_table(records, {name: one.title for name, one in OPTIMIZERS.items()})


def _modular() -> Iterator[Claim]:
    theirs, ours = (
        [gain for table in ("T2", "T3") for gain in speedups(table, of)]
        for of in ("published", "median")
    )
    yield "modular arithmetic, EGD: times fewer epochs than SGD", _range(theirs), _range(ours)
    gains = _range(both_matrices(), digits=0)
    yield "... with both matrices: times fewer epochs than with the first", NONE, gains
    addition = outcomes("T2")
    yield _epochs("addition modulo 97, epochs: SGD", addition["p97-sgd"])
    yield _epochs("... EGD", addition["p97-egd_svd"])
    yield _epochs("... the gradient scaled to EGD's length", outcomes("length")["scaled-0.7"])
    yield _epochs("... column norm", addition["p97-column_norm"])
    yield _epochs("... whitened halfway, U S^½ Vᵀ", outcomes("power")["0.5-lr20"])
    spread = condition("gradient")
    yield "addition modulo 97: largest over second smallest singular value", "decades apart", spread
    yield "toy problem: simulation differs from theory by at most", NONE, toy()["gap"]


def _parity() -> Iterator[Claim]:
    found = outcomes("T4")
    for k, methods in (
        (2, ("sgd", "egd_svd", "egd_rsvd40")),
        (3, ("sgd", "egd_svd", "egd_rsvd20")),
        (4, ("sgd", "egd_svd")),
    ):
        for method in methods:
            outcome = found[f"k{k}-{method}"]
            yield _epochs(f"parity, epochs: {outcome.row.label}", outcome)
    yield "parity, epochs: k=4, column norm", "fails", each(found["k4-column_norm"])


def _transformer() -> Iterator[Claim]:
    for name in ("adam", "adam-decay", "grokfast_ema", "egd", "egd-between"):
        outcome = outcomes("T7")[name]
        yield _epochs(f"transformer, steps: {outcome.row.label}", outcome)


def _images() -> Iterator[Claim]:
    found = outcomes("T6")
    for name in ("adamw-0.01", "adamw", "grokfast", "egd", "egd_rsvd4"):
        yield _epochs(f"MNIST, steps: {found[name].row.label}", found[name])
    pairs = plain_and_whitened("T8")
    raised = sum(whitened.area > plain.area for plain, whitened in pairs)
    label = "MNIST, labels re-shuffled: EGD raises the train accuracy's mean"
    yield label, "always", f"{raised} of {len(pairs)} times"


def _times() -> Iterator[Claim]:
    for p in (79, 127):
        egd = outcomes("T2")[f"p{p}-egd_svd"]
        cost = ratio(egd.epoch_ms, baseline(egd).epoch_ms)
        yield f"an epoch of EGD costs so many of SGD, p = {p}", NONE, cost


def _epochs(claim: str, outcome: Outcome) -> Claim:
    return claim, count(outcome.published), each(outcome)


def _range(values: list[float], digits: int = 1) -> str:
    return f"{min(values):.{digits}f} to {max(values):.{digits}f}"


def speedups(table: str, of: str = "median") -> list[float]:
    """Return how many times fewer epochs than SGD EGD needs, ours or `published`."""
    chosen = [one for key, one in outcomes(table).items() if key.endswith("-egd_svd")]
    return [getattr(baseline(one), of) / getattr(one, of) for one in chosen]


def both_matrices() -> list[float]:
    """Return how many times fewer epochs whitening both matrices needs than the first alone."""
    tables = {"addition": "T2", "multiplication": "T3"}
    gains = []
    for name, outcome in outcomes("both").items():
        operation, p = name.split("-")
        gains.append(outcomes(tables[operation])[f"p{p}-egd_svd"].median / outcome.median)
    return gains


def fewer_steps(than: str, name: str = "egd") -> str:
    """Return how many times fewer steps than another a row of T6 needs, in the median."""
    found = outcomes("T6")
    return ratio(found[than].median, found[name].median)


def worst_deviation() -> str:
    """Return how far a median is off the paper's figure at most, over tables 2 and 3."""
    return percent(
        max(
            abs(outcome.median / outcome.published - 1)
            for table in ("T2", "T3")
            for outcome in outcomes(table).values()
            if outcome.published and outcome.runs
        )
    )


def condition(kind: str) -> str:
    """Return least and most of the largest over the second smallest singular value on record."""
    return _range(
        [
            getattr(spectrum, kind)[0] / getattr(spectrum, kind)[-2]
            for outcome in outcomes("spectra").values()
            for run in outcome.runs
            for spectrum in run.spectra
        ],
        digits=0,
    )


def stretch() -> str:
    """Return how many times a whitened matrix's Frobenius norm is the gradient's, least to most."""
    (run,) = outcomes("spectra")["egd"].runs
    return _range([math.sqrt(len(s.decayed)) / math.hypot(*s.decayed) for s in run.spectra], 0)


def after_switch() -> str:
    """Return the time of an epoch after the switch-off in epochs of SGD, p = 79, 97, 127."""
    times = epoch_times()
    return ", ".join(
        ratio(times[f"after/p{p}-egd_svd"], times[f"T2/p{p}-sgd"], 2) for p in (79, 97, 127)
    )


def toy() -> dict[str, str]:
    """Return the numbers of the toy's log: worst gaps and slopes."""
    log = read_toy(TOY)
    return {
        "gap": f"{worst_gap(log):.4f}",
        "literal": f"{worst_gap(equal_sets(log)):.4f}",
        "slope": f"{slope(log, 0.5, 'simulation', 'gd'):.3f}",
        "flat": f"{slope(log, 0.5, 'simulation', 'equalized'):z.3f}",
    }


def equal_sets(log: ToyLog) -> ToyLog:
    """Return the log with the curves whose training set is as large as the test set alone."""
    kept = (curve for curve in log.curves if curve.train_size in (0, log.config["points"]))
    return dataclasses.replace(log, curves=tuple(kept))
