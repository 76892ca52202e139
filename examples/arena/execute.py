"""A job's work, in whatever process: the lines of its results, one after the other."""

import dataclasses
import functools
import time
from collections.abc import Iterator
from typing import TypeAlias

import jax
import numpy as np

from arena.contract import Task
from arena.field import Field
from arena.plan import Job
from arena.record import COUNT, TIMES, Line
from arena.space import BATCH, Settings, points, traced
from arena.trial import Program, task_start

REPEATS, COMPILES = 5, 3
TIMED_STEPS = 200


@dataclasses.dataclass(frozen=True)
class TimeJob:
    """All bests, to be timed side by side: settings and number of steps, by optimizer."""

    bests: dict[str, tuple[Settings, int]]
    seed: int


@dataclasses.dataclass(frozen=True)
class ProbeJob:
    """A few steps of an optimizer's first trial, for an estimate."""

    optimizer: str
    steps: int = 10


AnyJob: TypeAlias = Job | TimeJob | ProbeJob


def execute(field: Field, job: AnyJob) -> Iterator[Line]:
    """Run a job and yield the line of each result as soon as it is there."""
    if isinstance(job, TimeJob):
        yield times(field, job)
    elif isinstance(job, ProbeJob):
        yield probe(field, job)
    else:
        yield from results(field, job)


def results(field: Field, job: Job) -> Iterator[Line]:
    """Run trials, or the best one on fresh seeds, and yield each one's line."""
    program = _program(field.task, field.optimizers[job.optimizer], job.batch)
    common = {"kind": job.kind, "optimizer": job.optimizer, "round": job.number}
    if job.kind == COUNT:
        ((_, settings),) = job.todo
        for seed in job.seeds:
            run = program.run(settings, seed)
            yield common | run | {"compile": program.take_compile_seconds()}
        return
    bound = job.bound
    for trial, settings in job.todo:
        runs = trial_runs(field.task, program, settings, job.seeds, bound)
        total = sum(run["steps"] or field.task.steps for run in runs)
        total += field.task.steps * (len(job.seeds) - len(runs))
        bound = total if bound is None else min(bound, total)
        yield common | {
            "trial": trial,
            "settings": settings,
            "runs": runs,
            "compile": program.take_compile_seconds(),
        }


def trial_runs(
    task: Task, program: Program, settings: Settings, seeds: tuple[int, ...], bound: int | None
) -> list[Line]:
    """Run a trial on its seeds until it misses the target on one, which counts for the rest.

    It is given up as soon as it cannot come under `bound` steps in all. Then it is worse than an
    earlier one of the same optimizer and batch size, so neither the best of those nor the best
    after any number of trials depends on it.
    """
    runs: list[Line] = []
    total = 0
    for place, seed in enumerate(seeds, 1):
        least = task.every * (len(seeds) - place)
        limit = None if bound is None else bound - total - least
        runs.append(program.run(settings, seed, limit))
        total += runs[-1]["steps"] or task.steps
        if runs[-1]["steps"] is None or (bound is not None and total + least > bound):
            break
    return runs


def probe(field: Field, job: ProbeJob) -> Line:
    """Return the seconds of compilation and of a step, at the middle of the batch sizes."""
    task, optimizer = field.task, field.optimizers[job.optimizer]
    (settings,) = points(job.optimizer, 0, optimizer.knobs, task.batches, 1)
    batch = task.batches[len(task.batches) // 2]
    program = _program(task, optimizer, batch)
    runs = [program.run(settings, task.tuning_seeds[0], job.steps) for _ in range(2)]
    compilation = program.take_compile_seconds()
    return {"compile": compilation, "step_seconds": runs[-1]["seconds"] / runs[-1]["ran"]}


def times(field: Field, job: TimeJob) -> Line:
    """Time training without looks, all optimizers in turn in every round, and their compilation."""
    calls, compiled = {}, dict[str, list[float]]()
    for name, (settings, steps) in job.bests.items():
        optimizer = field.optimizers[name]
        program = Program(field.task, optimizer, settings[BATCH])
        start = task_start(field.task, job.seed)
        values = traced(optimizer.knobs, settings)
        calls[name] = program.steps_alone, (values, *start[:3], np.int32(min(steps, TIMED_STEPS)))
        compiled[name] = []
    executables = {}
    for _ in range(COMPILES):
        for name, (function, arguments) in calls.items():
            jax.clear_caches()
            started = time.perf_counter()
            executables[name] = jax.jit(function).lower(*arguments).compile()
            compiled[name].append(round(time.perf_counter() - started, 3))
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(REPEATS + 1):  # the first one warms up
        for name, (_, arguments) in calls.items():
            started = time.perf_counter()
            jax.block_until_ready(executables[name](*arguments))
            if turn:
                seconds[name].append(round(time.perf_counter() - started, 5))
    rows = {
        name: {
            "settings": settings,
            "steps": min(steps, TIMED_STEPS),
            "seconds": seconds[name],
            "compile": compiled[name],
        }
        for name, (settings, steps) in job.bests.items()
    }
    return {"kind": TIMES, "seed": job.seed, "rows": rows}


@functools.lru_cache(maxsize=256)
def _program(*arguments: object) -> Program:
    return Program(*arguments)  # type: ignore
