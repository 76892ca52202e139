"""Run the paper's experiments and ours, resume where they stopped, then make the pages.

    python examples/grokking/paper.py              # everything that has no finished log yet
    python examples/grokking/paper.py T2 toy       # two of the experiments
    python examples/grokking/paper.py --dry-run    # what is left to do, and how long it takes

Finished runs are skipped, so an interrupted command goes on where it was.
"""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Annotated

import tyro
from tqdm import tqdm

from grokking import pages
from grokking.config import Config
from grokking.experiments import EXPERIMENTS, LOGS, Experiment
from grokking.images import Images, load
from grokking.of_the_paper import from_folder
from grokking.pace import run_pace
from grokking.record import LogError
from grokking.results import log_at
from grokking.session import train_logged
from grokking.toy_figure import run_toy
from grokking.train import TrainingDiverged

UNKNOWN_SECONDS = 60.0
# What is no training run: the log that says it is done, how to make it, about how many seconds.
OTHERS = {"toy": (run_toy, 30.0), "pace": (run_pace, 400.0)}


@dataclasses.dataclass(frozen=True)
class Job:
    """One training run to do: where to log it, and about how long it takes."""

    path: Path
    label: str
    config: Config
    seconds: float


def jobs(experiments: Iterable[Experiment], logs: Path) -> Iterator[Job]:
    """Yield what has no finished log yet.

    Raises:
        LogError: a finished log belongs to another recipe.
    """
    for experiment in experiments:
        for row in experiment.rows:
            for config in row.runs():
                path = experiment.log_of(row, config.seed, logs)
                if not _finished(path, config):
                    label = f"{experiment.name}: {row.label}, seed {config.seed}"
                    seconds = _estimate(experiment.log_of(row, config.seed))
                    yield Job(path, label, config, seconds)


def run(job: Job) -> str:
    """Train one job, in a process of its own; an unfinished log is kept under another ending."""
    if job.path.exists():
        job.path.replace(job.path.with_suffix(".unfinished"))
    try:
        train_logged(job.config, job.path, job.label, bar=False)
    except TrainingDiverged:
        return "diverged"
    return "done"


def run_all(todo: Sequence[Job], processes: int) -> list[str]:
    """Run the longest first, `processes` at a time, each on its own core; return what failed."""
    context = multiprocessing.get_context("spawn")
    place = context.Value("i", 0)
    started = time.perf_counter()
    failed = []
    with (
        concurrent.futures.ProcessPoolExecutor(
            processes, context, _settle, (place, processes, os.getpid())
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
            os._exit(130)  # the runs notice, and end, too
    return failed


def _show_running(bar: tqdm, futures: Mapping[Future, Job], processes: int) -> None:
    """Show beside the bar what is being trained; the pool calls one more run running than is."""
    running = [job.label for future, job in futures.items() if not future.done()][:processes]
    bar.set_postfix_str(" | ".join(running))


def main(
    names: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="EXPERIMENT ...")
    ] = (),
    processes: int = 2,
    logs: Path = LOGS,
    data: Path | None = None,
    dry_run: bool = False,
) -> None:
    """Run what is missing, then make the pages.

    Args:
        names: experiments (T2, T3, T4, T6, T7, T8, both, peers, spectra, decay, switch, length,
            floor, power, methods, parity-seeds, toy, pace); none means all of them.
        processes: runs at a time.
        logs: folder of the logs; the pages are made from the repository's own alone.
        data: folder with the files of MNIST or CIFAR-10; adds the experiments mnist and cifar10.
        dry_run: only say what would be run, and how long it would take.
    """
    try:
        todo, others = plan(names, processes, logs, data)
    except (ValueError, OSError) as error:  # bad input, and nothing was run
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from error
    seconds = sum(job.seconds for job in todo) / processes
    seconds += sum(OTHERS[name][1] for name in others)
    guesses = sum(job.seconds == UNKNOWN_SECONDS for job in todo)
    print(
        f"{len(todo) + len(others)} to do, about {seconds / 60:.0f} minutes with {processes} runs "
        f"at a time, judging by the logs in the repository ({guesses} have none: a minute each)"
    )
    if dry_run:
        print("\n".join(f"  {name}" for name in [*(job.label for job in todo), *others]))
        return
    failed = run_all(todo, processes) if todo else []
    for name, path in others.items():
        make_other(name, path)
    if logs == LOGS:
        pages.render()
        print(f"written: {pages.DOCS}")
    else:
        print(f"to see them: python -m grokking table {logs}/*/*.jsonl")
    if failed:
        raise SystemExit(f"{len(failed)} runs failed: {'; '.join(failed)}")


def plan(
    names: Sequence[str], processes: int, logs: Path, data: Path | None
) -> tuple[list[Job], dict[str, Path]]:
    """Return the runs and the other logs to make.

    Raises:
        ValueError: an unknown name, no process, or a finished log of another recipe.
        OSError: logs is a file, or the data's files are not there.
    """
    if processes < 1:
        raise ValueError(f"processes must be at least 1, got {processes}; 2 is the default")
    if logs.exists() and not logs.is_dir():
        raise NotADirectoryError(f"logs must be a folder, and {logs} is a file; choose another")
    table = EXPERIMENTS | ({} if data is None else from_folder(data))
    known = [*table, *OTHERS]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(
            f"the experiments are {', '.join(known)} (and, with --data, mnist and cifar10); got "
            f"{', '.join(unknown)}"
        )
    chosen = names or known
    todo = list(jobs([table[name] for name in chosen if name in table], logs))
    for task in {job.config.task for job in todo}:
        if isinstance(task, Images) and task.folder is not None:
            load(task.source, task.folder)
    others = {name: logs / name / f"{name}.jsonl" for name in chosen if name in OTHERS}
    return todo, {name: path for name, path in others.items() if not path.exists()}


def make_other(name: str, path: Path) -> None:
    """Make a log that is no training run; a half-made one is not taken for it."""
    print(f"{name} ...")
    part = path.with_suffix(".part")
    part.unlink(missing_ok=True)
    OTHERS[name][0](part)
    part.replace(path)


def _finished(path: Path, config: Config) -> bool:
    """Say whether the run is on record; warn of a log that is cut off."""
    log = log_at(path)
    if log is None:
        if path.exists():
            print(f"warning: {path} is cut off in its first line; it is run again")
        return False
    for problem in log.problems:
        print(f"warning: {problem}; it is run again")
    if log.finished and log.config != config:
        raise LogError(
            f"the log must belong to the run that the experiment asks for, and {path} has another "
            "recipe; move it away"
        )
    return log.finished


def _estimate(committed: Path) -> float:
    """Return the seconds that the committed log of this run says, with its compilation."""
    log = log_at(committed)
    ending = (log and log.ending) or {}
    return ending.get("seconds", UNKNOWN_SECONDS) + ending.get("compile_seconds", 0.0)


def _settle(
    place: "multiprocessing.sharedctypes.Synchronized", processes: int, parent: int
) -> None:
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


if __name__ == "__main__":
    tyro.cli(main)
