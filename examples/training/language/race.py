"""Optimizers at their own settings, one run each: loss against seconds, and what a step costs.

Nothing is tuned. For a model that is too large for a comparison.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import optax
from arena.record import Line
from arena.space import traced
from grokking.log import environment
from tabulate import tabulate

from egd_optax import polar
from language import train
from language.compare import timed
from language.config import Config
from language.corpus import Corpus
from language.course import Program
from language.figures import draw
from language.optimizers import EXACT, OPTIMIZERS, Choices, Entry

PLAIN = "gradients alone"
FIVE = "egd, five steps"
HEADER, SPEED = "race", "speed"


@dataclasses.dataclass(frozen=True)
class Race:
    """Who runs on what.

    Args:
        folder: of the logs: one of each run, and speed.jsonl.
        config: the model and its training.
        optimizers: their names.
        text: what is read.
        seed: of initial values and batches.
    """

    folder: Path
    config: Config
    optimizers: tuple[str, ...]
    text: Corpus
    seed: int = 0

    @property
    def log(self) -> Path:
        return self.folder / "speed.jsonl"

    @property
    def picture(self) -> Path:
        return self.folder / "loss.png"

    def runs(self) -> Iterator[train.Run]:
        for name in self.optimizers:
            settings = OPTIMIZERS[name].settings
            folder = self.folder / name
            yield train.Run(folder, self.config, name, settings, "muon", self.seed, self.text)


def run(race: Race) -> str:
    """Train all, time their steps side by side, draw the picture, and return the table.

    Killed, the same command goes on. Steps are timed anew each time.

    Raises:
        ValueError: a folder holds another run, or a window does not fit into the text.
        OSError: a folder cannot be written.
    """
    for one in race.runs():
        print(f"\n{OPTIMIZERS[one.optimizer].title}", flush=True)
        train.train(one)
    rows = speed(race)
    lines = [{"kind": HEADER, "config": race.config.to_json(), **environment()}]
    train.write(race.log, [*lines, {"kind": SPEED, "rows": rows}])
    logs = {one.optimizer: train.read(one.log) for one in race.runs()}
    draw([train.curve(one, logs[one.optimizer]) for one in race.runs()], race.picture, zoom=True)
    return table(race.config, rows, logs)


def speed(race: Race) -> Line:
    """Return seconds of a training step of each, in turn, and of one that only descends."""
    plain = Entry("", "Optax", (), lambda values, recipe: optax.sgd(1e-6), {})
    entries: dict[str, tuple[Entry, Choices]] = {PLAIN: (plain, EXACT)}
    entries |= {name: (OPTIMIZERS[name], EXACT) for name in race.optimizers}
    if "egd" in entries:
        entries[FIVE] = OPTIMIZERS["egd"], Choices(polar.NewtonSchulz("standard"))
    return timed(
        {
            name: (
                Program(race.config, entry, race.text, choices),
                traced(entry.knobs, entry.settings),
            )
            for name, (entry, choices) in entries.items()
        }
    )


def table(config: Config, rows: Line, logs: Mapping[str, Iterable[Line]]) -> str:
    """Return what a step costs, which share of it is the optimizer's, and what came out."""
    plain = statistics.median(rows[PLAIN]["seconds"])
    cells = []
    for name, row in rows.items():
        seconds = statistics.median(row["seconds"])
        ends = [line for line in logs.get(name, ()) if line["kind"] in (train.STEP, train.END)]
        whole = max((line["seconds"] for line in ends if line["kind"] == train.STEP), default=None)
        cells.append(
            (
                OPTIMIZERS[name].title if name in OPTIMIZERS else name,
                f"{1000 * seconds:.4g}",
                f"{config.tokens / seconds:,.0f}",
                f"{1 - plain / seconds:.0%}",
                f"{row['compile']:.1f}",
                f"{ends[-1]['validation']:.3f}" if ends else "-",
                "-" if whole is None else f"{whole:.0f}",
            )
        )
    headings = ["optimizer", "step, ms", "bytes a second", "optimizer's share", "compiles, s"]
    headings += ["validation loss", "trained for, s"]
    return tabulate(cells, headings, disable_numparse=True)
