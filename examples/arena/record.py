"""The log of a task: one line for all that was settled, tried, counted or timed, in that order.

The first line has the task, the ranges, versions and hardware. A line is written when its trial has
ended, and nothing else is kept anywhere: whoever reads the log knows what is still to do.
"""

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

from common.checks import difference
from common.environment import environment
from common.files import check_writable

HEADER, ROUND, TRIAL, COUNT, TIMES, ANEW = "arena", "round", "trial", "count", "times", "anew"
Line: TypeAlias = dict[str, Any]


class LogError(ValueError):
    """A file is no log of the arena, or one of something else."""


class Record:
    """The lines of a log, those that a later line takes back left out."""

    def __init__(self, header: Line):
        self.header, self.lines = header, list[Line]()
        self.begun_anew: set[str] = set()
        """Optimizers that began anew and are not counted on all fresh seeds since."""

    def add(self, line: Line) -> None:
        """Add a line; one of kind `anew` takes back all of its optimizer, and the times."""
        if line["kind"] == ANEW:
            name = line["optimizer"]
            self.begun_anew.add(name)
            self.lines = [
                one for one in self.lines if one.get("optimizer") != name and one["kind"] != TIMES
            ]
            return
        self.lines.append(line)
        self.begun_anew -= {name for name in self.begun_anew if self._is_counted(name)}

    def _is_counted(self, optimizer: str) -> bool:
        return len(self.of(COUNT, optimizer)) == len(self.header["fresh_seeds"])

    def of(self, kind: str, optimizer: str, number: int | None = None) -> list[Line]:
        """Return the lines of a kind on an optimizer, and of a round of its trials."""
        return [
            line
            for line in self.lines
            if line["kind"] == kind
            and line["optimizer"] == optimizer
            and number in (None, line.get("round"))
        ]

    @property
    def optimizers(self) -> list[str]:
        """The optimizers with a round, in the order in which they appear."""
        rounds = (line["optimizer"] for line in self.lines if line["kind"] == ROUND)
        return list(dict.fromkeys(rounds))

    @property
    def times(self) -> Line:
        """The last line of times; empty if there is none."""
        return next((line for line in reversed(self.lines) if line["kind"] == TIMES), {})


class Log:
    """A log that grows, for one command at a time; an old one goes on, its cut-off line mended.

    Args:
        path: file to create or to go on with; missing folders are made.
        config: what decides the results; an old log must have been made with the same.
        names: optimizers that the log is to grow by; none means all.
        anew: optimizers whose lines so far are taken back, unless they began anew and go on.

    Raises:
        LogError: the file is no log, or was made with another config.
        OSError: the file cannot be written, or another command writes to it.
    """

    def __init__(
        self, path: Path, config: Line, names: Iterable[str] = (), anew: Iterable[str] = ()
    ):
        check_writable(path)
        self.path = path
        self._file = path.open("a+b")
        try:
            self._open(config, set(names or config["ranges"]), tuple(anew))
        except BaseException:
            self._file.close()
            raise

    def _open(self, config: Line, names: set[str], anew: tuple[str, ...]) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"one command at a time may write a log, and another writes {self.path}; wait for "
                "it, or choose another folder with --out"
            ) from error
        _mend(self.path, self._file.fileno())
        if self.path.stat().st_size == 0:
            self._write({"kind": HEADER, **config, **environment()})
        self.record = read(self.path)
        check_same(self.path, self.record, config, names - set(anew))
        for name in anew:
            if name not in self.record.begun_anew or self._ranges(name) != config["ranges"][name]:
                self.add({"kind": ANEW, "optimizer": name})

    def _ranges(self, name: str) -> Any:
        return next((line["knobs"] for line in self.record.of(ROUND, name, 0)), None)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, line: Line) -> None:
        """Append a line, on disk when this returns."""
        self._write(line)
        self.record.add(json.loads(json.dumps(line)))

    def _write(self, line: Line) -> None:
        self._file.write((json.dumps(line) + "\n").encode())
        self._file.flush()
        os.fsync(self._file.fileno())


def read(path: Path) -> Record:
    """Read a log; a cut-off last line is left out.

    Raises:
        LogError: the file is no log, or a line cannot be read.
        OSError: the file cannot be opened.
    """
    lines = _lines(path)
    header = next(lines, {})
    if header.get("kind") != HEADER:
        raise LogError(f"a log of the arena begins with its header, and {path} does not")
    record = Record(header)
    for line in lines:
        record.add(line)
    return record


def _lines(path: Path) -> Iterator[Line]:
    *whole, _ = path.read_bytes().split(b"\n")
    for number, text in enumerate(whole, 1):
        try:
            line = json.loads(text)
            line["kind"]
        except (ValueError, KeyError, TypeError) as error:
            raise LogError(
                f"line {number} of {path} is no line of a log; was it altered?"
            ) from error
        yield line


def _mend(path: Path, descriptor: int) -> None:
    """Cut off what follows the last line's end, in a log and nothing else."""
    data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    begin = json.dumps({"kind": HEADER}).encode()[:-1]
    if data[: len(begin)] != begin[: len(data)]:
        raise LogError(
            f"a log of the arena begins with its header, and {path} does not; name another"
        )
    os.ftruncate(descriptor, data.rfind(b"\n") + 1)


def check_same(path: Path, record: Record, config: Line, names: Iterable[str]) -> None:
    """Refuse another task or tuner, or other ranges of an optimizer of these that is in the log.

    Raises:
        LogError: the config differs, and where.
    """
    remedy = "move it away, or choose another folder with --out"
    for name, value in config["task"].items():
        old = record.header["task"].get(name)
        if old != value and name not in ("title", "note"):
            raise LogError(
                f"a log has one task, and {path} was made with {difference(name, old, value)}; "
                f"{remedy}"
            )
    for name in ("tuner", "code", "fresh_seeds"):
        old = record.header.get(name)
        if name == "fresh_seeds" and config[name] is None:  # there may be more of them later
            continue
        if old != (value := config.get(name)):
            raise LogError(
                f"a log is made in one way, and {path} has {name}={old}, not {value}; {remedy}"
            )
    for name in sorted(names):
        ranges = config["ranges"][name]
        first = record.of(ROUND, name, 0)
        if first and first[0]["knobs"] != ranges:
            raise LogError(
                f"ranges stay as they were written down, and those of {name} in {path} are others; "
                f"{remedy}, or tune it anew with --anew {name}"
            )
