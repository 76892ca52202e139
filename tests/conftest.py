"""Strict environment: eight CPU devices, no implicit rank or dtype promotion."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax  # the flag has to be set before this import
import pytest

collect_ignore = ["conftest.py"]  # it holds no examples


@pytest.fixture(autouse=True)
def strict():
    """Let implicit promotion fail; README and docstrings run as a user's session would."""
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def optax_promotes(strict):
    """Standard dtype promotion, for the parts of Optax that multiply integers by floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture(scope="module")
def quick_compilation():
    """Leave out what only makes programs faster, where compilation is most of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
