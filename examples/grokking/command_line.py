"""The command line: `python examples/grokking --help`."""

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import tyro
from common.checks import nearest
from common.files import free_file
from rich.console import Console

from grokking import pages
from grokking.config import Config, option_hint, with_changes
from grokking.experiments import LOGS, PAPER
from grokking.figures import check_figure, draw_runs
from grokking.log import Run, read_runs
from grokking.paper import run_missing
from grokking.questions import EXPERIMENTS
from grokking.session import train_logged
from grokking.tables import console_table
from grokking.training import TrainingDiverged, check_fit

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130
Paths = Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="LOG ...")]


@dataclasses.dataclass(frozen=True)
class Train:
    """Train one run and log it; `list` shows names and settings."""

    name: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="NAME")]
    """A setting of the paper, such as addition-97, or a row of a table, such as T2/p97-egd_svd."""
    changes: Annotated[
        tuple[tuple[str, ...], ...],
        tyro.conf.arg(name="set", metavar="FIELD=VALUE ..."),
        tyro.conf.UseAppendAction,
    ] = ()
    """Changed settings, such as: epochs=200 optimizer.learning_rate=0.5 task.p=79"""
    seed: int = 0
    """Decides the split, the initial values and the order of the batches."""
    log: Path | None = None
    """Log to create; left out, a free name in runs/."""
    plot: Path | None = None
    """Figure (PNG) to draw afterward."""

    def run(self) -> None:
        if () in self.changes:
            raise ValueError("--set needs a change, got none; write --set epochs=200, say")
        changes = [change for group in self.changes for change in group]
        config = with_changes(_named(self.name), changes).changed(seed=self.seed)
        check_fit(config)
        name = f"{self.name.replace('/', '-')}-seed{self.seed}"
        log = self.log or free_file(Path("runs") / f"{name}.jsonl")
        _refuse_to_overwrite(log)
        _check_figure(self.plot, [log])
        _say(f"log: {log}")
        train_logged(log, name, config)
        _show(read_runs(log), self.plot)


@dataclasses.dataclass(frozen=True)
class Show:
    """Print a table of logged runs, and draw their accuracies."""

    logs: Paths
    """Logs, in the order of the rows."""
    plot: Path | None = None
    """Figure (PNG) to draw."""

    def run(self) -> None:
        if not self.logs:
            raise ValueError("this needs at least one log, got none; name files of logs")
        runs = [run for path in self.logs for run in read_runs(path)]
        _check_figure(self.plot, self.logs)
        for problem in filter(None, (run.problem for run in runs)):
            _complain(f"warning: {problem}")
        _show(runs, self.plot)


@dataclasses.dataclass(frozen=True)
class List:
    """List the names of all runs; with a name, print its settings as JSON."""

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[NAME]")] = None
    """A setting of the paper or TABLE/ROW; left out, all of them."""

    def run(self) -> None:
        if self.name is not None:
            print(json.dumps(_named(self.name).to_dict(), indent=2))
            return
        print("\n".join(PAPER))
        for name, experiment in EXPERIMENTS.items():
            print(f"\n{experiment.title}:")
            print("\n".join(f"  {name}/{row.name:24} {row.label}" for row in experiment.rows))


@dataclasses.dataclass(frozen=True)
class Paper:
    """Run the experiments that have no finished log yet, then make the pages."""

    names: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="EXPERIMENT ...")
    ] = ()
    """T2, T3, T4, T6, T7, T8, both, spectra, ..., toy, timing; none means all of them."""
    processes: int = 2
    """Runs at a time."""
    logs: Path = LOGS
    """Folder of the logs; the pages are made from the repository's own alone."""
    dry_run: bool = False
    """Only say what would be run, and how long it would take."""

    def run(self) -> None:
        failed = run_missing(self.names, self.processes, self.logs, self.dry_run)
        if not self.dry_run and self.logs.resolve() == LOGS:
            Pages().run()
        if failed:
            raise SystemExit(f"{len(failed)} runs failed: {'; '.join(failed)}")


@dataclasses.dataclass(frozen=True)
class Pages:
    """Make docs/grokking anew from the logs; nothing is trained."""

    docs: Path = pages.DOCS
    """Folder to write into."""

    def run(self) -> None:
        pages.render(self.docs)
        _say(f"written: {self.docs / 'grokking'}")


COMMANDS: dict[str, Callable[..., Any]] = {
    command.__name__.lower(): command for command in (Train, Show, List, Paper, Pages)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 failed, 2 bad input, 130 interrupted.

    Raises:
        SystemExit: with code 2, the arguments do not parse; with code 0, help was asked for.
    """
    command = _command(sys.argv[1:] if arguments is None else arguments)
    try:
        command.run()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader has seen enough, as in `list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (ValueError, OSError) as error:
        _complain(f"error: {_told(error)}")
        return BAD_INPUT
    except TrainingDiverged as error:
        _complain(f"error: {error}; the log is kept")
        return FAILED
    except (jax.errors.JaxRuntimeError, OverflowError) as error:
        reason = str(error).partition("\n")[0]
        _complain(f"error: the run must fit the machine, and JAX says: {reason}; lower its sizes")
        return FAILED
    except KeyboardInterrupt:
        _complain("interrupted; what was logged is kept")
        return INTERRUPTED
    return 0


def _command(arguments: Sequence[str]) -> Any:
    """Return the command that the arguments spell; a field taken for an option gets a hint."""
    try:
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            args=arguments,
            prog="python examples/grokking",
            description="Grokking with egalitarian gradient descent: train, log, compare.",
        )
    except SystemExit as stop:
        hint = option_hint(arguments[1:]) if arguments and arguments[0] == "train" else None
        if stop.code == BAD_INPUT and hint is not None:
            _complain(hint)
        raise


def _named(name: str) -> Config:
    """Return the config of a setting of the paper or of TABLE/ROW."""
    rows = {
        f"{table}/{row.name}": row.config
        for table, experiment in EXPERIMENTS.items()
        for row in experiment.rows
    }
    runs = PAPER | rows
    if name not in runs:
        raise ValueError(
            f"a run is one of {', '.join(PAPER)}, or TABLE/ROW; got {name!r}; "
            f"{nearest(name, runs)}see `list`"
        )
    return runs[name]


def _show(runs: Sequence[Run], figure: Path | None) -> None:
    Console().print(console_table(runs))
    if figure is not None:
        draw_runs(runs, figure)
        _say(f"figure: {figure}")


def _refuse_to_overwrite(log: Path) -> None:
    if log.is_file():
        raise FileExistsError(
            f"a log is never overwritten, and {log} exists; choose another with --log or --out"
        )


def _check_figure(figure: Path | None, logs: Sequence[Path]) -> None:
    """Refuse a figure that cannot be written, or that would replace a log."""
    if figure is None:
        return
    if figure.resolve() in [log.resolve() for log in logs]:
        raise ValueError(f"the figure must not replace a log, got {figure} for both; rename one")
    check_figure(figure)


def _told(error: Exception) -> str:
    """Return an error's message; that of the operating system with rule and remedy."""
    if isinstance(error, OSError) and error.filename is not None:
        return (
            f"a path must be one that this command can use, and {error.filename} is not "
            f"({error.strerror}); choose another"
        )
    return str(error)


def _say(message: str) -> None:
    """Print one line, unwrapped so that a path can be copied."""
    Console().print(message, soft_wrap=True, highlight=False)


def _complain(message: str) -> None:
    sys.stderr.write(f"{message}\n")
