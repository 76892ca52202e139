"""Random digits, compiled quickly."""

import jax
import numpy as np
import pytest

from images import study


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Leave out what only makes programs faster: compilation is most of the time here."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def some_digits(monkeypatch):
    """Stand in for MNIST's digits, which take seconds to read: each a bar at a place of its own."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 10, 5_000, np.int32)
    images = 0.1 * random.uniform(size=(5_000, 28, 28)).astype(np.float32)
    images[np.arange(5_000), 2 * labels + 4] += 1
    made = images.reshape(5_000, 784), labels
    monkeypatch.setattr(study, "mnist", lambda: made)
    return made
