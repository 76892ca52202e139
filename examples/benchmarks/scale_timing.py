"""Time rows in turn within a budget, and run parts that need a process of their own."""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from tqdm import tqdm


@dataclasses.dataclass
class Row:
    """A call to time, and the seconds that it took."""

    name: str
    run: Callable[[], object]
    times: list[float] = dataclasses.field(default_factory=list)

    def turn(self) -> None:
        start = time.perf_counter()
        self.run()
        self.times.append(time.perf_counter() - start)

    def has_time(self, budget: float, calls: int) -> bool:
        """Return whether one more call is wanted and fits into the budget."""
        fits = not self.times or sum(self.times) + self.times[-1] <= budget
        return fits and len(self.times) <= calls

    def record(self) -> dict:
        """Return what was measured; the first call counts only where it is the only one."""
        times = self.times[1:] or self.times
        quartiles = np.quantile(times, (0.25, 0.75)).tolist()
        return {"seconds": statistics.median(times), "quartiles": quartiles, "calls": len(times)}


def take_turns(rows: Sequence[Row], budget: float, calls: int, title: str) -> None:
    """Time one untimed and at most `calls` further calls of each row, in random order."""
    order = np.random.default_rng(0)  # who comes after whom matters
    for _ in tqdm(range(calls + 1), desc=title, leave=False):
        for index in order.permutation(len(rows)):
            if rows[index].has_time(budget, calls):
                rows[index].turn()


def product(shape: Sequence[int], dtype: str = "float32", precision: str | None = None) -> Row:
    """Return the (m, m) by (m, n) product of a shape (*batch, m, n): the unit of cost."""
    *batch, m, n = shape
    keys = jax.random.split(jax.random.key(0))
    left = jax.random.normal(keys[0], (*batch, m, m), dtype)
    right = jax.random.normal(keys[1], (*batch, m, n), dtype)
    multiply = jax.jit(lambda a, b: jax.numpy.matmul(a, b, precision=precision))
    multiply(left, right).block_until_ready()  # compiles
    return Row("product", lambda: multiply(left, right).block_until_ready())


def rounded(value: object) -> object:
    """Return a record with numbers of four digits: a compact log."""
    if isinstance(value, dict):
        return {key: rounded(one) for key, one in value.items()}
    if isinstance(value, list):
        return [rounded(one) for one in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def lines_of(
    module: str, *arguments: str, devices: int | None = None, limit: float | None = None
) -> Iterator[dict]:
    """Yield the JSON lines that a module prints in a process of its own.

    Args:
        module: such as benchmarks.scale_devices.
        arguments: its command line.
        devices: forced CPU devices; None: as here.
        limit: seconds after which the process is ended, and no more lines come.

    Raises:
        OSError: the process failed by itself.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if devices:
        environment["JAX_PLATFORMS"] = "cpu"
        environment["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", module, *arguments]
    stopped = threading.Event()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as child:

        def stop() -> None:
            stopped.set()
            child.kill()

        timer = threading.Timer(limit, stop) if limit else None
        if timer:
            timer.start()
        try:
            assert child.stdout is not None
            yield from map(json.loads, child.stdout)
        finally:
            if timer:
                timer.cancel()
            if child.poll() is None and sys.exc_info()[0]:
                child.kill()
    if child.returncode and not stopped.is_set():
        raise OSError(f"{' '.join(command[1:])} ended with {child.returncode}.")
