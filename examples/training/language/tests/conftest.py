"""A text of a few files, and a model that is trained in milliseconds."""

import jax
import pytest

from language import corpus
from language.config import Config

WORDS = "for x in range(9): print(x, end=' ')\n"


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Leave out what only makes programs faster: compilation is most of the time here."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Return a folder of thirty files, each with a name of its own in every line."""
    root = tmp_path_factory.mktemp("corpus")
    for number in range(30):
        (root / f"file{number:02}.py").write_text(f"# {number:02} {WORDS}" * 8)
    return root


@pytest.fixture(scope="session")
def text(folder):
    return corpus.read(folder)


@pytest.fixture(scope="session")
def tiny():
    return Config(1, 16, 2, context=12, batch=4, steps=6, every=2, windows=4)
