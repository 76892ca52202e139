"""A text that every Python has: the source files of its own standard library, as bytes."""

import dataclasses
import fnmatch
import hashlib
import os
import platform
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

# Tests are more than half of the files' bytes, and packages are not the standard library.
LEFT_OUT = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
PATTERN = "*.py"
SHARE = 20  # one file in so many is for validation
SEED = 0  # of the split, the same for every run
REMEDY = "name another folder with --corpus"


@dataclasses.dataclass(frozen=True, eq=False)
class Corpus:
    """Two texts, each some files one after the other.

    Args:
        train: bytes to train on.
        validation: bytes of the other files.
        facts: for a log: where from, how much, and a hash of it all.
    """

    train: np.ndarray
    validation: np.ndarray
    facts: dict[str, Any]

    def batch(self, seed: int, step: int, size: int, context: int) -> np.ndarray:
        """Return windows (size, context + 1) of a step: a function of seed and step alone."""
        begins = np.random.default_rng((seed, step)).integers(len(self.train) - context, size=size)
        return _windows(self.train, begins, context)

    def held_out(self, count: int, context: int) -> np.ndarray:
        """Return validation windows (count, context + 1), evenly spaced."""
        begins = np.linspace(0, len(self.validation) - context - 1, count).astype(int)
        return _windows(self.validation, begins, context)

    def check_context(self, context: int) -> None:
        """Raise ValueError if a window does not fit into both texts."""
        shortest = min(len(self.train), len(self.validation))
        if context >= shortest:
            raise ValueError(
                f"a window of the context and one byte must fit into both texts, got a context of "
                f"{context} and a text of {shortest} bytes; shorten the context, or {REMEDY}"
            )


def read(folder: Path | None = None) -> Corpus:
    """Read all Python files of a folder, the standard library's if it is None, and split them.

    Raises:
        OSError: the folder or a file of it cannot be read.
        ValueError: it has fewer than two files with anything in them.
    """
    root = Path(sysconfig.get_paths()["stdlib"]) if folder is None else folder
    paths = _paths(root)
    texts = {path: text for path in paths if (text := _bytes(path))}
    if len(texts) < 2:
        raise ValueError(
            f"a corpus has at least two files {PATTERN} that are not empty, one of them to "
            f"validate on, and {root} has {len(texts)}; {REMEDY}"
        )
    train, validation = split(sorted(texts))
    own = {"source": "standard library", "python": platform.python_version()}
    source = own if folder is None else {"source": folder.resolve().name}
    facts = {
        **source,
        "files": len(texts),
        "bytes": sum(map(len, texts.values())),
        "sha256": hashlib.sha256(b"".join(texts[path] for path in sorted(texts))).hexdigest(),
        "split": SEED,
        "train_files": len(train),
        "validation_files": len(validation),
    }
    return Corpus(_joined(texts, train), _joined(texts, validation), facts)


def split(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the files to train on and those to validate on, one in twenty, at least one."""
    order = np.random.default_rng(SEED).permutation(len(paths))
    count = max(1, round(len(paths) / SHARE))
    validation = [paths[i] for i in sorted(order[:count])]
    return [paths[i] for i in sorted(order[count:])], validation


def _paths(root: Path) -> list[Path]:
    if not root.is_dir():
        raise FileNotFoundError(f"a corpus is a folder, and {root} is none; {REMEDY}")
    if not os.access(root, os.R_OK | os.X_OK):
        raise PermissionError(f"a corpus must be readable, and {root} is not; {REMEDY}")

    def refuse(error: OSError) -> None:
        raise PermissionError(
            f"all folders of a corpus must be readable, and {error.filename} is not "
            f"({error.strerror}); let it be read, or {REMEDY}"
        ) from error

    found = []
    for folder, folders, files in os.walk(root, onerror=refuse):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        found += [Path(folder, name) for name in fnmatch.filter(files, PATTERN)]
    return sorted(path for path in found if path.is_file())


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise PermissionError(
            f"all files of a corpus must be readable, and {path} is not ({error.strerror}); "
            f"let it be read, or {REMEDY}"
        ) from error


def _joined(texts: Mapping[Path, bytes], paths: Iterable[Path]) -> np.ndarray:
    return np.frombuffer(b"".join(texts[path] for path in paths), np.uint8)


def _windows(text: np.ndarray, begins: np.ndarray, context: int) -> np.ndarray:
    return text[begins[:, None] + np.arange(context + 1)].astype(np.int32)
