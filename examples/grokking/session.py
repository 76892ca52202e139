"""A run with its log and its progress bar, and the demonstration: three such runs side by side."""

import contextlib
import dataclasses
from collections.abc import Iterable
from pathlib import Path

import scipy.linalg  # noqa: F401 (its BLAS has to be loaded to be limited)
from rich.console import Console
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from grokking.config import Config
from grokking.plots import plot_runs
from grokking.recipes import RECIPES
from grokking.record import RunLog, read_log
from grokking.report import run_table
from grokking.train import Epoch, Result, train

DEMO_FOLDER = Path("runs/demo")


def train_logged(
    config: Config, path: Path, label: str | None = None, *, bar: bool = True
) -> Result:
    """Train with a log at `path`, opened first, and a progress bar on a terminal's stderr."""
    with (
        RunLog(path, config, label) as log,
        tqdm(
            total=config.epochs,
            desc=label or config.gradient,
            unit="epoch",
            disable=None if bar else True,
            mininterval=0.2,
        ) as progress,
    ):

        def on_epoch(epoch: Epoch) -> None:
            log.epoch(epoch)
            progress.set_postfix_str(
                f"train {epoch.train_accuracy:.1%}, test {epoch.test_accuracy:.1%}", refresh=False
            )
            progress.update(config.measure_every)

        with one_blas_thread():
            result = train(config, on_epoch, log.spectrum)
        log.result(result)
    return result


def one_blas_thread() -> contextlib.AbstractContextManager:
    """Return a context in which BLAS has one thread, as OPENBLAS_NUM_THREADS=1 would do.

    Its idle threads spin for tens of milliseconds and take the cores from XLA's: on a small machine
    an epoch with a decomposition in it gets several times slower, at random.
    """
    return threadpool_limits(limits=1, user_api="blas")


def demo_runs(seed: int = 0) -> dict[str, Config]:
    """Return the demonstration's runs on addition modulo 97 by label, the slowest to grok first."""
    paper = dataclasses.replace(RECIPES["addition-97"], seed=seed)
    return {
        "SGD": dataclasses.replace(paper, gradient="raw", epochs=400),
        "EGD, first matrix (paper)": dataclasses.replace(paper, epochs=200),
        "EGD, both matrices": dataclasses.replace(
            paper, matrices="all", method="auto", switch_off=None, epochs=60, epochs_after_target=20
        ),
    }


def run_demo(folder: Path, runs: dict[str, Config], console: Console) -> None:
    """Train `runs` one after the other into `folder`, then print their table and draw their figure.

    Raises:
        FileExistsError: the folder holds logs already; nothing is run.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"the logs need a folder, and {folder} is a file; choose another")
    if has_logs(folder):
        raise FileExistsError(
            f"a log is never overwritten, and {folder} holds some; choose another folder with --out"
        )
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{config.label}.jsonl" for config in runs.values()]
    for path, (label, config) in zip(paths, runs.items(), strict=True):
        console.print(f"{label}: at most {config.epochs} epochs ...", highlight=False)
        train_logged(config, path, label)
    logs = [read_log(path) for path in paths]
    figure = folder / "accuracy.png"
    plot_runs(logs, figure)
    console.print(run_table(logs))
    print_paths(console, [*paths, figure])


def print_paths(console: Console, paths: Iterable[Path]) -> None:
    """Print one path a line, unwrapped so that it can be copied."""
    for path in paths:
        console.print(f"written: {path}", soft_wrap=True, highlight=False)


def has_logs(folder: Path) -> bool:
    """Say whether there is a log in `folder`."""
    return any(folder.glob("*.jsonl"))


def free_folder(folder: Path) -> Path:
    """Return `folder`, or the first of `folder`-2, -3, ... without logs."""
    number, candidate = 1, folder
    while has_logs(candidate):
        number += 1
        candidate = folder.with_name(f"{folder.name}-{number}")
    return candidate


def free_file(path: Path) -> Path:
    """Return `path`, or the first of `path`-2, -3, ... that does not exist."""
    number, candidate = 1, path
    while candidate.exists():
        number += 1
        candidate = path.with_stem(f"{path.stem}-{number}")
    return candidate
