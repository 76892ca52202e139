"""The command line: `python examples/training/language --help`."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import tyro
from arena.record import Record, read
from arena.space import Settings

from language import ablate, compare, corpus, pages, race, results
from language.config import SIZES, Config
from language.optimizers import OPTIMIZERS
from language.train import Run, train

BAD_INPUT, INTERRUPTED = 2, 130
LOGS = pages.LOGS


@dataclasses.dataclass(frozen=True)
class _OnModel:
    size: Literal["tiny", "small", "gpt2"] = "small"
    """tiny: seconds; small: minutes; gpt2: for a GPU. Options left out keep its values."""
    corpus: Path | None = None
    """Folder of Python files; left out, the standard library."""
    layers: int | None = None
    """Blocks; small has 4."""
    width: int | None = None
    """Of the residual stream, a multiple of the heads; small has 128."""
    heads: int | None = None
    """Attention heads of a block; small has 4."""
    context: int | None = None
    """Bytes that the model sees; small has 128."""
    batch: int | None = None
    """Windows in a batch; small has 16."""
    steps: int | None = None
    """Updates; small has 600."""
    every: int | None = None
    """Steps from one validation and checkpoint to the next; small has 25."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """What the model computes in; small in float32."""
    scanned: bool | None = None
    """One block with the layers stacked in front, or (small) a list of blocks."""
    tied: bool | None = None
    """The embedding's table is the head, too; not in small."""

    def config(self) -> Config:
        """Return the size with the changes.

        Raises:
            ValueError: a number that cannot be.
        """
        names = {field.name for field in dataclasses.fields(Config)} & vars(self).keys()
        given = {name: getattr(self, name) for name in names}
        changes = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(SIZES[self.size], **changes)


@dataclasses.dataclass(frozen=True)
class Train(_OnModel):
    """Train one model, with a log, checkpoints, a picture, and text from it at the end.

    A run that was killed goes on where it was, by the same command.
    """

    folder: Path = Path("runs/language")
    """Of the log, the picture and the checkpoints: one run each."""
    optimizer: Literal["egd", "adamw", "muon", "sgd", "shampoo"] = "egd"
    """Of the hidden matrices; the rest is AdamW's, but for sgd."""
    learning_rate: float | None = None
    """Peak of the matrices' learning rate; left out, as all that follows, the optimizer's own."""
    others: float | None = None
    """Peak of AdamW's learning rate on embeddings, head, biases and norms."""
    decay: float | None = None
    """Weights of the matrices shrink by the learning rate times this."""
    momentum: float | None = None
    """Decay rate of the average of the gradients, such as .95."""
    average: Literal["before", "after"] | None = None
    """EGD's is of the gradients, before the whitening, or of the whitened ones, after it."""
    scale: Literal["muon", "consistent_rms"] | None = None
    """Factor by shape of EGD, Muon and Shampoo."""
    seed: int = 0
    """Of the initial values and the batches."""

    def run(self) -> None:
        config = self.config()
        text = corpus.read(self.corpus)
        run = Run(self.folder, config, self.optimizer, self._settings(), self.seed, text)
        end = train(run)
        print(f"\n{_printable(end['prompt'])}|{_printable(end['text'])}\n")
        print(f"validation loss: {end['validation']:.4f}")
        print(f"log: {run.log}\nfigure: {run.picture}\ncheckpoints: {run.folder / 'steps'}")

    def _settings(self) -> Settings:
        """Return a value for each of the optimizer's knobs.

        Raises:
            ValueError: one that it does not have, or that cannot be.
        """
        own = OPTIMIZERS[self.optimizer].settings
        names = ("learning_rate", "others", "decay", "scale", "average", "momentum")
        given = {name: value for name in names if (value := getattr(self, name)) is not None}
        for name, value in given.items():
            if (name if name != "momentum" else "reach") not in own:
                raise ValueError(f"{self.optimizer} has no {name}; leave it out")
            if name == "momentum" and not 0 <= value < 1:
                raise ValueError(f"momentum lies in [0, 1), got {value}; 0.95, say")
            if isinstance(value, float) and not 0 <= value < float("inf"):
                raise ValueError(
                    f"{name} must be a number of at least 0, got {value}; {own[name]}, say"
                )
        if "momentum" in given:
            given["reach"] = 1 / (1 - given.pop("momentum"))
        return own | given


@dataclasses.dataclass(frozen=True)
class _OnLogs:
    corpus: Path | None = None
    """Folder of Python files; left out, the standard library."""
    out: Path = Path("runs/language")
    """Folder of the logs, compare.jsonl and ablate.jsonl."""

    @property
    def log(self) -> Path:
        return self.out / "compare.jsonl"

    @property
    def ablation(self) -> Path:
        return self.out / "ablate.jsonl"


@dataclasses.dataclass(frozen=True)
class Compare(_OnLogs, _OnModel):
    """Tune every optimizer alike, run the bests on fresh seeds, print the table.

    Killed, the same command goes on. `show` prints the repository's tables.
    """

    trials: int = 8
    """Trials of each optimizer in each round."""
    seeds: int = 3
    """Fresh seeds for the best of each."""
    rounds: int = 1
    """Rounds of tuning for each: so many times the trials."""
    only: tuple[str, ...] = ("adamw", "sgd", "muon", "egd")
    """Names of optimizers. Shampoo, whose steps are the most expensive, must be named."""

    def run(self) -> None:
        study = compare.Study(self.config(), corpus.read(self.corpus), self.trials, self.seeds)
        record = compare.run(study, self.log, self.only, self.rounds)
        _show(record)
        figure = self.log.with_suffix(".png")
        results.draw_comparison(record, figure)
        print(f"log: {self.log}\nfigure: {figure}")


@dataclasses.dataclass(frozen=True)
class Time(_OnLogs):
    """Time the bests of the comparison side by side; nothing else should be running."""

    def run(self) -> None:
        task = _existing(self.log).header["task"]
        study = compare.Study(
            Config(**task["model"]), corpus.read(self.corpus), task["trials"], task["seeds"]
        )
        _show(compare.time_bests(study, self.log))


@dataclasses.dataclass(frozen=True)
class Ablate(_OnLogs):
    """Run one change at a time from EGD's best settings in the comparison's log.

    Killed, the same command goes on. `show` prints the repository's table.
    """

    seeds: int = 1
    """Fresh seeds for each change."""
    only: tuple[str, ...] = ()
    """Names of changes; left out, all of them."""

    def run(self) -> None:
        compared = _existing(self.log)
        config = Config(**compared.header["task"]["model"])
        study = compare.Study(config, corpus.read(self.corpus), seeds=self.seeds)
        record = ablate.run(study, compared, self.ablation, self.only)
        print(results.ablation_table(record), f"log: {self.ablation}", sep="\n\n")


@dataclasses.dataclass(frozen=True)
class Race(_OnModel):
    """Train several optimizers at their own settings, and time their steps side by side.

    Nothing is tuned: for a model that is too large for that. Killed, the same command goes on.
    """

    size: Literal["tiny", "small", "gpt2"] = "gpt2"
    """tiny: a minute; small: minutes; gpt2: for a GPU. Options left out keep its values."""
    folder: Path = Path("runs/race")
    """Of the logs, the checkpoints and the picture."""
    only: tuple[Literal["adamw", "muon", "egd", "sgd", "shampoo"], ...] = ("adamw", "muon", "egd")
    """Names of optimizers."""
    seed: int = 0
    """Of the initial values and the batches."""

    def run(self) -> None:
        given = race.Race(
            self.folder, self.config(), self.only, corpus.read(self.corpus), self.seed
        )
        print(f"\n{race.run(given)}\n\nlog: {given.log}\nfigure: {given.picture}")


@dataclasses.dataclass(frozen=True)
class Show:
    """Print the tables of the logs, however far they are."""

    out: Path = LOGS
    """Folder of the logs."""

    def run(self) -> None:
        _show(_existing(self.out / "compare.jsonl"))
        if (path := self.out / "ablate.jsonl").exists():
            print(f"\n{results.ablation_table(read(path))}")


@dataclasses.dataclass(frozen=True)
class Pages:
    """Make docs/language.md anew from the logs; nothing is trained."""

    docs: Path = pages.DOCS
    """Folder to write into."""
    out: Path = LOGS
    """Folder of the logs."""

    def run(self) -> None:
        print(pages.render(self.docs, self.out))


COMMANDS: dict[str, Callable[..., Any]] = {
    command.__name__.lower(): command
    for command in (Train, Compare, Time, Ablate, Race, Show, Pages)
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    about = "A language model on the standard library: one run, a comparison, an ablation."
    return run_one(COMMANDS, arguments, "python examples/training/language", about)


def run_one(
    commands: dict[str, Callable[..., Any]],
    arguments: Sequence[str] | None,
    program: str,
    about: str,
) -> int:
    """Run the command that the arguments name, and return: 0, 2 bad input, 130 interrupted.

    Raises:
        SystemExit: with code 2, the arguments do not parse; with code 0, help was asked for.
    """
    given = sys.argv[1:] if arguments is None else arguments
    command = tyro.extras.subcommand_cli_from_dict(
        commands, args=given, prog=program, description=about
    )
    try:
        command.run()
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.stderr.write(f"error: {error}\n")
        return BAD_INPUT
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; what was logged is kept, the same command goes on\n")
        return INTERRUPTED
    return 0


def _printable(text: str) -> str:
    """Return a text that does nothing to a terminal."""
    return "".join(one if one.isprintable() or one == "\n" else "\N{MIDDLE DOT}" for one in text)


def _existing(path: Path) -> Record:
    if not path.exists():
        raise ValueError(f"this needs a log, and there is no {path}; `compare` makes it")
    return read(path)


def _show(record: Record) -> None:
    print(results.table(record), results.settings_table(record), sep="\n\n")
