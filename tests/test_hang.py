"""A training with stacked leaves never stands still: on one device, and on eight at once."""

import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("hang.py")
MONITORS = ["monitor", "around egd"]
METHODS = ["SVD", "Halley", "Randomized", "SubspaceIteration"]
LIMIT = 240  # seconds for all, most of them compilation: forty on an idle machine of two cores


@pytest.mark.parametrize(
    ("devices", "names"),
    [
        (1, MONITORS),
        (8, [*MONITORS, "spread"]),
        pytest.param(1, ["check"], marks=pytest.mark.slow),
        pytest.param(8, [*METHODS, "seeds", "reports", "check"], marks=pytest.mark.slow),
    ],
    ids=["one", "eight", "one, the check", "eight, the rest"],
)
def test_stacks_are_decomposed_in_time(devices, names):
    """Sixty updates with monitors in under ten seconds; the others are shorter.

    Other processes may take the cores meanwhile. So the times of a second try count, if need be; a
    standstill does not go away.
    """
    if slowest(devices, names) >= 10:
        assert slowest(devices, names) < 10


def slowest(devices, names):
    """Return the most seconds that one of them takes, compilation aside."""
    flags = f"--xla_force_host_platform_device_count={devices}"
    run = subprocess.run(
        [sys.executable, SCRIPT, *names],
        env={**os.environ, "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )
    assert run.returncode == 0, run.stderr
    seconds = dict(line.split(": ") for line in run.stdout.splitlines())
    assert list(seconds) == names
    return max(map(float, seconds.values()))
