"""Optimizers at their own settings, one run each: loss against seconds, and what a step costs.

Nothing is tuned. For a model that is too large for a comparison.
"""

import dataclasses
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import optax
from arena.record import Line
from arena.space import traced
from common.environment import environment
from tabulate import tabulate

from egd_optax import polar
from language import train
from language.compare import timed
from language.config import Config
from language.corpus import Corpus
from language.course import Program
from language.figures import draw
from language.optimizers import EXACT, OPTIMIZERS, Choices, Entry, choices_of

PLAIN = "gradients alone"
FIVE = "EGD, Muon's five steps"
HEADER, SPEED = "race", "speed"


@dataclasses.dataclass(frozen=True)
class Race:
    """Who runs on what, with the settings of `OPTIMIZERS`.

    Args:
        folder: of the logs: one of each run, and speed.jsonl.
        config: the model and its training.
        optimizers: their names.
        text: what is read.
        seed: of initial values and batches.

    Raises:
        ValueError: nobody runs.
    """

    folder: Path
    config: Config
    optimizers: tuple[str, ...]
    text: Corpus
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.optimizers:
            raise ValueError("a race needs an optimizer, got none; name one after --only")

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
            yield train.Run(folder, self.config, name, settings, self.seed, self.text)


def run(race: Race) -> str:
    """Train all, time their steps side by side, draw the picture, and return the tables.

    Killed, the same command goes on. Steps are timed anew each time. An optimizer that diverges
    stops, and the others go on.

    Raises:
        ValueError: a folder holds another run, or a window does not fit into the text.
        OSError: a folder cannot be written.
    """
    for one in race.runs():
        print(f"\n{OPTIMIZERS[one.optimizer].title}", flush=True)
        try:
            train.train(one)
        except train.DivergedError as error:
            print(error)
    rows = speed(race)
    lines = [{"kind": HEADER, "config": race.config.to_json(), **environment()}]
    train.write(race.log, [*lines, {"kind": SPEED, "rows": rows}])
    logs = {one.optimizer: train.read(one.log) for one in race.runs()}
    draw([train.curve(one, logs[one.optimizer]) for one in race.runs()], race.picture, zoom=True)
    return f"{ends(logs)}\n\n{table(race.config, rows)}"


def speed(race: Race) -> Line:
    """Return seconds of a training step of each, in turn, and of one that only descends."""
    plain = Entry("", "Optax", (), lambda values, recipe: optax.sgd(1e-6), {})
    entries: dict[str, tuple[Entry, Choices]] = {PLAIN: (plain, EXACT)}
    for name in race.optimizers:
        entries[name] = OPTIMIZERS[name], choices_of(OPTIMIZERS[name].settings)
    if "egd" in entries:
        egd, choices = entries["egd"]
        entries[FIVE] = egd, dataclasses.replace(choices, method=polar.NewtonSchulz("standard"))
    return timed(
        {
            name: (
                Program(race.config, entry, race.text, choices),
                traced(entry.numbers, entry.settings),
            )
            for name, (entry, choices) in entries.items()
        }
    )


def table(config: Config, rows: Line, style: str = "simple") -> str:
    """Return what a step costs, and which share of it is the optimizer's."""
    plain = statistics.median(rows[PLAIN]["seconds"])
    cells = []
    for name, row in rows.items():
        seconds = statistics.median(row["seconds"])
        title = OPTIMIZERS[name].title if name in OPTIMIZERS else name
        rate, share = f"{config.tokens / seconds:,.0f}", f"{1 - plain / seconds:.0%}"
        cells.append((title, f"{1000 * seconds:.4g}", rate, share, f"{row['compile']:.1f}"))
    headings = ("optimizer", "step, ms", "bytes a second", "share", "compiles, s")
    return tabulate(cells, headings, tablefmt=style, disable_numparse=True)


def ends(logs: Mapping[str, Sequence[Line]]) -> str:
    """Return the table of what came out, and after how many seconds."""
    cells = []
    for name, lines in logs.items():
        steps = [one for one in lines if one["kind"] == train.STEP]
        last = max(steps, key=lambda one: one["step"], default={"step": 0, "seconds": 0.0})
        ended = lines[-1]["kind"] == train.END
        loss = f"{last['validation']:.3f}" if ended else "diverged"
        cells.append((OPTIMIZERS[name].title, last["step"], f"{last['seconds']:.0f}", loss))
    headings = ("optimizer", "steps", "seconds", "validation loss")
    return tabulate(cells, headings, disable_numparse=True)
