"""A job's work, and the processes that do it."""

import contextlib
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from multiprocessing.connection import Connection, wait
from typing import Any, TypeAlias

import jax
import numpy as np
from common.environment import one_blas_thread

from arena.contract import Task
from arena.field import Field, load
from arena.plan import Job, steps_sum
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
    batch: int
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
        total = steps_sum(field.task, {"runs": runs})
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
    earlier one of the same optimizer, so neither the best of those nor the best after any number
    of them depends on it. Suggestions of later settings do, on how far it came.
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
    """Return the seconds of compilation and of a step."""
    task, optimizer = field.task, field.optimizers[job.optimizer]
    (settings,) = points(job.optimizer, optimizer.knobs, task.batches, 1)
    program = _program(task, optimizer, job.batch)
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
        # Choices are made before the compilation, as by all who use the optimizer.
        choices = {
            knob.name: knob.choices.index(settings[knob.name])
            for knob in optimizer.knobs
            if knob.choices
        }
        numbers = traced((knob for knob in optimizer.knobs if not knob.choices), settings)
        function = functools.partial(_steps_alone, program, choices)
        calls[name] = function, (numbers, *start[:3], np.int32(min(steps, TIMED_STEPS)))
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


def _steps_alone(program: Program, choices: Settings, numbers: Settings, *start: Any) -> Any:
    return program.steps_alone({**choices, **numbers}, *start)


@functools.lru_cache(maxsize=256)
def _program(*arguments: object) -> Program:
    return Program(*arguments)  # type: ignore


class WorkerFailed(RuntimeError):
    """A job ended by an error, or its process by a signal."""


class Worker:
    """A process and the job that it has.

    Args:
        source: name or file of the task, to be loaded there.
        core: which of this machine's cores it has for itself; None means all of them.
    """

    def __init__(self, source: str, core: int | None):
        context = multiprocessing.get_context("spawn")
        self.connection, there = context.Pipe()
        arguments = (source, there, core, os.getpid())
        self._process = context.Process(target=_serve, args=arguments, daemon=True)
        self._process.start()
        there.close()
        self.job: AnyJob | None = None
        self.known: set[tuple[str, int]] = set()

    def start(self, job: AnyJob) -> None:
        """Hand over a job."""
        self.job = job
        if isinstance(job, Job):
            self.known.add((job.optimizer, job.batch))
        with contextlib.suppress(OSError):  # if it has ended, `receive` says why
            self.connection.send(job)

    def receive(self) -> Line | None:
        """Return a result's line, or None as the job is done.

        Raises:
            WorkerFailed: it ended by an error.
        """
        name = getattr(self.job, "optimizer", "timing")
        try:
            kind, content = self.connection.recv()
        except (EOFError, ConnectionResetError) as error:
            raise WorkerFailed(
                f"a worker's process ended while it had {name}; was its memory used up? What was "
                "logged is kept; start again, with one worker if so"
            ) from error
        if kind == "failed":
            raise WorkerFailed(f"{name} must run on this task, and it fails:\n{content}")
        if kind == "done":
            self.job = None
            return None
        return content

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


class Pool:
    """Some workers; leaving the `with` block ends them."""

    def __init__(self, source: str, count: int, pinned: bool = True):
        if count < 1:
            raise ValueError(f"workers must be at least 1, got {count}; 2 is the default")
        self.workers = [Worker(source, i if pinned else None) for i in range(count)]

    def __enter__(self) -> "Pool":
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            worker.stop()

    @property
    def idle(self) -> list[Worker]:
        """The workers without a job."""
        return [worker for worker in self.workers if worker.job is None]

    @property
    def running(self) -> list[AnyJob]:
        """The jobs at work."""
        return [worker.job for worker in self.workers if worker.job is not None]

    def results(self) -> Iterator[Line]:
        """Wait for something to happen, and yield the lines that came."""
        busy = {worker.connection: worker for worker in self.workers if worker.job is not None}
        for connection in wait(list(busy)):
            line = busy[connection].receive()  # type: ignore
            if line is not None:
                yield line


def _serve(source: str, connection: Connection, core: int | None, parent: int) -> None:
    """Work on the jobs that come, until the parent ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    if core is not None and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))  # before JAX counts them
        os.sched_setaffinity(0, {cores[core % len(cores)]})
    try:
        field = load(source)
        with one_blas_thread():
            while True:
                for line in execute(field, connection.recv()):
                    connection.send(("line", line))
                connection.send(("done", None))
    except Exception as error:
        connection.send(("failed", _told(error)))


def _told(error: Exception) -> str:
    return "".join(traceback.format_exception(error, limit=-3)).strip()


def _end_with(parent: int) -> Any:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
