"""Strict environment: eight CPU devices, no implicit rank or dtype promotion."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)

import jax  # the flag has to be set before this import
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def optax_promotes():
    """Standard promotion, for the parts of Optax that multiply integers by floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield
