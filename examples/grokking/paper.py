"""Run every experiment that has no finished log yet, and go on where an earlier command stopped.

A run in progress has a file of its own in logs/parts; when it has ended by itself, it is added to
its table's log.
"""

import concurrent.futures
import dataclasses
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path

from common.checks import nearest
from common.files import locked
from tqdm import tqdm

from grokking.config import Config
from grokking.experiments import Experiment
from grokking.log import LogError, append, read_runs
from grokking.outcomes import finished_runs
from grokking.questions import EXPERIMENTS
from grokking.session import run_timing, train_logged
from grokking.toy_experiment import run_toy
from grokking.training import TrainingDiverged

UNKNOWN_SECONDS = 60.0
# What is no training run: how to make its log, and about how many seconds it takes.
OTHERS: dict[str, tuple[Callable[[Path], None], float]] = {
    "toy": (run_toy, 30.0),
    "timing": (run_timing, 400.0),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run to do: the log it belongs to, its names, and about how long it takes."""

    log: Path
    name: str
    label: str
    config: Config
    seconds: float

    @property
    def part(self) -> Path:
        """The run's own file while it is in progress."""
        return self.log.parent / "parts" / self.log.stem / f"{self.name}.part"


def run_missing(names: Sequence[str], processes: int, logs: Path, dry_run: bool) -> list[str]:
    """Run all that is missing, after saying how long it takes; return the labels of failures.

    Args:
        names: experiments; none means all of them.
        processes: runs at a time.
        logs: folder of the logs.
        dry_run: only list the runs.

    Raises:
        ValueError: an unknown name, no process, or a finished run with other settings.
        OSError: `logs` is a file, or another command writes to it.
    """
    known = [*EXPERIMENTS, *OTHERS]
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"the experiments are {', '.join(known)}; got {', '.join(unknown)}; "
            f"{nearest(unknown[0], known)}none means all"
        )
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}; 2 is the default")
    if logs.exists() and not logs.is_dir():
        raise NotADirectoryError(f"logs must be a folder, and {logs} is a file; choose another")
    chosen = names or known
    todo = list(jobs([EXPERIMENTS[name] for name in chosen if name in EXPERIMENTS], logs))
    others = [name for name in chosen if name in OTHERS and not _other(name, logs).exists()]
    _announce(todo, others, processes)
    if dry_run:
        for name in [*(job.label for job in todo), *others]:
            print(f"  {name}")
        return []
    parts = logs / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    with locked(parts, wait=False):
        failed = run_all(todo, processes) if todo else []
        for name in others:
            print(f"{name} ...")
            part = _other(name, logs).with_suffix(".part")
            OTHERS[name][0](part)
            part.replace(_other(name, logs))
    return failed


def jobs(experiments: Iterable[Experiment], logs: Path) -> Iterator[Job]:
    """Yield what has no finished run yet, and say which runs were cut off.

    Raises:
        LogError: a finished run has other settings.
    """
    for experiment in experiments:
        log = experiment.log(logs)
        runs = read_runs(log) if log.exists() else []
        done = {run.name: run for run in runs if run.finished}
        for run in runs:
            if run.problem and run.name not in done:
                print(f"warning: {log}: {run.problem}; it is run again")
        for row in experiment.rows:
            for name, config in row.runs().items():
                label = f"{experiment.name}: {row.label}, seed {config.seed}"
                if name not in done:
                    seconds = _seconds(experiment.log()).get(name, UNKNOWN_SECONDS)
                    yield Job(log, name, label, config, seconds)
                elif done[name].config != config:
                    raise LogError(
                        f"a finished run must have the settings that the experiment asks for, and "
                        f"{name} in {log} has others; move it away"
                    )


def run(job: Job) -> str:
    """Train one job, in a process of its own, and add it to its log; return how it ended.

    A part that an earlier command left is added if its run had ended, and kept as
    `.unfinished` if not.
    """
    if job.part.exists():
        if any(run.finished and run.config == job.config for run in _runs_of(job.part)):
            append(job.log, job.part)
            return "done before"
        job.part.replace(job.part.with_suffix(".unfinished"))
    outcome = "done"
    try:
        train_logged(job.part, job.name, job.config, job.label, bar=False)
    except TrainingDiverged:
        outcome = "diverged"
    append(job.log, job.part)
    return outcome


def run_all(todo: Sequence[Job], processes: int) -> list[str]:
    """Run the longest first, `processes` at a time, each on its own core; return failures."""
    context = multiprocessing.get_context("spawn")
    place = context.Value("i", 0)
    started = time.perf_counter()
    failed = []
    with (
        concurrent.futures.ProcessPoolExecutor(
            processes, context, _settle, (place, os.getpid())
        ) as pool,
        tqdm(total=len(todo), unit="run") as bar,
    ):
        futures = {pool.submit(run, job): job for job in sorted(todo, key=lambda job: -job.seconds)}
        _show_running(bar, futures, processes)
        try:
            for future in concurrent.futures.as_completed(futures):
                label, error = futures[future].label, future.exception()
                outcome = f"failed: {error}" if error else future.result()
                failed += [label] if error else []
                tqdm.write(f"{time.perf_counter() - started:7.0f} s  {label}: {outcome}")
                bar.update()
                _show_running(bar, futures, processes)
        except KeyboardInterrupt:
            print("\ninterrupted; finished runs are kept, the others start again next time")
            os._exit(130)  # the workers notice, and end
    return failed


def _announce(todo: Sequence[Job], others: Sequence[str], processes: int) -> None:
    """Say what there is to do, and how long it takes."""
    if not todo and not others:
        print("nothing to do: every run has its finished log")
        return
    seconds = sum(job.seconds for job in todo) / processes
    seconds += sum(OTHERS[name][1] for name in others)
    guesses = sum(job.seconds == UNKNOWN_SECONDS for job in todo)
    print(
        f"{len(todo) + len(others)} to do, about {seconds / 60:.0f} minutes with {processes} runs "
        f"at a time, judging by the logs in the repository ({guesses} have none: a minute each)"
    )


def _show_running(bar: tqdm, futures: Mapping[Future, Job], processes: int) -> None:
    """Show the runs in progress beside the bar; the pool counts one more than there are."""
    running = [job.label for future, job in futures.items() if not future.done()][:processes]
    bar.set_postfix_str(" | ".join(running))


def _other(name: str, logs: Path) -> Path:
    return logs / f"{name}.jsonl"


def _runs_of(part: Path) -> list:
    """Return the runs of a part; none if it was cut off within its header."""
    try:
        return read_runs(part)
    except LogError:
        return []


@functools.cache
def _seconds(log: Path) -> dict[str, float]:
    """Return the seconds of the runs in a log, with compilation."""
    runs = finished_runs(log).values()
    return {
        run.name: run.ending["seconds"] + run.ending["compile_seconds"]
        for run in runs
        if run.ending and not run.diverged
    }


def _settle(place: "multiprocessing.sharedctypes.Synchronized", parent: int) -> None:
    """Take a core of one's own, before JAX counts them, and end with the parent.

    On one core a run does not depend on how many there are: the same seed gives the same log.
    """
    with place.get_lock():
        index = place.value
        place.value += 1
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[index % len(cores)]})
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)
