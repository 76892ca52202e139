"""What `spectrum_monitor` costs: epochs of the modular run with and without it, side by side.

python examples/benchmarks/monitor.py
"""

import dataclasses
import json
import statistics
import time
from pathlib import Path

import jax
import optax
import tyro

from egd_optax import diagnostics
from egd_optax.grokking import RECIPES
from egd_optax.grokking.record import check_writable, environment
from egd_optax.grokking.session import free_file, one_blas_thread
from egd_optax.grokking.train import prepare


def epochs(every: int | None):
    """Return a function that runs one more epoch of addition mod 97, monitored or not."""
    recipe = dataclasses.replace(RECIPES["addition-97"], switch_off=None)
    state, split, run_epoch = prepare(recipe)
    if every is not None:
        monitor = diagnostics.spectrum_monitor(every)
        optimizer = optax.with_extra_args_support(optax.chain(monitor, run_epoch.optimizer))
        run_epoch = dataclasses.replace(run_epoch, optimizer=optimizer)
        state = state._replace(optimizer=optimizer.init(state.params))
    compiled = jax.jit(run_epoch).lower(state, split).compile()
    held = [state]

    def run() -> float:
        start = time.perf_counter()
        held[0], _ = jax.block_until_ready(compiled(held[0], split))
        return time.perf_counter() - start

    return run


def main(every: int = 10, rounds: int = 40, out: Path = Path("runs/benchmark/monitor.jsonl")):
    """Time the two in turn and log the medians.

    Args:
        every: updates from one measurement to the next.
        rounds: epochs of each.
        out: JSONL log to write, numbered where it exists.
    """
    out = free_file(out)
    check_writable(out)
    with one_blas_thread():
        plain, monitored = epochs(None), epochs(every)
        pairs = [(plain(), monitored()) for _ in range(rounds)]
    plain_s, monitored_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    config = {"every": every, "rounds": rounds}
    measurement = {
        "kind": "measurement",
        "plain_ms": 1000 * plain_s,
        "monitored_ms": 1000 * monitored_s,
        "overhead": statistics.median(b / a for a, b in pairs) - 1,
    }
    lines = [{"kind": "recipe", "config": config, **environment()}, measurement]
    out.write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(json.dumps(measurement), f"written: {out}", sep="\n")


if __name__ == "__main__":
    tyro.cli(main)
