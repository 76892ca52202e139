"""What the logs of the comparison and of the ablation say: rows, tables, figures."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from arena.plan import rounds
from arena.record import COUNT, ROUND, Line, Record
from arena.results import task_of
from arena.space import BATCH, Settings, points, spread
from tabulate import tabulate

from language.ablate import BASE
from language.compare import Tuned, tuned
from language.figures import Curve, draw
from language.optimizers import OPTIMIZERS

YARDSTICK = "adamw"
NONE = "-"
HEADINGS = (
    "optimizer",
    "final validation loss (range)",
    "steps to AdamW's",
    "tokens",
    "seconds",
    "steps / AdamW's",
    "seconds / AdamW's",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """What one optimizer came to.

    Args:
        name: of the optimizer.
        tuned: its trials, and the best's runs on fresh seeds.
        step_seconds: of one step, timed side by side; None if that was not done.
    """

    name: str
    tuned: Tuned
    step_seconds: float | None

    @property
    def runs(self) -> list[Line]:
        return self.tuned.counts

    @property
    def title(self) -> str:
        return OPTIMIZERS[self.name].title if self.name in OPTIMIZERS else self.name

    @property
    def losses(self) -> list[float]:
        """Validation loss at the end, of each fresh seed, else of the best trial; may be inf."""
        lines = self.runs or self.tuned.best["runs"]
        return [_score(line) for line in lines]

    @property
    def loss(self) -> float:
        return statistics.median(self.losses)

    def steps_to(self, loss: float) -> float:
        """Return the median of the first steps with a validation loss as low as this.

        It is compared to six digits, which a course has.
        """
        goal = float(f"{loss:.6g}")
        return statistics.median(_first_at(run["course"], goal) for run in self.runs)


def rows(record: Record) -> list[Row]:
    """Return what is known of each optimizer, lowest loss first."""
    task, timed = task_of(record), record.times.get("rows", {})
    found = []
    for name in record.optimizers:
        one = tuned(record, task, name)
        if one is not None and one.trials:
            times = timed.get(name)
            known = times is not None and times["settings"] == one.best["settings"]
            seconds = statistics.median(times["seconds"]) if known else None
            found.append(Row(name, one, seconds))
    return sorted(found, key=lambda row: (not row.runs, row.loss))


def is_finished(record: Record, yardstick: str = YARDSTICK) -> bool:
    """Return whether all that were begun, and the yardstick, are tuned and ran on all seeds."""
    found, seeds = rows(record), len(record.header["fresh_seeds"])
    whole = all(len(row.runs) == seeds and row.tuned.complete for row in found)
    return whole and yardstick in {row.name for row in found}


def table(record: Record, style: str = "simple") -> str:
    """Return the table of a comparison, however far its log is.

    Steps, tokens and seconds are those to the yardstick's final loss, looked at as often as the log
    says; the ratios are to the yardstick's own.
    """
    found = rows(record)
    yardstick = next((row for row in found if row.name == YARDSTICK and row.runs), None)
    cells = [_cells(row, yardstick, record, record) for row in found]
    return tabulate(cells, HEADINGS, tablefmt=style, disable_numparse=True)


def short_rows(record: Record, short: Record) -> list[Row]:
    """Return what shorter runs came to; a step takes as long as in the comparison's record."""
    seconds = {row.name: row.step_seconds for row in rows(record)}
    found = rows(short)
    return [dataclasses.replace(row, step_seconds=seconds.get(row.name)) for row in found]


def short_cells(record: Record, short: Record) -> dict[str, list[str]]:
    """Return the rows of shorter runs: steps and seconds to the yardstick's loss in `record`."""
    yardstick = next(row for row in rows(record) if row.name == YARDSTICK)
    found = short_rows(record, short)
    return {row.name: _cells(row, yardstick, short, record) for row in found}


def short_table(record: Record, short: Record, style: str = "simple") -> str:
    """Return the table of shorter runs."""
    cells = [*short_cells(record, short).values()]
    return tabulate(cells, HEADINGS, tablefmt=style, disable_numparse=True)


def settings_table(record: Record, style: str = "simple") -> str:
    """Return the best settings of each optimizer, and what a reader must know of its tuning."""
    cells = []
    for row in rows(record):
        best = row.tuned.best["settings"]
        told = settings_told(best)
        at_edge = ", ".join(row.tuned.edges) if row.tuned.complete else ""
        counts = len(row.tuned.trials), suggested(record, row)
        cells.append((row.title, told, *counts, at_edge or NONE))
    headings = ("optimizer", "best settings", "trials", "suggested", "at an edge")
    return tabulate(cells, headings, tablefmt=style, disable_numparse=True)


def suggested(record: Record, row: Row) -> int:
    """Return how many trials have settings that a Gaussian process chose.

    All but the first ones have. In older logs, those with wider rounds, no trial of the first
    round has, and none of a later one that begins with a quasirandom point.
    """
    task, count = task_of(record), 0
    for one in rounds(record, task, row.name):
        (line,) = record.of(ROUND, row.name, one.number)
        settings = [trial["settings"] for trial in one.trials]
        first = points(row.name, one.knobs, task.batches, spread(task.trials), one.number)
        if "widened" in line:
            count += len(settings) if one.number and settings[:1] != first[:1] else 0
        else:
            count += max(0, len(settings) - (0 if one.number else len(first)))
    return count


def compiled_share(record: Record, short: Row) -> str | None:
    """Return a shorter run's part of the yardstick's seconds, both with compilation, as timed."""
    timed = record.times.get("rows", {})
    yardstick = next(row for row in rows(record) if row.name == YARDSTICK)
    if not {short.name, YARDSTICK} <= {*timed}:
        return None
    own, other = (
        row.steps_to(yardstick.loss) * statistics.median(timed[row.name]["seconds"])
        + statistics.median(np.atleast_1d(timed[row.name]["compile"]))
        for row in (short, yardstick)
    )
    return f"{own / other:.2f}" if math.isfinite(own) else None


def settings_told(settings: Settings) -> str:
    """Return settings in words, without the batch."""
    return ", ".join(
        f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in settings.items()
        if name != BATCH
    )


def draw_comparison(record: Record, path: Path) -> None:
    """Draw the median courses of the bests on the fresh seeds."""
    draw([_curve(row, record) for row in rows(record) if row.runs], path, zoom=True)


def best_by_round(row: Row) -> list[str]:
    """Return the lowest loss of an optimizer's trials so far, after each round."""
    trials = row.tuned.trials
    ends = range(1, 2 + row.tuned.last.number)
    return [
        _loss(min(_score(one["runs"][0]) for one in trials if one["round"] < end)) for end in ends
    ]


def differences(record: Record) -> dict[str, str]:
    """Return how each change of an ablation changes the loss: the median on equal seeds."""
    base = {line["seed"]: _score(line) for line in record.of(COUNT, BASE)}
    found = {}
    for name in dict.fromkeys(line["optimizer"] for line in record.lines):
        lines = record.of(COUNT, name)
        gaps = [_score(line) - base[line["seed"]] for line in lines if line["seed"] in base]
        found[name] = _loss(statistics.median(gaps), "+.3f") if gaps else NONE
    return found


def ablation_table(record: Record, style: str = "simple") -> str:
    """Return the table of an ablation, however far its log is; differences are on equal seeds."""
    cells = []
    for name, difference in differences(record).items():
        lines = record.of(COUNT, name)
        steps = lines[0]["course"]["step"][-1]
        cells.append((name, _loss(_median_score(lines)), difference, steps, len(lines)))
    headings = ("change", "final validation loss", "difference", "steps", "seeds")
    return tabulate(cells, headings, tablefmt=style, disable_numparse=True)


def _cells(row: Row, yardstick: Row | None, record: Record, compared: Record) -> list[str]:
    """Return a row of the table of `record`; the yardstick is in `compared`."""
    low, high = min(row.losses), max(row.losses)
    told = f"{_loss(row.loss)} ({_loss(low)} to {_loss(high)})" if row.runs else None
    cells = [row.title, told or f"({_loss(row.loss)} tuning)"]
    if yardstick is None or not row.runs:
        return [*cells, *[NONE] * 5]
    cap, whole = (one.header["task"]["steps"] for one in (record, compared))
    steps, own = row.steps_to(yardstick.loss), min(yardstick.steps_to(yardstick.loss), whole)
    if math.isinf(steps):
        return [*cells, f"> {cap}", *[NONE] * 4]
    model = record.header["task"]["model"]
    cells += [f"{steps:g}", f"{steps * model['batch'] * model['context']:,.0f}"]
    if row.step_seconds is None or yardstick.step_seconds is None:
        return [*cells, NONE, f"{steps / own:.2f}", NONE]
    seconds, others = steps * row.step_seconds, own * yardstick.step_seconds
    return [*cells, f"{seconds:.0f}", f"{steps / own:.2f}", f"{seconds / others:.2f}"]


def _curve(row: Row, record: Record) -> Curve:
    """Return the median over seeds; seconds as timed side by side, else as they were."""
    whole = [run["course"] for run in row.runs if run["score"] is not None]
    steps = whole[0]["step"] if whole else []
    losses = np.median([course["validation"] for course in whole], axis=0) if whole else []
    total = record.header["task"]["steps"]
    measured = statistics.median(run["seconds"] for run in row.runs) / total
    seconds = [step * (row.step_seconds or measured) for step in steps]
    return Curve(row.title, steps, seconds, list(losses))


def _first_at(course: dict[str, Sequence], loss: float) -> float:
    pairs = zip(course["step"], course["validation"], strict=True)
    return next((step for step, found in pairs if found is not None and found <= loss), math.inf)


def _median_score(lines: Sequence[Line]) -> float:
    return statistics.median(map(_score, lines))


def _score(line: Line) -> float:
    return math.inf if line["score"] is None else line["score"]


def _loss(value: float, form: str = ".3f") -> str:
    return format(value, form) if math.isfinite(value) else "hopeless"
