"""What the logs of an experiment say: outcomes by row and seed, in the experiment's unit."""

import dataclasses
import functools
import json
import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from grokking.experiments import EXPERIMENTS, LOGS, Experiment, Row, published
from grokking.record import Log, read_log
from grokking.train import first_at_target


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A row with the logs of its seeds, as many as there are."""

    experiment: Experiment
    row: Row
    logs: tuple[Log, ...]

    @property
    def reached(self) -> list[float]:
        """Epochs or steps to the target, each seed; infinite where the run ended without it."""
        return [self._count(log) for log in self.logs]

    @property
    def median(self) -> float:
        """Median of `reached`; not a number without a log."""
        return statistics.median(self.reached) if self.logs else math.nan

    @property
    def cap(self) -> int:
        """Where a run ends at the latest, in the experiment's unit."""
        return self.row.config.epochs * self._unit

    @property
    def published(self) -> float | None:
        """The paper's epochs or steps; None where it has none."""
        return self._published[0]

    @property
    def diverged(self) -> int:
        """Number of seeds whose loss was not finite in the end; they count as never there."""
        return sum(log.diverged for log in self.logs)

    @property
    def test(self) -> float:
        """Median of the last test accuracies."""
        return self._median(log.epochs[-1].test_accuracy for log in self.logs if log.epochs)

    @property
    def train(self) -> float:
        """Median of the last train accuracies."""
        return self._median(log.epochs[-1].train_accuracy for log in self.logs if log.epochs)

    @property
    def area(self) -> float:
        """Median of the mean train accuracy over all epochs."""
        return self._median(
            statistics.fmean(epoch.train_accuracy for epoch in log.epochs)
            for log in self.logs
            if log.epochs
        )

    @property
    def worst_after(self) -> float:
        """Median of the lowest test accuracies after the target."""
        return self._median(
            min(epoch.test_accuracy for epoch in log.epochs if epoch.epoch * self._unit >= reached)
            for log, reached in zip(self.logs, self.reached, strict=True)
            if math.isfinite(reached)
        )

    @property
    def pace(self) -> float:
        """Milliseconds of an epoch's training, measured beside the others; not a number without.

        Multiplication (T3) has the shapes of addition (T2), and is not timed again.
        """
        table = "T2" if self.experiment.name == "T3" else self.experiment.name
        return paces().get(f"{table}/{self.row.name}", math.nan)

    @property
    def seconds(self) -> float:
        """Seconds of training to the target: the median of the epochs times the pace."""
        return self.seconds_after(self.median)

    def seconds_after(self, reached: float) -> float:
        """Return the seconds of training that a count of epochs or steps takes."""
        return reached / self._unit * self.pace / 1e3

    @property
    def published_seconds(self) -> float | None:
        """The paper's seconds, on a Tesla T4."""
        return self._published[1]

    @property
    def _published(self) -> tuple[float | None, float | None]:
        key = (self.experiment.name, *(self.row.published or ("", "")))
        return published().get(key, (None, None))

    @property
    def _unit(self) -> int:
        return self.row.config.steps_per_epoch if self.experiment.unit == "steps" else 1

    def _count(self, log: Log) -> float:
        first = first_at_target(log.epochs, log.config.target)
        return math.inf if first is None else first.epoch * self._unit

    @staticmethod
    def _median(values: Iterable[float]) -> float:
        values = list(values)
        return statistics.median(values) if values else math.nan


@functools.cache
def outcomes(name: str) -> dict[str, Outcome]:
    """Return an experiment's outcomes by the row's name; unfinished runs are left out."""
    experiment = EXPERIMENTS[name]
    found = {}
    for row in experiment.rows:
        read = (log_at(experiment.log_of(row, seed)) for seed in range(row.seeds))
        finished = tuple(log for log in read if log is not None and log.finished)
        found[row.name] = Outcome(experiment, row, finished)
    return found


def log_at(path: Path) -> Log | None:
    """Read a log; None where there is none, or it was cut off within its first line."""
    if not path.exists() or "\n" not in path.read_text(encoding="utf-8"):
        return None
    return read_log(path)


@functools.cache
def paces(path: Path = LOGS / "pace" / "pace.jsonl") -> dict[str, float]:
    """Return milliseconds of an epoch's training by experiment/row."""
    if not path.exists():
        return {}
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return {line["row"]: line["train_ms"] for line in lines if line["kind"] == "pace"}
