"""Strict promotion, as in the library's own tests, and a run of a few milliseconds."""

import jax
import pytest

from grokking.config import Config
from grokking.session import train_logged
from grokking.tasks import ModularArithmetic


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Leave out what only makes programs faster: compilation is most of the time here."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def strict():
    """Let implicit promotion fail."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def optax_promotes(strict):
    """Standard dtype promotion, for the parts of Optax that multiply integers by floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="session")
def tiny():
    return Config(task=ModularArithmetic(p=7), width=16, batch_size=8, epochs=3)


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory):
    """Return the log of a finished run named a-seed0, as text."""
    path = tmp_path_factory.mktemp("finished") / "run.jsonl"
    train_logged(path, "a-seed0", tiny, bar=False)
    return path.read_text()
