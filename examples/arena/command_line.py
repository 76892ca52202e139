"""The command line: `python examples/arena --help`."""

import dataclasses
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from tabulate import tabulate

from arena import borrow, demo, pages, session, tables, why
from arena.field import ONE_BATCH, Field, check_field, check_known, load
from arena.figures import draw
from arena.record import Record, check_same, read
from arena.workers import WorkerFailed

LISTED = ("tasks", "optimizers")
BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
LOGS = Path(__file__).resolve().parent / "logs"
Name = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="TASK")]


@dataclasses.dataclass(frozen=True)
class _OnTask:
    task: Name
    """A name of `list`, or a Python file that defines `task`."""
    out: Path = Path("runs/arena")
    """Folder of the log, TASK.jsonl. The pages are made from the logs of the repository alone."""
    trials: int | None = None
    """Trials of each optimizer; left out, the task's own number."""
    batch: int | None = None
    """Tune at this batch size alone, in a log of its own; left out, over the task's sizes."""

    def load(self) -> tuple[str, Field]:
        """Return where the task comes from, and the field.

        Raises:
            ValueError: an unknown task.
        """
        return self.task, load(self.task, self.trials, self.batch)

    def existing(self, field: Field, or_ours: bool = True) -> Path:
        """Return the path of the task's log, or of that in the repository if it is the arena's.

        Raises:
            ValueError: there is none.
        """
        path, folder = self.log(field), LOGS if self.batch is None else LOGS / "batches"
        ours = folder / f"{field.task.name}.jsonl"
        if path.exists():
            return path
        if field.code or not or_ours or not ours.exists():
            raise ValueError(f"this needs a log, and there is no {path}; `run` makes it")
        return ours

    def log(self, field: Field) -> Path:
        """Return the path of the task's log."""
        return self.out / f"{field.task.name}.jsonl"


@dataclasses.dataclass(frozen=True)
class Demo:
    """Watch SGD wait and EGD grok, beside a tuned AdamW: four runs, a table, a figure."""

    out: Path = Path("runs")
    """Folder of demo/, for log and figure; a run that was killed goes on there."""
    seed: int = demo.SEED
    """Decides the split, the initial values and the order of the batches."""

    def run(self) -> None:
        log = demo.log_of(self.out, self.seed)
        figure = log.parent / "accuracy.png"
        lines = demo.run(log, demo.tuned_log(LOGS), self.seed)
        found = demo.rows(lines)
        headings = ("addition modulo 97", "steps to 95 %", "test", "seconds")
        print(tabulate(found, headings, disable_numparse=True))
        demo.draw(lines, figure)
        _say(f"log: {log}\nfigure: {figure}")


@dataclasses.dataclass(frozen=True)
class Run(_OnTask):
    """Tune every optimizer alike, run the bests on fresh seeds, time them, print the table.

    A run that was killed goes on where it was, by the same command.
    """

    workers: int = 2
    """Processes at once, each with one core."""
    only: tuple[str, ...] = ()
    """Names of optimizers; left out, all of them."""
    anew: tuple[str, ...] = ()
    """Names of optimizers that start anew: their lines so far no longer count. Killed before all
    fresh seeds are counted, the same command goes on with what it began anew."""
    times: bool = True
    """Time the bests at the end; `time` does it later, when nothing else runs."""

    def run(self) -> None:
        source, field = self.load()
        for name in self.anew:
            check_known("an optimizer", name, field.optimizers)
        check_field(field.only(self.only))
        log = self.log(field)
        session.say(field.only(self.only))
        names = self.only, self.anew
        record = session.run(field, source, log, self.workers, *names, timing=self.times)
        _show(record)
        figure = log.with_suffix(".png")
        draw(record, {name: one.title for name, one in field.optimizers.items()}, figure)
        _say(f"log: {log}\nfigure: {figure}")


@dataclasses.dataclass(frozen=True)
class Time(_OnTask):
    """Time the bests of a log side by side, again if need be; nothing else should be running."""

    def run(self) -> None:
        source, field = self.load()
        _show(session.time_again(field, source, self.existing(field, or_ours=False)))


@dataclasses.dataclass(frozen=True)
class Why(_OnTask):
    """Log the course of the bests' runs, norms and ranks, and their steps with less data.

    For modular tables. The log is why/TASK.jsonl beside the task's own. A run that was killed goes
    on where it was.
    """

    only: tuple[str, ...] = ()
    """Names of optimizers; left out, all of them."""

    def run(self) -> None:
        if self.batch is not None:
            raise ValueError(
                f"this needs a table with all batch sizes, got --batch {self.batch}; leave it out"
            )
        _, field = self.load()
        chosen = why.study(field, read(self.existing(field)), self.only)
        path = self.out / "why" / f"{field.task.name}.jsonl"
        why.run(chosen, path)
        _say(f"log: {path}")


@dataclasses.dataclass(frozen=True)
class Borrow:
    """Run EGD at the best settings of its relatives, on the fresh seeds of their tables.

    A run that was killed goes on where it was.
    """

    out: Path = Path("runs/arena")
    """Folder of borrowed/, for the log."""
    logs: Path = LOGS
    """Folder of the tables' logs."""

    def run(self) -> None:
        path = borrow.log_of(self.out)
        borrow.run(self.logs, path)
        _say(f"log: {path}")


@dataclasses.dataclass(frozen=True)
class Plan(_OnTask):
    """Say what will be run, from which ranges, and about how long it takes; nothing is logged."""

    workers: int = 2
    """Processes at once."""
    only: tuple[str, ...] = ()
    """Names of optimizers; left out, all of them."""

    def run(self) -> None:
        source, field = self.load()
        chosen = field.only(self.only)
        check_field(chosen)
        session.say(chosen, ranges=True)
        path = self.log(field)
        record = read(path) if path.exists() else None
        if record is not None:
            check_same(path, record, field.config(), chosen.optimizers)
        print(session.time_needed(chosen, source, record, self.workers))


@dataclasses.dataclass(frozen=True)
class Show(_OnTask):
    """Print the table of a task's log, however far it is; without one, that of the repository."""

    def run(self) -> None:
        size = "" if self.batch is None else f"{ONE_BATCH}{self.batch}"
        path = self.out / f"{self.task}{size}.jsonl"
        if not path.exists():
            path = self.existing(self.load()[1])
        _show(read(path))


@dataclasses.dataclass(frozen=True)
class List:
    """List the tasks and the optimizers."""

    def run(self) -> None:
        found = [getattr(importlib.import_module(f"arena.{name}"), name.upper()) for name in LISTED]
        print(tables.list_all(*found))


@dataclasses.dataclass(frozen=True)
class Pages:
    """Make docs/arena anew from the logs; nothing is trained."""

    docs: Path = pages.DOCS
    """Folder to write into."""
    logs: Path = LOGS
    """Folder of the logs."""

    def run(self) -> None:
        _say(pages.render(self.docs, self.logs))


COMMANDS: dict[str, Callable[..., Any]] = {
    command.__name__.lower(): command
    for command in (Demo, Run, Time, Why, Borrow, Plan, Show, List, Pages)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 failed, 2 bad input, 130 interrupted.

    Raises:
        SystemExit: with code 2, the arguments do not parse; with code 0, help was asked for.
    """
    command = tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        args=sys.argv[1:] if arguments is None else arguments,
        prog="python examples/arena",
        description="The arena: every optimizer tuned alike, and who needs the fewest steps.",
    )
    try:
        command.run()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as in `list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError, ImportError) as error:
        _complain(f"error: {error}")
        return BAD_INPUT
    except WorkerFailed as error:
        _complain(f"error: {error}")
        return FAILED
    except KeyboardInterrupt:
        _complain("interrupted; what was logged is kept, the same command goes on")
        return INTERRUPTED
    return 0


def _show(record: Record) -> None:
    console = Console() if sys.stdout.isatty() else Console(width=120)
    console.print(tables.console_table(record), tables.console_settings(record), sep="\n\n")


def _say(message: str) -> None:
    """Print one line, unwrapped so that a path can be copied."""
    Console().print(message, soft_wrap=True, highlight=False)


def _complain(message: str) -> None:
    sys.stderr.write(f"{message}\n")
