"""The command line: `python -m grokking --help`."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Union

import tyro
from rich.console import Console
from rich.table import Column, Table

from grokking.config import Config
from grokking.plots import check_figure, plot_runs
from grokking.recipes import RECIPES
from grokking.record import Log, LogError, read_log
from grokking.report import run_table
from grokking.session import (
    DEMO_FOLDER,
    demo_runs,
    free_file,
    free_folder,
    print_paths,
    run_demo,
    train_logged,
)
from grokking.train import TrainingDiverged

PROGRAM = "python -m grokking"
BAD_INPUT, DIVERGED, INTERRUPTED = 2, 1, 130


def describe(config: Config) -> str:
    """Return a recipe's line in the help."""
    return f"{config.task.name}, width {config.width}, learning rate {config.learning_rate}"


if TYPE_CHECKING:
    Recipe = Config
else:
    Recipe = Union[  # noqa: UP007 (made from a table)
        tuple(
            Annotated[
                Config,
                tyro.conf.AvoidSubcommands,
                tyro.conf.subcommand(
                    name, default=config, prefix_name=False, description=describe(config)
                ),
            ]
            for name, config in RECIPES.items()
        )
    ]


@dataclasses.dataclass(frozen=True)
class Train:
    """Train one recipe and log it; `train RECIPE --help` shows the settings and their flags."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    log: Path | None = None
    """Log to create; left out, a free name in runs/."""
    plot: Path | None = None
    """Figure (PNG) to draw afterwards."""

    def run(self) -> None:
        """Train, then print the row of the table."""
        log = self.log or free_file(Path("runs") / f"{self.recipe.label}.jsonl")
        if self.plot is not None:
            check_figure(self.plot)
        Console().print(f"logging to {log}", soft_wrap=True, highlight=False)
        train_logged(self.recipe, log)
        logs = [read_log(log)]
        Console().print(run_table(logs))
        if self.plot is not None:
            plot_runs(logs, self.plot)
            print_paths(Console(), [self.plot])


@dataclasses.dataclass(frozen=True)
class Plot:
    """Draw the accuracies of logged runs."""

    logs: tyro.conf.Positional[tuple[Path, ...]]
    """Logs, in the order of the legend."""
    out: Path
    """Figure (PNG) to write."""

    def run(self) -> None:
        """Read, then draw."""
        check_figure(self.out)
        plot_runs(read_all(self.logs), self.out)
        print_paths(Console(), [self.out])


@dataclasses.dataclass(frozen=True)
class TableOf:
    """Print epochs and seconds to the target of logged runs."""

    logs: tyro.conf.Positional[tuple[Path, ...]]
    """Logs, in the order of the rows."""

    def run(self) -> None:
        """Read, then print."""
        Console().print(run_table(read_all(self.logs)))


@dataclasses.dataclass(frozen=True)
class ListRecipes:
    """List the recipes: the settings of the paper's Table 1."""

    def run(self) -> None:
        """Print one row a recipe."""
        columns = ("width", "learning_rate", "weight_decay", "batch_size", "epochs")
        headings = ("recipe", *(name.replace("_", "\n") for name in columns), "whitens", "then")
        whole = (Column(heading, no_wrap=True) for heading in headings)
        table = Table(*whole, box=None, pad_edge=False)
        for name, config in RECIPES.items():
            values = (f"{getattr(config, column):.5g}" for column in columns)
            table.add_row(name, *values, config.matrices, config.optimizer)
        Console().print(table)


@dataclasses.dataclass(frozen=True)
class Demo:
    """Watch SGD wait and EGD grok: three runs on addition modulo 97, a table, a figure."""

    out: Path | None = None
    """Folder for logs and figure; left out, runs/demo or the next free runs/demo-2, ..."""
    seed: int = 0
    """Decides the split, the initial values and the order of the batches."""

    def run(self) -> None:
        """Run the demonstration."""
        folder = self.out or free_folder(DEMO_FOLDER)
        if self.out is None and folder != DEMO_FOLDER:
            Console().print(f"{DEMO_FOLDER} holds logs already; this one goes to {folder}")
        run_demo(folder, demo_runs(self.seed), Console())


Command = (
    Annotated[Train, tyro.conf.subcommand("train")]
    | Annotated[Plot, tyro.conf.subcommand("plot")]
    | Annotated[TableOf, tyro.conf.subcommand("table")]
    | Annotated[ListRecipes, tyro.conf.subcommand("list")]
    | Annotated[Demo, tyro.conf.subcommand("demo")]
)


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """Grokking with Egalitarian Gradient Descent: train, log, compare."""

    command: Annotated[Command, tyro.conf.arg(name="")]


def read_all(paths: Sequence[Path]) -> list[Log]:
    """Read logs, at least one, and say on stderr what was wrong with them."""
    if not paths:
        raise LogError("this needs at least one log, got none; name the files that train wrote")
    logs = [read_log(path) for path in paths]
    for problem in (problem for log in logs for problem in log.problems):
        complain(f"warning: {problem}")
    return logs


def complain(message: str) -> None:
    """Write one line to stderr."""
    sys.stderr.write(f"{message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 1 diverged, 2 bad input, 130 interrupted.

    Raises:
        SystemExit: with code 2, the arguments do not parse; with code 0, help was asked for.
    """
    try:
        cascade = (tyro.conf.CascadeSubcommandArgs,)
        tyro.cli(CommandLine, args=arguments, prog=PROGRAM, config=cascade).command.run()
    except SystemExit as end:
        if end.code == BAD_INPUT:
            complain(f"a recipe's settings are options of it: {PROGRAM} train addition-97 --help")
        raise
    except (ValueError, OSError) as error:
        complain(f"error: {error}")
        return BAD_INPUT
    except TrainingDiverged as error:
        complain(f"error: {error}; the log is kept")
        return DIVERGED
    except KeyboardInterrupt:
        complain("interrupted; what was logged is kept")
        return INTERRUPTED
    return 0


if __name__ == "__main__":
    sys.exit(main())
