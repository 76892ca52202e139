"""Strict promotion, as in the library's own tests, and a run of a few milliseconds."""

import jax
import numpy as np
import pytest

from grokking import session, tasks
from grokking.config import Config
from grokking.session import train_logged
from grokking.tasks import ModularArithmetic
from grokking.training import Epoch, Result, TrainingDiverged


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


@pytest.fixture
def untrained(monkeypatch):
    """Let `train` only say three epochs, without any training."""

    def train(config, on_epoch, on_spectrum):
        for number in (1, 2, 3):
            on_epoch(Epoch(number, 0.1 * number, 1.0, 2.0, 0.5, 0.25))
        if config.optimizer.settings["learning_rate"] > 1e3:
            raise TrainingDiverged("the loss must stay finite")
        return Result(None, None, 3, 0.3, 0.1, 0.5, 0.25)

    monkeypatch.setattr(session, "train", train)


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory):
    """Return the log of a finished run named a-seed0, as text."""
    path = tmp_path_factory.mktemp("finished") / "run.jsonl"
    train_logged(path, "a-seed0", tiny, bar=False)
    return path.read_text()


@pytest.fixture
def some_digits(monkeypatch):
    """Stand in for MNIST's digits, which take seconds to read: random ones of the same kind."""
    random = np.random.default_rng(0)
    images = random.uniform(size=(5_000, 784)).astype(np.float32)
    made = images, random.integers(0, 10, 5_000, np.int32)
    monkeypatch.setattr(tasks, "mnist", lambda: made)
    return made
