"""Outcomes of an experiment: what its log says of each row, in the experiment's unit."""

import dataclasses
import functools
import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from grokking.experiments import LOGS, Experiment, Row, published
from grokking.log import Run, of_kind, read_lines, read_runs
from grokking.questions import EXPERIMENTS
from grokking.training import first_at_target


@dataclasses.dataclass(frozen=True)
class Outcome:
    """A row with the finished runs of its seeds, as many as there are."""

    experiment: Experiment
    row: Row
    runs: tuple[Run, ...]

    @property
    def reached(self) -> list[float]:
        """Epochs or steps to the target, each seed; infinite where the run ended without it."""
        firsts = (first_at_target(run.epochs, run.config.target) for run in self.runs)
        return [math.inf if first is None else first.epoch * self._unit for first in firsts]

    @property
    def median(self) -> float:
        """Median of `reached`; not a number without a run."""
        return _median(self.reached)

    @property
    def cap(self) -> int:
        """Where a run ends at the latest, in the experiment's unit."""
        return self.row.config.epochs * self._unit

    @property
    def published(self) -> float | None:
        """The paper's epochs or steps; None where it has none."""
        return self._published[0]

    @property
    def published_seconds(self) -> float | None:
        """The paper's seconds, on a Tesla T4."""
        return self._published[1]

    @property
    def diverged(self) -> int:
        """Number of seeds whose loss was not finite in the end; they count as never there."""
        return sum(run.diverged for run in self.runs)

    @property
    def test(self) -> float:
        """Median of the last test accuracies."""
        return _median(run.epochs[-1].test_accuracy for run in self.runs if run.epochs)

    @property
    def train(self) -> float:
        """Median of the last train accuracies."""
        return _median(run.epochs[-1].train_accuracy for run in self.runs if run.epochs)

    @property
    def area(self) -> float:
        """Median of the mean train accuracy over all epochs."""
        return _median(
            statistics.fmean(epoch.train_accuracy for epoch in run.epochs)
            for run in self.runs
            if run.epochs
        )

    @property
    def worst_after(self) -> float:
        """Median of the lowest test accuracies after the target."""
        return _median(
            min(epoch.test_accuracy for epoch in run.epochs if epoch.epoch * self._unit >= reached)
            for run, reached in zip(self.runs, self.reached, strict=True)
            if math.isfinite(reached)
        )

    @property
    def epoch_ms(self) -> float:
        """Milliseconds of an epoch's training, measured beside the others; not a number without.

        Multiplication (T3) has the shapes of addition (T2), and is not timed again.
        """
        table = "T2" if self.experiment.name == "T3" else self.experiment.name
        return epoch_times().get(f"{table}/{self.row.name}", math.nan)

    @property
    def seconds(self) -> float:
        """Seconds of training to the target: the median of the epochs times that of an epoch."""
        return self.seconds_after(self.median)

    def seconds_after(self, reached: float) -> float:
        """Return the seconds of training that a count of epochs or steps takes."""
        return reached / self._unit * self.epoch_ms / 1e3

    @property
    def _published(self) -> tuple[float | None, float | None]:
        key = (self.experiment.name, *(self.row.published or ("", "")))
        return published().get(key, (None, None))

    @property
    def _unit(self) -> int:
        return self.row.config.steps_per_epoch if self.experiment.unit == "steps" else 1


@functools.cache
def outcomes(name: str) -> dict[str, Outcome]:
    """Return an experiment's outcomes by the row's name; unfinished runs are left out."""
    experiment = EXPERIMENTS[name]
    runs = finished_runs(experiment.log())
    return {
        row.name: Outcome(experiment, row, tuple(runs[key] for key in row.runs() if key in runs))
        for row in experiment.rows
    }


def finished_runs(log: Path) -> dict[str, Run]:
    """Return the finished runs of a log by name; none without a log."""
    return {run.name: run for run in read_runs(log) if run.finished} if log.exists() else {}


@functools.cache
def epoch_times(log: Path = LOGS / "timing.jsonl") -> dict[str, float]:
    """Return milliseconds of an epoch's training by experiment/row."""
    lines = [line for _, line in read_lines(log)] if log.exists() else []
    return {line["row"]: line["train_ms"] for line in of_kind(lines, "epoch_time")}


def baseline(outcome: Outcome) -> Outcome:
    """Return the outcome of plain training beside this one: SGD on the same variant, or Adam(W)."""
    found = outcomes(outcome.experiment.name)
    variant = outcome.row.name.split("-")[0]
    names = f"{variant}-sgd", "adam", "adamw-0.01"
    return next((found[name] for name in names if name in found), outcome)


def _median(values: Iterable[float]) -> float:
    values = list(values)
    return statistics.median(values) if values else math.nan
