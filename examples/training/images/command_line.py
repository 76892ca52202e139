"""The command line: `python examples/training/images --help`."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from arena.record import Record, read
from language import compare
from language.command_line import run_one

from images import pages, results
from images.study import NAMES, Config, Study


@dataclasses.dataclass(frozen=True)
class _OnLogs:
    out: Path = Path("runs/images")
    """Folder of the logs, one file a network."""

    def log(self, network: str) -> Path:
        return self.out / f"{network}.jsonl"

    def existing(self, network: str) -> Record:
        path = self.log(network)
        if not path.exists():
            raise ValueError(f"this needs a log, and there is no {path}; `compare` makes it")
        return read(path)


@dataclasses.dataclass(frozen=True)
class Compare(_OnLogs):
    """Tune every optimizer alike on a network, run the bests on fresh seeds, print the tables.

    Killed, the same command goes on.
    """

    network: Literal["cnn", "vit"] = "cnn"
    """Convolutions, or attention."""
    steps: int = 300
    """Updates."""
    batch: int = 100
    """Digits in one."""
    every: int = 10
    """Steps from one look at the held-out digits to the next."""
    trials: int = 16
    """Trials of each optimizer."""
    seeds: int = 3
    """Fresh seeds for the best of each."""
    only: tuple[str, ...] = NAMES
    """Names of optimizers."""

    def run(self) -> None:
        config = Config(self.network, self.steps, self.batch, self.every)
        path = self.log(self.network)
        _show(compare.run(Study(config, self.trials, self.seeds), path, self.only))
        print(f"log: {path}")


@dataclasses.dataclass(frozen=True)
class Time(_OnLogs):
    """Time the bests of a network's log side by side; nothing else should be running."""

    network: Literal["cnn", "vit"] = "cnn"
    """Convolutions, or attention."""

    def run(self) -> None:
        task = self.existing(self.network).header["task"]
        study = Study(Config(**task["model"]), task["trials"], task["seeds"])
        _show(compare.time_bests(study, self.log(self.network)))


@dataclasses.dataclass(frozen=True)
class Show(_OnLogs):
    """Print the tables of a network's log, however far it is."""

    out: Path = pages.LOGS
    """Folder of the logs, one file a network."""
    network: Literal["cnn", "vit"] = "cnn"
    """Convolutions, or attention."""

    def run(self) -> None:
        _show(self.existing(self.network))


@dataclasses.dataclass(frozen=True)
class Pages:
    """Make docs/images.md anew from the logs; nothing is trained."""

    docs: Path = pages.DOCS
    """Folder to write into."""
    out: Path = pages.LOGS
    """Folder of the logs, one file a network."""

    def run(self) -> None:
        print(pages.render(self.docs, self.out))


COMMANDS: dict[str, Callable[..., Any]] = {
    command.__name__.lower(): command for command in (Compare, Time, Show, Pages)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    about = "Two small networks on 5,000 of MNIST's digits: every optimizer tuned alike."
    return run_one(COMMANDS, arguments, "python examples/training/images", about)


def _show(record: Record) -> None:
    print(results.table(record), results.settings_table(record), sep="\n\n")
