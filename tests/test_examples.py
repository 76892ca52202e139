"""Every tutorial runs from top to bottom in a process of its own, and leaves no file behind."""

import os
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

TUTORIALS = Path(__file__).parents[1] / "examples" / "tutorials"
QUICK = {"quickstart", "digits_cnn"}  # one of plain JAX, one of nnx; the rest is for test-all
LIMIT = 600  # seconds; about ten on an idle machine of two cores


def tutorials(kind):
    return [
        pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else [pytest.mark.slow])
        for path in sorted(TUTORIALS.glob(kind))
    ]


@pytest.fixture
def environment(tmp_path_factory):
    """As a user's: one device, no display, and a home for IPython that nobody misses."""
    home = tmp_path_factory.mktemp("ipython")
    ours = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    return {**ours, "IPYTHONDIR": str(home), "MPLBACKEND": "Agg"}


def test_the_quick_ones_are_there():
    assert {path.stem for path in TUTORIALS.glob("*.py")} > QUICK


@pytest.mark.parametrize("path", tutorials("*.py"))
def test_script(path, tmp_path, environment):
    command = [sys.executable, "-W", "error", str(path)]
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT
    )
    assert run.returncode == 0, run.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", tutorials("*.ipynb"))
def test_notebook(path, tmp_path, environment):
    del environment["MPLBACKEND"]  # IPython has its own
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(notebook, timeout=LIMIT, kernel_name="python3").execute(
        cwd=str(tmp_path), env=environment
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", sorted(TUTORIALS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_holds_no_output(path):
    for cell in nbformat.read(path, as_version=4).cells:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None
