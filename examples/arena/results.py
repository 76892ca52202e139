"""What a log says: medians and ranges, shares with intervals, ratios over tasks."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

from scipy import stats

from arena.contract import Task
from arena.field import PLAIN
from arena.plan import Round, counted, rounds, value
from arena.record import TRIAL, Record
from arena.space import BATCH

AFTER = (8, 16, 32)


@dataclasses.dataclass(frozen=True)
class Row:
    """What one optimizer came to on one task; None or empty where the log is not that far.

    `last` is the last round that has a trial.
    """

    optimizer: str
    last: Round
    steps: dict[int, int | None]
    """Steps to the target by fresh seed; None: missed."""
    step_seconds: float | None
    compile_seconds: float | None

    @property
    def task(self) -> Task:
        return self.last.task

    @property
    def counted(self) -> list[int]:
        """Steps by seed, a miss counted at the budget."""
        return [self.task.steps if one is None else one for one in self.steps.values()]

    @property
    def median(self) -> float:
        """Median of the steps, the budget if it is missed; not a number without a run."""
        if not self.steps:
            return math.nan
        return self.task.steps if self.missed else statistics.median(self.counted)

    @property
    def reached(self) -> int:
        """Number of fresh seeds that reach the target."""
        return sum(one is not None for one in self.steps.values())

    @property
    def missed(self) -> bool:
        """Whether the median is that of seeds without the target."""
        return 2 * self.reached <= len(self.steps)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's interval of the share that reaches the target, 95 %."""
        test = stats.binomtest(self.reached, len(self.steps))
        found = test.proportion_ci(method="wilson")
        return found.low, found.high

    @property
    def batch(self) -> int:
        return self.last.best["settings"][BATCH]

    @property
    def seconds(self) -> float | None:
        """Seconds of training to the target, without looks and compilation."""
        return None if self.step_seconds is None else self.step_seconds * self.median

    @property
    def best_after(self) -> list[float]:
        """Mean steps of the best of the first trials, on the tuning seeds."""
        return [self.last.best_after(count) for count in after(self.task)]


def after(task: Task) -> list[int]:
    """Return the numbers of trials after which the best so far is told."""
    return [count for count in AFTER if count < task.trials] + [task.trials]


def task_of(record: Record) -> Task:
    """Return the task of a log's header, good for all but training."""
    values: dict[str, Any] = dict(record.header["task"])
    tuples = {name: tuple(values[name]) for name in ("batches", "tuning_seeds")}

    def untold(*_: Any) -> Any:
        raise NotImplementedError("a log does not say how to train")

    plain = {name: values[name] for name in (*PLAIN, "title", "note")} | tuples
    return Task(init=untold, loss=untold, data=untold, score=untold, **plain)


def tuner_of(record: Record) -> int:
    """Return the number of the tuner that made a log; the first two did not write theirs."""
    return record.header.get("tuner", 2 if record.header["task"].get("suggested") else 1)


def rows(record: Record) -> list[Row]:
    """Return what is known of each optimizer, fewest steps first."""
    task = task_of(record)
    found = [_row(record, task, name) for name in record.optimizers]
    return sorted((row for row in found if row is not None), key=_order)


def _order(row: Row) -> tuple[float, float]:
    tuned = value(row.task, row.last.best)
    return (row.median if row.steps else math.inf), tuned


def _row(record: Record, task: Task, name: str) -> Row | None:
    last = next((one for one in rounds(record, task, name) if one.trials), None)
    if last is None:
        return None
    steps = {line["seed"]: line["steps"] for line in counted(record, last)}
    timed = record.times.get("rows", {}).get(name)
    if timed is None or timed["settings"] != last.best["settings"]:
        return Row(name, last, steps, None, None)
    step_seconds = statistics.median(timed["seconds"]) / timed["steps"]
    return Row(name, last, steps, step_seconds, statistics.median(timed["compile"]))


def is_finished(record: Record) -> bool:
    """Return whether every optimizer whose tuning was begun was tuned and counted."""
    found = {row.optimizer: row for row in rows(record)}
    seeds = len(record.header["fresh_seeds"])
    return bool(found) and all(
        name in found and found[name].last.complete and len(found[name].steps) == seeds
        for name in record.optimizers
    )


def median_steps(record: Record, last: Round) -> int:
    """Return the median steps of a round's best on the fresh seeds, a miss at the budget."""
    lines = counted(record, last)
    return int(statistics.median_high(line["steps"] or last.task.steps for line in lines))


def by_batch(record: Record, name: str) -> dict[int, float]:
    """Return the fewest mean steps of any trial, in whatever round, by batch size.

    Only trials count that reached the target on every seed. The others may have been given up
    because of a better one at another size, so their value says nothing of this size.
    """
    task = task_of(record)
    best: dict[int, float] = {}
    for trial in record.of(TRIAL, name):
        batch = trial["settings"][BATCH]
        if all(run["steps"] is not None for run in trial["runs"]):
            best[batch] = min(best.get(batch, math.inf), value(task, trial))
    return dict(sorted(best.items()))


def ratio_to(
    rows_by_task: Sequence[Sequence[Row]], name: str, other: str
) -> tuple[float, str, int]:
    """Return the geometric mean over tasks of the ratio of median steps, its bound, their number.

    A median that misses the target is counted at the budget. So the ratio is at least this (">")
    where the optimizer has such a task, at most this ("<") where the other one has, "?" with both.
    """
    ratios, bounds = [], set()
    for found in rows_by_task:
        by_name = {row.optimizer: row for row in found if row.steps}
        if name in by_name and other in by_name:
            one, two = by_name[name], by_name[other]
            ratios.append(one.median / two.median)
            bounds |= {">"} if one.missed and name != other else set()
            bounds |= {"<"} if two.missed and name != other else set()
    sign = "?" if len(bounds) == 2 else "".join(bounds)
    return (float(stats.gmean(ratios)) if ratios else math.nan), sign, len(ratios)


def paired(one: Row, other: Row) -> tuple[int, int, float]:
    """Return on how many seeds one needs fewer steps than another, and more; p of the sign test.

    A miss counts at the budget. Seeds with equal steps say nothing.
    """
    budget, seeds = one.task.steps, one.steps.keys() & other.steps.keys()
    pairs = [(one.steps[seed] or budget, other.steps[seed] or budget) for seed in seeds]
    wins, losses = sum(a < b for a, b in pairs), sum(a > b for a, b in pairs)
    p = stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    return wins, losses, float(p)


def duels(rows_by_task: Sequence[Sequence[Row]], name: str, other: str) -> tuple[int, int]:
    """Return on how many tasks an optimizer needs fewer median steps than another, and more."""
    wins = losses = 0
    for found in rows_by_task:
        one, two = ({r.optimizer: r for r in found}.get(which) for which in (name, other))
        if one is not None and two is not None and one.steps and two.steps:
            wins += one.median < two.median
            losses += one.median > two.median
    return wins, losses
