"""Why: what happens along the runs, and how little data is enough, from the bests of a log.

The log is one line for all that was run: the course of one run, or its steps to the target with
less data. A command that was killed goes on where it was.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from arena.contract import Optimizer, Task
from arena.field import Field
from arena.optimizers import matrices_of
from arena.plan import last_round
from arena.record import Line, Log, Record
from arena.results import task_of
from arena.space import BATCH, Settings, traced
from arena.tasks import with_fraction
from arena.trial import Program, averaged, share, size, task_start

COURSE, LESS = "course", "less"
FRACTIONS = (0.2, 0.3, 0.4, 0.5)
STEPS, BUDGET, SEEDS = 60, 500, 5


@dataclasses.dataclass(frozen=True)
class Study:
    """What is run: each optimizer's best on the first fresh seeds."""

    field: Field
    bests: dict[str, Settings]

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.field.fresh_seeds[:SEEDS]

    def config(self) -> Line:
        """Return what decides the results, for the log's first line."""
        plan = {"steps": STEPS, "budget": BUDGET, "fractions": FRACTIONS, "seeds": self.seeds}
        return {**self.field.config(), "why": plan}


def study(field: Field, record: Record, only: Iterable[str] = ()) -> Study:
    """Return the study of a log's bests, of some optimizers or of all.

    Raises:
        ValueError: an unknown optimizer, one that has no best yet, or no modular table.
    """
    with_fraction(field.task.name, FRACTIONS[0])
    names = field.only(only).optimizers
    found = {name: last_round(record, task_of(record), name) for name in names}
    missing = [name for name, last in found.items() if last is None or not last.complete]
    if missing:
        raise ValueError(
            f"this needs the best of each optimizer, and the log has none of {', '.join(missing)}; "
            "`run` goes on, or choose others with --only"
        )
    bests = {name: last.best["settings"] for name, last in found.items() if last}
    for name, settings in bests.items():
        if settings.keys() - {BATCH} != {knob.name for knob in names[name].knobs}:
            raise ValueError(
                f"the knobs of {name} are others than in the log, which has {list(settings)}; "
                f"tune it with `run`, or leave it out with --only"
            )
    return Study(field, bests)


def run(chosen: Study, path: Path) -> None:
    """Run all that the log at `path` lacks."""
    with Log(path, chosen.config()) as log:
        done = {key(line) for line in log.record.lines}
        todo = [job for job in _jobs(chosen) if key(job) not in done]
        for job in tqdm(todo, unit="run", disable=None):
            optimizer = chosen.field.optimizers[job["optimizer"]]
            work = course if job["kind"] == COURSE else less
            log.add(job | work(chosen.field.task, optimizer, job))


def key(line: Line) -> tuple[Any, ...]:
    """Return what tells one line from the others."""
    settings = tuple(sorted(line["settings"].items()))
    return line["kind"], line["optimizer"], line["seed"], line.get("fraction"), settings


def _jobs(chosen: Study) -> Iterator[Line]:
    for name, settings in chosen.bests.items():
        for seed in chosen.seeds:
            yield {"kind": COURSE, "optimizer": name, "settings": settings, "seed": seed}
    for fraction in FRACTIONS:
        for name, settings in chosen.bests.items():
            for seed in chosen.seeds:
                yield {
                    "kind": LESS,
                    "optimizer": name,
                    "settings": settings,
                    "seed": seed,
                    "fraction": fraction,
                }


def course(task: Task, optimizer: Optimizer, job: Line) -> Line:
    """Return what is measured after each step of a run: score, and the matrices' norms."""
    start, settings = task_start(task, job["seed"]), job["settings"]
    values = traced(optimizer.knobs, settings)
    measured = _measured(task, optimizer, settings[BATCH])(values, *start)
    return {name: _short(numbers) for name, numbers in measured.items()}


@functools.lru_cache(maxsize=1)
def _measured(task: Task, optimizer: Optimizer, batch: int) -> Any:
    program = Program(task, optimizer, batch)

    @jax.jit
    def train(values, params, key, train, test):
        transform = optimizer.make(values, task, params)
        marked = jax.tree.leaves(matrices_of(task, params))

        def step(state, _):
            state = program.step(transform, share(values), key, train, state)
            weights = averaged(state)
            pairs = zip(jax.tree.leaves(weights), marked, strict=True)
            singular = [jnp.linalg.svd(leaf, compute_uv=False) for leaf, wanted in pairs if wanted]
            every = jnp.concatenate(singular)
            ranks = [jnp.square(s.sum()) / jnp.square(s).sum() for s in singular]
            return state, {
                "score": task.score(weights, test),
                "loss": task.loss(weights, train),
                "norm": jnp.linalg.norm(every),
                "nuclear": every.sum(),
                "rank": jnp.stack(ranks).mean(),
            }

        state = program.start(transform, params, train)
        return jax.lax.scan(step, state, length=STEPS)[1]

    return train


def less(task: Task, optimizer: Optimizer, job: Line) -> Line:
    """Return the steps to the target with a part of the data, None if missed."""
    smaller, settings = _smaller(task.name, job["fraction"]), job["settings"]
    train_size = size(smaller.data(job["seed"])[0])
    whole = settings[BATCH] == task.batches[-1]
    batch = train_size if whole else min(settings[BATCH], train_size)
    program = _program(smaller, optimizer, batch)
    result = program.run({**settings, BATCH: batch}, job["seed"])
    return {name: result[name] for name in ("steps", "ran", "score")} | {BATCH: batch}


@functools.lru_cache(maxsize=2)
def _smaller(name: str, fraction: float) -> Task:
    return dataclasses.replace(with_fraction(name, fraction), steps=BUDGET)


@functools.lru_cache(maxsize=1)
def _program(task: Task, optimizer: Optimizer, batch: int) -> Program:
    return Program(task, optimizer, batch)


def _short(numbers: jax.Array) -> list[float | None]:
    values = (float(f"{number:.5g}") for number in np.asarray(numbers))
    return [value if math.isfinite(value) else None for value in values]


class Found:
    """What a log of this kind says; medians are over seeds."""

    def __init__(self, record: Record):
        plan = record.header["why"]
        self.budget, self.seeds, self.fractions = plan["budget"], plan["seeds"], plan["fractions"]
        self.task = task_of(record)
        self.courses = [line for line in record.lines if line["kind"] == COURSE]
        self.less = [self._held(line) for line in record.lines if line["kind"] == LESS]
        self.names = list(dict.fromkeys(line["optimizer"] for line in self.courses))

    def _held(self, line: Line) -> Line:
        """Return a line as it is now counted: older runs ended with the budget, held or not."""
        looks = (self.task.hold - 1) * self.task.every
        missed = line["steps"] is None or line["ran"] - line["steps"] < looks
        return line | {"steps": None if missed else line["steps"]}

    @property
    def is_finished(self) -> bool:
        """Whether all runs of its optimizers are there."""
        runs = len(self.names) * len(self.seeds)
        return len(self.courses) == runs and len(self.less) == runs * len(self.fractions)

    def course(self, name: str, measure: str) -> np.ndarray:
        """Return a measure's median after each step."""
        runs = [line[measure] for line in self.courses if line["optimizer"] == name]
        numbers = np.array(runs, float)  # what diverged has none, and has no score either
        return np.median(np.nan_to_num(numbers, nan=0.0 if measure == "score" else np.nan), axis=0)

    def reached(self, name: str) -> int:
        """Return the first step after which the median score stays at the target."""
        below = np.flatnonzero(self.course(name, "score") < self.task.target)
        return int(below[-1]) + 2 if len(below) else 1

    def at_target(self, name: str, measure: str) -> float:
        """Return a measure's median at the target; not a number if the course ends before it."""
        course, step = self.course(name, measure), self.reached(name)
        return float(course[step - 1]) if step <= len(course) else math.nan

    def steps(self, name: str, fraction: float) -> tuple[float, int]:
        """Return the median steps with a share of the data, and how many seeds got there."""
        lines = [line for line in self.less if line["optimizer"] == name]
        steps = [line["steps"] for line in lines if line["fraction"] == fraction]
        found = sum(one is not None for one in steps)
        return float(np.median([self.budget if one is None else one for one in steps])), found
