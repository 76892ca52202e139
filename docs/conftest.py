"""Pages compile many small programs once, and do so without the compiler's optimizations."""

import pathlib

import jax
import pytest

HERE = pathlib.Path(__file__).parent

# MkDocs imports the hooks, and the tests do without MkDocs; this file holds no examples.
collect_ignore = ["hooks", "conftest.py"]

QUICK = {"index.md", "how-to-choose.md", "which-layers.md", "recipes.md"}


def pytest_collection_modifyitems(items):
    """Leave the long pages to `make test-all`."""
    for item in items:
        if item.path.is_relative_to(HERE) and item.path.name not in QUICK:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _quick_compilation():
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
