"""A run with its log and its progress bar."""

import contextlib
from pathlib import Path

import scipy.linalg  # noqa: F401 (its BLAS has to be loaded to be limited)
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from grokking.config import Config
from grokking.log import Writer
from grokking.training import Epoch, Result, train


def train_logged(
    path: Path, name: str, config: Config, label: str | None = None, *, bar: bool = True
) -> Result:
    """Train with a log at the end of `path`, and a progress bar on a terminal's stderr."""
    with (
        Writer(path, name, config, label) as log,
        tqdm(
            total=config.epochs,
            desc=label or name,
            unit="epoch",
            disable=None if bar else True,
            mininterval=0.2,
        ) as progress,
        one_blas_thread(),
    ):

        def on_epoch(epoch: Epoch) -> None:
            log.epoch(epoch)
            progress.set_postfix_str(
                f"train {epoch.train_accuracy:.1%}, test {epoch.test_accuracy:.1%}", refresh=False
            )
            progress.update(config.measure_every)

        result = train(config, on_epoch, log.spectrum)
        log.result(result)
    return result


def one_blas_thread() -> contextlib.AbstractContextManager:
    """Return a context in which BLAS has one thread, as OPENBLAS_NUM_THREADS=1 would do.

    Its idle threads spin for tens of milliseconds and take the cores from XLA's: on a small machine
    an epoch with a decomposition in it gets several times slower, at random.
    """
    return threadpool_limits(limits=1, user_api="blas")
