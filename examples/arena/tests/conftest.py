"""A log of the toy task that was run to its end in this process, and the toy itself."""

import contextlib
from pathlib import Path

import jax
import pytest

from arena import plan
from arena.field import load
from arena.record import Log
from arena.workers import execute

TOY = Path(__file__).parent / "toy.py"


@contextlib.contextmanager
def quickly_compiled():
    """Leave out what only makes programs faster: compilation is most of the time here."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    with quickly_compiled():
        yield


@pytest.fixture(scope="session")
def toy():
    return load(str(TOY))


@pytest.fixture(scope="session")
def finished(toy, tmp_path_factory):
    """Return the path of the toy's finished log."""
    path = tmp_path_factory.mktemp("logs") / "toy.jsonl"
    with quickly_compiled(), Log(path, toy.config()) as log:
        work(log, toy)
    return path


def work(log, field, change=lambda job: job):
    """Do all that a log lacks, one job after the other, each changed first."""
    while True:
        for line in plan.new_rounds(log.record, field):
            log.add(line)
        todo = plan.jobs(log.record, field)
        if not todo:
            return
        for line in execute(field, change(todo[0])):
            log.add(line)
