"""Milliseconds of an epoch, every row of the paper's tables side by side in one process."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
from tqdm import tqdm

from grokking.config import Config
from grokking.log import check_writable, environment
from grokking.questions import EXPERIMENTS
from grokking.session import one_blas_thread
from grokking.training import Program

ROUNDS = 7
TABLES = ("T2", "T4", "T7", "both", "methods", "peers")


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
