"""Pages compile many small programs once, and do so without the compiler's optimizations."""

import jax
import pytest

collect_ignore = ["hooks"]  # MkDocs imports them, and the tests do without MkDocs


@pytest.fixture(autouse=True)
def _quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
