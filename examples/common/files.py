"""Files that logs, checkpoints and figures are written to."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def check_writable(path: Path) -> None:
    """Raise OSError now if `path` cannot be written later; missing folders are made."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotADirectoryError(
            f"the output's folder must be there or be made, and {path.parent} cannot be "
            f"({error.strerror}); choose another path"
        ) from error
    if path.is_dir() or not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(
            f"the output must be a file that can be written, and {path} is not; choose another path"
        )


def free_file(path: Path) -> Path:
    """Return `path`, or the first of `path`-2, -3, ... that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_stem(f"{path.stem}-{number}")
    return candidate


@contextlib.contextmanager
def locked(folder: Path, wait: bool = True) -> Iterator[None]:
    """Let one process at a time into the block.

    Raises:
        BlockingIOError: another process is in it, and this one does not `wait`.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise BlockingIOError(
                f"one command at a time may write to a folder, and another writes to {folder}; "
                "wait for it, or choose another folder"
            ) from error
        yield
    finally:
        os.close(descriptor)
