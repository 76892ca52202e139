"""Pages compile many small programs once, and do so without the compiler's optimizations."""

import jax
import pytest

# MkDocs imports the hooks, and the tests do without MkDocs; this file holds no examples.
collect_ignore = ["hooks", "conftest.py"]


@pytest.fixture(autouse=True)
def _quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
