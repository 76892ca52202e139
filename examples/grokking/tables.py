"""Tables of runs and of outcomes: one for the console, the others in Markdown for the pages."""

import math
from collections.abc import Sequence

from common.pages import markdown
from rich.table import Column
from rich.table import Table as ConsoleTable

from grokking.log import Run
from grokking.outcomes import Outcome, baseline, outcomes
from grokking.questions import EXPERIMENTS
from grokking.training import first_at_target

NONE = "-"


def console_table(runs: Sequence[Run]) -> ConsoleTable:
    """Return one row a run: epochs and seconds to its target, then its last accuracies."""
    targets = {run.config.target for run in runs} - {None}
    target = f"{targets.pop():.0%}" if len(targets) == 1 else "target"
    headings = (f"epochs\nto {target}", f"seconds\nto {target}", "ms per\nepoch", "train", "test")
    columns = [Column(heading, justify="right", no_wrap=True) for heading in headings]
    table = ConsoleTable(Column("run", overflow="fold"), *columns, box=None, pad_edge=False)
    for run in runs:
        ending = "cut off" if run.ending is None else run.ending["kind"]
        label = run.label if ending == "result" else f"{run.label} ({ending})"
        table.add_row(label, *(_measurements(run) if run.epochs else [NONE] * len(headings)))
    return table


def _measurements(run: Run) -> tuple[str, ...]:
    last = run.epochs[-1]
    reached = first_at_target(run.epochs, run.config.target)
    to_target = (
        (f"> {last.epoch}", f"> {last.seconds:.1f}")
        if reached is None
        else (f"{reached.epoch}", f"{reached.seconds:.1f}")
    )
    epoch_ms = f"{1000.0 * last.seconds / last.epoch:.0f}"
    return (*to_target, epoch_ms, f"{last.train_accuracy:.1%}", f"{last.test_accuracy:.1%}")


def paper_table(name: str) -> str:
    """Return a table of the paper with our figures beside its own; seconds if they were timed."""
    headings = (
        "run",
        "seeds",
        f"{EXPERIMENTS[name].unit} to the target, median (range)",
        "paper",
        "ours / paper",
        "times fewer than plain",
        "paper",
        "ms per epoch",
        "seconds",
        "paper",
    )
    rows = [_paper_row(outcome) for outcome in outcomes(name).values()]
    timed = any(row[-3] != NONE for row in rows)
    shown = None if timed else -3
    return markdown(headings[:shown], [row[:shown] for row in rows])


def _paper_row(outcome: Outcome) -> tuple:
    plain = baseline(outcome)
    return (
        outcome.row.label,
        len(outcome.runs),
        spread(outcome),
        count(outcome.published),
        ratio(outcome.median, outcome.published, digits=2),
        NONE if plain is outcome else ratio(plain.median, outcome.median),
        NONE if plain is outcome else ratio(plain.published, outcome.published),
        count(outcome.epoch_ms, digits=1),
        _seconds(outcome),
        count(outcome.published_seconds, digits=1),
    )


def seeds_table(name: str) -> str:
    """Return every seed of each row, the accuracies at the end, and an epoch's time if timed."""
    headings = ["run", f"{EXPERIMENTS[name].unit} to the target, each seed", "train", "test"]
    headings.append("ms per epoch")
    rows = [
        [
            outcome.row.label,
            each(outcome),
            percent(outcome.train),
            percent(outcome.test),
            count(outcome.epoch_ms, digits=1),
        ]
        for outcome in outcomes(name).values()
    ]
    timed = any(row[-1] != NONE for row in rows)
    return (
        markdown(headings, rows) if timed else markdown(headings[:-1], (row[:-1] for row in rows))
    )


def switch_table(name: str) -> str:
    """Return when each run of the switch-off got to the target, and what became of it then."""
    headings = ("switched off", "epochs to the target, each seed", "lowest test after it", "last")
    rows = [
        (outcome.row.label, each(outcome), percent(outcome.worst_after), percent(outcome.test))
        for outcome in outcomes(name).values()
    ]
    return markdown(headings, rows)


def sweep_table(name: str) -> str:
    """Return each method's best setting, by the median, and the number of settings it had."""
    unit = EXPERIMENTS[name].unit
    headings = ["method", "settings", "best: learning rate", "decay", "seeds"]
    headings += [f"{unit}, median (range)", "seconds"]
    rows = []
    for label, settings in _by_label(name).items():
        best = min(settings, key=_rank)
        rate, decay = (
            best.row.config.optimizer.settings[key] for key in ("learning_rate", "weight_decay")
        )
        seconds = count(best.seconds, digits=1)
        rows.append(
            (label, len(settings), f"{rate:g}", f"{decay:g}", len(best.runs), spread(best), seconds)
        )
    return markdown(headings, rows)


def _by_label(name: str) -> dict[str, list[Outcome]]:
    """Return an experiment's outcomes by label: the settings of each method."""
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes(name).values():
        groups.setdefault(outcome.row.label, []).append(outcome)
    return groups


def _rank(outcome: Outcome) -> tuple[float, float]:
    """Order by the median, missing ones last, then by the accuracy at the end."""
    median = math.inf if math.isnan(outcome.median) else outcome.median
    return median, -outcome.test


def area_table(name: str) -> str:
    """Return the area under the train accuracy, plain and with EGD, by shuffles and optimizer."""
    rows = []
    for plain, whitened in plain_and_whitened(name):
        shuffles, optimizer, _ = plain.row.name.split("-")
        verdict = "yes" if whitened.area > plain.area else "NO"
        areas = percent(plain.area), percent(whitened.area)
        known = verdict if plain.runs and whitened.runs else NONE
        paper = [f"{count(one.published, digits=1)} %" for one in (plain, whitened)]
        rows.append((shuffles, optimizer, len(plain.runs), *areas, known, *paper))
    headings = ["shuffles", "optimizer", "seeds", "area, plain", "area, after EGD", "raised"]
    return markdown([*headings, "paper, plain", "paper, after EGD"], rows)


def plain_and_whitened(name: str) -> list[tuple[Outcome, Outcome]]:
    """Return the pairs of rows `...-plain` and `...-egd`."""
    found = outcomes(name)
    keys = [key.removesuffix("-plain") for key in found if key.endswith("-plain")]
    return [(found[f"{key}-plain"], found[f"{key}-egd"]) for key in keys]


def spread(outcome: Outcome) -> str:
    """Return median and range; a run without the target counts as more than its cap."""
    if not outcome.runs:
        return "not run"
    shown = [count(value, outcome.cap) for value in (min(outcome.reached), max(outcome.reached))]
    median = count(outcome.median, outcome.cap)
    spread = median if len(outcome.runs) == 1 else f"{median} ({shown[0]} to {shown[1]})"
    return spread + (f", {outcome.diverged} diverged" if outcome.diverged else "")


def each(outcome: Outcome) -> str:
    """Return every seed's count, in order of size."""
    shown = ", ".join(count(value, outcome.cap) for value in sorted(outcome.reached)) or "not run"
    return shown + (f" ({outcome.diverged} diverged)" if outcome.diverged else "")


def _seconds(outcome: Outcome) -> str:
    """Return the seconds to the target, median and range over the seeds."""
    if math.isnan(outcome.seconds):
        return NONE
    median, *ends = (
        count(outcome.seconds_after(value), digits=1)
        for value in (outcome.median, min(outcome.reached), max(outcome.reached))
    )
    return median if len(outcome.runs) == 1 else f"{median} ({' to '.join(ends)})"


def count(value: float | None, cap: float = math.nan, digits: int = 0) -> str:
    """Return a number; infinity as more than the cap, none as a dash."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "never" if math.isnan(cap) else f"> {cap:.0f}"
    return f"{value:.{digits}f}"


def ratio(above: float | None, below: float | None, digits: int = 1) -> str:
    """Return a quotient; a dash where there is none."""
    if above is None or below is None or not (math.isfinite(above) and math.isfinite(below)):
        return NONE
    return f"{above / below:.{digits}f}"


def percent(value: float) -> str:
    """Return a share in percent; a dash where there is none."""
    return NONE if math.isnan(value) else f"{100 * value:.1f} %"
