"""JSONL logs of runs: a header, a line a measurement, then how the run ended.

A file may hold any number of runs, one after the other. A run in progress has a file of its own;
a finished one is added to its table's file by `append`.
"""

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common.environment import environment
from common.files import check_writable, locked

from grokking.config import Config
from grokking.spectra import Spectrum
from grokking.training import Epoch, Result, TrainingDiverged

HEADER, ENDINGS = "run", ("result", "interrupted", "failed")


class LogError(ValueError):
    """A file is not a log of these experiments, or was altered."""


@dataclasses.dataclass(frozen=True)
class Run:
    """A run read back.

    Args:
        header: its first line: name, label, settings, versions, hardware, start.
        config: the Config of the header.
        epochs: every measured epoch on record.
        spectra: every Spectrum on record.
        ending: the last line, of kind `result`, `interrupted` or `failed`; None if cut off.
    """

    header: dict[str, Any]
    config: Config
    epochs: tuple[Epoch, ...]
    spectra: tuple[Spectrum, ...]
    ending: dict[str, Any] | None

    @property
    def name(self) -> str:
        return self.header["run"]

    @property
    def label(self) -> str:
        return self.header["label"]

    @property
    def problem(self) -> str | None:
        """What is wrong with the record, for the reader's eyes."""
        if self.ending is not None:
            return None
        last = self.epochs[-1].epoch if self.epochs else 0
        return f"the log of {self.name} stops after epoch {last} without saying why"

    @property
    def finished(self) -> bool:
        """Whether the run ended by itself, or diverged as it always will."""
        return self.diverged or (self.ending or {}).get("kind") == "result"

    @property
    def diverged(self) -> bool:
        """Whether the run ended because its loss was not finite."""
        return (self.ending or {}).get("reason", "").startswith(TrainingDiverged.__name__)


class Writer:
    """A run's lines, appended to a file and flushed one by one.

    Leaving the `with` block by Ctrl-C or by an error writes a last line that says so.

    Args:
        path: file to create or to go on with; missing folders are made.
        name: name of the run, for programs.
        config: the run.
        label: name of the run, for people; None takes `name`.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, name: str, config: Config, label: str | None = None):
        check_writable(path)
        header = {
            "kind": HEADER,
            "run": name,
            "label": label or name,
            "config": config.to_dict(),
            "seed": config.seed,
            **environment(),
        }
        self._file = path.open("a", encoding="utf-8")
        self._write(header)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: object
    ) -> None:
        if kind is not None and issubclass(kind, KeyboardInterrupt):
            self._write({"kind": "interrupted"})
        elif kind is not None:
            self._write({"kind": "failed", "reason": f"{kind.__name__}: {error}"})
        self._file.close()

    def epoch(self, epoch: Epoch) -> None:
        """Append the line of an epoch."""
        self._write({"kind": "epoch", **vars(epoch)})

    def spectrum(self, spectrum: Spectrum) -> None:
        """Append a line of singular values, to 5 significant digits."""
        short = {
            name: [float(f"{value:.5g}") for value in values] if name != "epoch" else values
            for name, values in vars(spectrum).items()
        }
        self._write({"kind": "spectrum", **short})

    def result(self, result: Result) -> None:
        """Append the last line of a run that ended by itself."""
        self._write({"kind": "result", **vars(result)})

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def read_runs(path: Path) -> list[Run]:
    """Read all runs of a log, unfinished ones too; the last line of a run may be cut off.

    Raises:
        LogError: the file is not a log, or a line within a run cannot be read.
        OSError: the file cannot be opened.
    """
    runs: list[list[dict[str, Any]]] = []
    for number, line in read_lines(path):
        if line["kind"] == HEADER:
            runs.append([])
        if not runs:
            raise LogError(
                f"a run begins with its header, and line {number} of {path} comes before one; "
                "is it a log of these experiments?"
            )
        runs[-1].append(line)
    if not runs:
        raise LogError(f"a log holds at least one run, and {path} has none; name another")
    return [_run(path, lines) for lines in runs]


def read_lines(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield number and content of each line; a cut-off one before a header or the end is left out.

    Raises:
        LogError: a line in between cannot be read.
    """
    broken = None
    for number, text in enumerate(path.read_text("utf-8", errors="replace").splitlines(), 1):
        line = _parsed(text)
        if broken is not None and (line is None or line["kind"] != HEADER):
            raise LogError(f"line {broken} of {path} is no line of a log; was it altered?")
        broken = number if line is None else None
        if line is not None:
            yield number, line


def append(table: Path, part: Path) -> None:
    """Move the runs of the file `part` to the end of the file `table`, wholly or not at all."""
    with locked(table.parent):
        before = table.read_bytes() if table.exists() else b""
        gap = b"" if before.endswith(b"\n") or not before else b"\n"
        new = table.with_suffix(".part")
        with new.open("wb") as file:
            file.write(before + gap + part.read_bytes())
            file.flush()
            os.fsync(file.fileno())
        new.replace(table)
    part.unlink()


def _run(path: Path, lines: list[dict[str, Any]]) -> Run:
    header, *rest = lines
    try:
        if missing := {"run", "label", "config"} - header.keys():
            raise ValueError(f"its header lacks {', '.join(sorted(missing))}")
        return Run(
            header,
            Config.from_dict(header["config"]),
            tuple(_epoch(line) for line in of_kind(rest, "epoch")),
            tuple(
                Spectrum(
                    line["epoch"], *(tuple(line[n]) for n in ("gradient", "decayed", "progress"))
                )
                for line in of_kind(rest, "spectrum")
            ),
            next((line for line in rest if line["kind"] in ENDINGS), None),
        )
    except (KeyError, TypeError, ValueError) as error:
        name = header.get("run")
        raise LogError(
            f"the run {name} in {path} does not read as one ({error}); was the file altered?"
        ) from error


def _epoch(line: dict[str, Any]) -> Epoch:
    if not all(isinstance(value, (int, float)) for value in line.values()):
        raise ValueError(f"an epoch has numbers alone, got {line}")
    return Epoch(**line)


def of_kind(lines: list[dict[str, Any]], kind: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of one kind, without the word itself."""
    for line in lines:
        if line["kind"] == kind:
            yield {name: value for name, value in line.items() if name != "kind"}


def _parsed(text: str) -> dict[str, Any] | None:
    """Return a line of a log, or None if it is none."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return line if isinstance(line, dict) and "kind" in line else None
