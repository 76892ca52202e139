"""JSONL logs: the recipe first, then a line an epoch, then what became of the run."""

import dataclasses
import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from grokking.config import Config
from grokking.spectra import Spectrum
from grokking.train import Epoch, Result, TrainingDiverged

PACKAGES = ("egd_optax", "jax", "jaxlib", "optax", "flax", "numpy")


class LogError(ValueError):
    """A file is not a log of this package, or was altered."""


def environment() -> dict[str, Any]:
    """Return what a measurement depends on beside its settings: versions, hardware, start."""
    device = jax.devices()[0]
    return {
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in PACKAGES},
        },
        "hardware": {
            "platform": device.platform,
            "device_kind": device.device_kind,
            "devices": jax.device_count(),
            "cpu_count": os.cpu_count(),
            "cpus_used": _usable_cpus(),
            "machine": platform.machine(),
        },
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def provenance(config: Config, label: str | None = None) -> dict[str, Any]:
    """Return a log's first line: the whole recipe, the versions, the hardware, the start."""
    return {
        "kind": "recipe",
        "label": label or config.label,
        "config": config.to_dict(),
        "seed": config.seed,
        **environment(),
    }


class RunLog:
    """A new log, opened before the run; each line is flushed as it is written.

    Leaving the `with` block by Ctrl-C or by an error writes a last line that says so.

    Args:
        path: file to create; missing folders are made.
        config: the run.
        label: name for tables and figures; None takes the config's.

    Raises:
        FileExistsError: the file is there already; it is left as it is.
        OSError: the file cannot be made.
    """

    def __init__(self, path: Path, config: Config, label: str | None = None):
        self.path = Path(path)
        check_writable(self.path)
        first = provenance(config, label)  # starts JAX, before there is a file to be left empty
        try:
            self._file = self.path.open("x", encoding="utf-8")
        except FileExistsError as error:
            raise FileExistsError(
                f"a log is never overwritten, and {path} exists; choose another path"
            ) from error
        self._write(first)

    def __enter__(self) -> "RunLog":
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
        self._write({"kind": "epoch", **dataclasses.asdict(epoch)})

    def spectrum(self, spectrum: Spectrum) -> None:
        """Append a line of singular values, to 5 significant digits."""
        short = {
            name: [float(f"{value:.5g}") for value in values] if name != "epoch" else values
            for name, values in vars(spectrum).items()
        }
        self._write({"kind": "spectrum", **short})

    def result(self, result: Result) -> None:
        """Append the last line of a run that ended by itself."""
        summary = {name: value for name, value in vars(result).items() if name != "history"}
        self._write({"kind": "result", **summary})

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


@dataclasses.dataclass(frozen=True)
class Log:
    """A log read back.

    Args:
        path: where it came from.
        recipe: its first line.
        config: the run's Config, rebuilt from the first line.
        epochs: every measured epoch on record.
        spectra: every Spectrum on record.
        ending: the last line, of kind `result`, `interrupted` or `failed`; None if cut off.
        problems: what was wrong with the file, for the reader's eyes.
    """

    path: Path
    recipe: dict[str, Any]
    config: Config
    epochs: tuple[Epoch, ...]
    spectra: tuple[Spectrum, ...]
    ending: dict[str, Any] | None
    problems: tuple[str, ...]

    @property
    def label(self) -> str:
        return self.recipe["label"]

    @property
    def finished(self) -> bool:
        """Whether the run ended by itself, or diverged as it always will."""
        return self.diverged or (self.ending or {}).get("kind") == "result"

    @property
    def diverged(self) -> bool:
        """Whether the run ended because its loss was not finite."""
        return (self.ending or {}).get("reason", "").startswith(TrainingDiverged.__name__)


def read_log(path: Path) -> Log:
    """Read a log; a last line that was cut off is left out and reported in `problems`.

    Args:
        path: the JSONL file that a run wrote.

    Returns:
        The recipe, the epochs, the ending if there is one, and the problems.

    Raises:
        LogError: the file is not a log, or a line before the last cannot be read.
        OSError: the file cannot be opened.
    """
    numbered = [
        (number, line)
        for number, line in enumerate(
            Path(path).read_text(encoding="utf-8", errors="replace").splitlines(), 1
        )
        if line.strip()
    ]
    lines, problems = _parse(path, numbered)
    if not lines or lines[0].get("kind") != "recipe":
        raise LogError(
            f"a log's first line holds its recipe, and {path} has none there; "
            "is it a log of this package?"
        )
    try:
        config = Config.from_dict(lines[0]["config"])
        epochs = tuple(Epoch(**line) for line in of_kind(lines, "epoch"))
        spectra = tuple(
            Spectrum(line.pop("epoch"), **{name: tuple(values) for name, values in line.items()})
            for line in of_kind(lines, "spectrum")
        )
    except (KeyError, TypeError, ValueError) as error:
        raise LogError(f"{path} does not read as a log of this version: {error}") from error
    endings = [line for line in lines if line["kind"] in ("result", "interrupted", "failed")]
    if not endings and not problems:
        last = epochs[-1].epoch if epochs else 0
        problems = (f"{path}: the log stops after epoch {last} without saying why",)
    ending = endings[-1] if endings else None
    return Log(Path(path), lines[0], config, epochs, spectra, ending, problems)


def check_writable(path: Path) -> None:
    """Raise OSError now if `path` cannot be written later; missing folders are made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotADirectoryError(
            f"the output's folder must be there or be made, and {path.parent} cannot be "
            f"({error.strerror}); choose another path"
        ) from error
    if path.is_dir():
        raise IsADirectoryError(
            f"the output must be a file, and {path} is a folder; name a file in it"
        )
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(
            f"the output must be writable, and {path} is not; choose another path"
        )


def _parse(
    path: Path, numbered: list[tuple[int, str]]
) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    lines: list[dict[str, Any]] = []
    for number, text in numbered:
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            if number != numbered[-1][0]:
                raise LogError(
                    f"line {number} of {path} is not JSON: {error}; is it a log of this package, "
                    "and unaltered?"
                ) from error
            return lines, (f"{path}: line {number}, the last, is cut off and left out",)
        if not (isinstance(line, dict) and "kind" in line):
            raise LogError(f"line {number} of {path} says no kind; is it a log of this package?")
        lines.append(line)
    return lines, ()


def of_kind(lines: list[dict[str, Any]], kind: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of one kind, without the word itself."""
    for line in lines:
        if line["kind"] == kind:
            yield {name: value for name, value in line.items() if name != "kind"}


def _usable_cpus() -> int | None:
    """Return the number of CPUs that this process may run on; not every system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
