"""What a log asks for next: trials, their bests, and the jobs that are still to do.

All of it follows from the log's lines, so a command that was killed goes on where it was.
"""

import dataclasses
import functools
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping

from arena.contract import Knob, Task
from arena.field import Field
from arena.record import COUNT, ROUND, TRIAL, Line, Record
from arena.space import (
    BATCH,
    Settings,
    edges,
    from_json,
    points,
    spread,
    to_json,
)
from arena.suggest import suggested

LAST = 4  # trials that look beyond an edge if the best is there


@dataclasses.dataclass(frozen=True)
class Job:
    """Trials with one batch size, or the runs that count, of one optimizer: one program's work.

    Args:
        kind: TRIAL or COUNT.
        optimizer: its name.
        number: the round; 0 in all but older logs.
        todo: number and settings of each trial; of what counts, only the best one's.
        seeds: to run each of them on.
        bound: sum of the steps of the best trial before, None without one; of those with this
            batch size as long as the trials are spread over the ranges.
    """

    kind: str
    optimizer: str
    number: int
    todo: tuple[tuple[int, Settings], ...]
    seeds: tuple[int, ...]
    bound: int | None = None

    @property
    def batch(self) -> int:
        return self.todo[0][1][BATCH]

    @property
    def key(self) -> tuple:
        """What no two workers have at once."""
        return self.kind, self.optimizer, self.number, self.batch


@dataclasses.dataclass(frozen=True)
class Round:
    """The trials of an optimizer. Older logs have several rounds, in wider and wider ranges."""

    task: Task
    optimizer: str
    number: int
    knobs: tuple[Knob, ...]
    trials: tuple[Line, ...]

    @functools.cached_property
    def points(self) -> list[Settings]:
        """The settings of its trials, as far as they are known.

        The first ones are spread over the ranges. Each of the others follows from all before it.
        Until one gets to the target, half of these are spread, too: what has learned nothing yet
        tells little of where to look.
        """
        task = self.task
        first = points(self.optimizer, self.knobs, task.batches, spread(task.trials))
        done = [trial["settings"] for trial in self.trials]
        if len(done) < len(first) or self.complete:
            return done if self.complete else first
        if len(done) % 2 and value(task, self.best) >= task.steps:
            return [*done, points(self.optimizer, self.knobs, task.batches, len(done) + 1)[-1]]
        knobs = *self.knobs, Knob(BATCH, choices=task.batches)
        tried = ((*one["settings"].items(), graded(task, one)) for one in self.trials)
        beyond = probed(self.edges, len(done), task.trials - len(done))
        return [*done, dict(_suggestion(knobs, tuple(tried), beyond))]

    @property
    def complete(self) -> bool:
        return len(self.trials) == self.task.trials

    @property
    def best(self) -> Line:
        """The best trial so far."""
        return min(self.trials, key=functools.partial(rank, self.task))

    @property
    def edges(self) -> dict[str, str]:
        """The knobs beyond whose best value none was tried, and the side."""
        tried = [trial["settings"] for trial in self.trials]
        return edges(self.knobs, self.best["settings"], tried)

    @property
    def missing(self) -> dict[int, Settings]:
        """Number and settings of the trials that are known and still to run."""
        done = {trial["trial"] for trial in self.trials}
        return {i: settings for i, settings in enumerate(self.points) if i not in done}

    def total(self, batch: int | None = None) -> int | None:
        """Return the least sum of steps with this or any batch size; None without a trial."""
        sums = (
            steps_sum(self.task, trial)
            for trial in self.trials
            if batch in (None, trial["settings"][BATCH])
        )
        return min(sums, default=None)

    def best_after(self, count: int) -> float:
        """Return the mean steps of the best of the first `count` trials; infinite if none is in."""
        values = (value(self.task, trial) for trial in self.trials if trial["trial"] < count)
        return min(values, default=math.inf)


def probed(sides: Mapping[str, str], done: int, left: float = math.inf) -> tuple[str, str] | None:
    """Return the knob, and the side, that the next trial is to try beyond the best, if any.

    Every other trial does, as long as the best lies at an edge, and so do the last ones.
    """
    due = done % 2 == 0 or left <= LAST
    return list(sides.items())[done // 2 % len(sides)] if sides and due else None


@functools.lru_cache(maxsize=1024)  # the log is asked after every line, and it takes a second
def _suggestion(
    knobs: tuple[Knob, ...], tried: tuple[tuple, ...], beyond: tuple[str, str] | None
) -> Settings:
    pairs = [(dict(settings), score) for *settings, score in tried]
    return suggested(knobs, pairs, len(pairs), beyond)


def last_round(record: Record, task: Task, optimizer: str) -> Round | None:
    """Return the round that counts: the one with the widest ranges; None before the first."""
    return next(rounds(record, task, optimizer), None)


def rounds(record: Record, task: Task, optimizer: str) -> Iterator[Round]:
    """Yield an optimizer's rounds, the last one first."""
    for line in reversed(record.of(ROUND, optimizer)):
        trials = record.of(TRIAL, optimizer, line["round"])
        trials.sort(key=lambda trial: trial["trial"])
        knobs = tuple(from_json(knob) for knob in line["knobs"])
        yield Round(task, optimizer, line["round"], knobs, tuple(trials))


def steps_sum(task: Task, trial: Line) -> int:
    """Return the sum of a trial's steps over the tuning seeds, a miss counted at the budget.

    A trial that missed the target or was given up has no run on the other seeds: they count as
    missed, too.
    """
    steps = [task.steps if run["steps"] is None else run["steps"] for run in trial["runs"]]
    return sum(steps) + task.steps * (len(task.tuning_seeds) - len(steps))


def value(task: Task, trial: Line) -> float:
    """Return the mean of a trial's steps, what tuning makes small."""
    return steps_sum(task, trial) / len(task.tuning_seeds)


def graded(task: Task, trial: Line) -> float:
    """Return what a model of the trials is fitted to: the logarithm of the steps to the target.

    A run that missed counts more than the steps it had, the more the farther its end was from the
    target: up to twice the budget if no seed got there. Beside a seed that did, it may just have
    been given up, so it counts at most twice its steps, and at least as the other seed. A run that
    diverged counts as twice the budget. The first miss ends a trial; the seeds after it count as
    the worst one.
    """
    reached = [run["steps"] for run in trial["runs"] if run["steps"] is not None]

    def steps(run: Line) -> float:
        if run["score"] is None:
            return 2 * task.steps
        far = _distance(task, run["score"])
        if reached:
            return max(*reached, run["ran"] * (1 + far))
        return run["ran"] ** (1 - far) * (2 * task.steps) ** far

    missed = [steps(run) for run in trial["runs"] if run["steps"] is None]
    worst = max([1, *reached, *missed])
    others = [worst] * (len(task.tuning_seeds) - len(reached))
    return math.log(statistics.fmean(reached + others))


def _distance(task: Task, score: float) -> float:
    """Return how far a score is from the target: 0 there, 1 at a score of 0 and below.

    Where less is better, or the target is not above 0, nothing says how bad a score can be: it is
    a half where the score is as far from the target as that is from 0, and 1 at infinity.
    """
    short = max(0.0, (score - task.target) if task.lower else (task.target - score))
    short /= abs(task.target) or 1.0
    return short / (1 + short) if task.lower or task.target <= 0 else min(1.0, short)


def rank(task: Task, trial: Line) -> tuple[float, float, int]:
    """Return what orders trials: steps, then the score at the end, then who came first."""
    sign = 1.0 if task.lower else -1.0
    scores = [run["score"] for run in trial["runs"]]
    worst = math.inf if None in scores else statistics.fmean(sign * score for score in scores)
    return value(task, trial), worst, trial["trial"]


def new_rounds(record: Record, field: Field) -> Iterator[Line]:
    """Yield a line for each optimizer whose tuning begins."""
    for name, optimizer in field.optimizers.items():
        if last_round(record, field.task, name) is None:
            knobs = [to_json(knob) for knob in optimizer.knobs]
            line = {"kind": ROUND, "optimizer": name, "round": 0, "trials": field.task.trials}
            yield line | {"knobs": knobs}


def jobs(record: Record, field: Field) -> list[Job]:
    """Return all that can be worked on now, what matters most first.

    First one trial of each optimizer, for an estimate of the time; then the bests that are known,
    then trials, the largest batches first.
    """
    first, rest, counts = list[Job](), list[Job](), list[Job]()
    for name in field.optimizers:
        last = last_round(record, field.task, name)
        if last is None:
            continue
        todo = list(_trials(last))
        if not last.trials and last.number == 0:
            first.append(_alone(todo, 0))
        rest += todo
        if last.complete:
            counts += _counts(record, field, last)
    return first + counts + sorted(rest, key=lambda job: -job.batch)


def _trials(last: Round) -> Iterator[Job]:
    """Yield a job for each batch size with trials to run."""
    for batch in last.task.batches:
        todo = tuple(one for one in last.missing.items() if one[1][BATCH] == batch)
        if todo:
            # A suggestion comes after all trials so far, whatever their batch size.
            after_all = todo[0][0] >= spread(last.task.trials)
            seeds, bound = last.task.tuning_seeds, last.total(None if after_all else batch)
            yield Job(TRIAL, last.optimizer, last.number, todo, seeds, bound)


def _alone(todo: Iterable[Job], trial: int) -> Job:
    """Return the job that has a trial, without the others."""
    job = next(job for job in todo if job.todo[0][0] == trial)
    return dataclasses.replace(job, todo=job.todo[:1])


def _counts(record: Record, field: Field, last: Round) -> Iterator[Job]:
    """Yield the job of the fresh seeds that are still to run, if any."""
    done = {line["seed"] for line in counted(record, last)}
    seeds = tuple(seed for seed in field.fresh_seeds if seed not in done)
    if seeds:
        todo = ((last.best["trial"], last.best["settings"]),)
        yield Job(COUNT, last.optimizer, last.number, todo, seeds)


def counted(record: Record, last: Round) -> list[Line]:
    """Return the runs on fresh seeds of a round's best."""
    return record.of(COUNT, last.optimizer, last.number) if last.trials else []
