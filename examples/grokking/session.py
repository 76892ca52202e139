"""A run with its log and its progress bar, and epochs timed side by side."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from common.environment import environment, one_blas_thread
from common.files import check_writable
from tqdm import tqdm

from grokking.config import Config
from grokking.log import Writer
from grokking.questions import EXPERIMENTS
from grokking.training import Epoch, Program, Result, train


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


ROUNDS = 7
TABLES = ("T2", "T4", "T7", "both", "methods")


def run_timing(path: Path) -> None:
    """Time every row of the tables, in rounds over all of them, and log the medians."""
    check_writable(path)
    configs = {
        f"{table}/{row.name}": row.config for table in TABLES for row in EXPERIMENTS[table].rows
    }
    # An epoch after the switch-off: the metric says that it has happened.
    after = {
        f"after/{name}": configs[f"T2/{name}"]
        for name in ("p79-egd_svd", "p97-egd_svd", "p127-egd_svd")
    }
    epochs = {
        name: timed(config, accuracy=1.0 if name in after else 0.0)
        for name, config in tqdm({**configs, **after}.items(), desc="compile")
    }
    times: dict[str, list[float]] = {name: [] for name in epochs}
    with one_blas_thread():
        for _ in tqdm(range(ROUNDS), desc="rounds"):
            for name, epoch in epochs.items():
                times[name].append(epoch())
    lines = [{"kind": "timing", "rounds": ROUNDS, **environment()}]
    for name, seconds in times.items():
        every = [round(1e3 * value, 3) for value in seconds]
        median = statistics.median(every)
        lines.append({"kind": "epoch_time", "row": name, "train_ms": median, "all": every})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def timed(config: Config, accuracy: float) -> Callable[[], float]:
    """Return a function that trains for an epoch and returns its seconds; it is warmed up."""
    program = Program(config)
    state, split = program.start()
    state = state._replace(test_accuracy=jnp.float32(accuracy))
    compiled = jax.jit(program.epoch).lower(state, split).compile()

    def epoch() -> float:
        nonlocal state
        started = time.perf_counter()
        state = jax.block_until_ready(compiled(state, split))
        return time.perf_counter() - started

    epoch()
    return epoch
