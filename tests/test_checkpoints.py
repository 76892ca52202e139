"""Runs go on after kill -9, and the states of every version that was ever out still load."""

import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoints import states

import egd_optax

SCRIPT = pathlib.Path(__file__).parents[1] / "examples" / "train_and_resume.py"
VERSIONS = sorted(folder for folder in states.FOLDER.iterdir() if (folder / "_METADATA").exists())


def command(folder, *options):
    # The stateful method, and a checkpoint between two halves of an accumulated gradient.
    fixed = ("--steps", "603", "--save-every", "51", "--method", "streaming", *options)
    return [sys.executable, str(SCRIPT), "--folder", str(folder), *fixed]


def run(folder, *options):
    return subprocess.run(command(folder, *options), capture_output=True, text=True)


def kill_after(folder, step):
    """Start a run and kill it once the checkpoint of `step` is whole."""
    process = subprocess.Popen(
        command(folder), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not (folder / "steps" / str(step)).exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(whole).returncode == 0
    kill_after(broken, 51)
    assert not (broken / "final.npz").exists()
    resumed = run(broken)
    assert "Going on after step" in resumed.stdout, resumed.stderr
    assert "Test accuracy 9" in resumed.stdout
    with np.load(whole / "final.npz") as expected, np.load(broken / "final.npz") as got:
        assert set(expected) == set(got)
        assert len(expected) == 6
        for name in expected:
            np.testing.assert_array_equal(got[name], expected[name])
    other = run(whole, "--seed", "1")
    assert other.returncode == 1
    assert "holds another run" in other.stderr


@pytest.fixture(scope="module", params=VERSIONS, ids=lambda folder: folder.name)
def folder(request):
    return request.param.resolve()


@pytest.fixture(scope="module")
def saved(folder):
    """Return what a version's checkpoint holds, in the present states."""
    like = {name: states.template(name) for name in states.TRANSFORMATIONS}
    with ocp.StandardCheckpointer() as checkpointer:  # raises where the trees differ
        return checkpointer.restore(folder, like)


@pytest.mark.parametrize("name", states.TRANSFORMATIONS)
def test_a_state_of_an_earlier_version_goes_on(saved, name):
    before = saved[name]
    updates, _ = states.step(name, before["state"], before["gradients"])
    # Another machine's QR and products round differently: 1e-5 is 80 eps.
    jax.tree.map(
        lambda new, old: np.testing.assert_allclose(new, old, atol=1e-5), updates, before["updates"]
    )


def test_no_dtype_has_changed(folder):
    """Orbax converts in silence, so the file is read as it is."""
    with ocp.StandardCheckpointer() as checkpointer:
        stored = checkpointer.restore(folder)
    for name in states.TRANSFORMATIONS:
        assert dtypes(states.template(name)["state"]) == dtypes(stored[name].get("state"))


def dtypes(tree):
    leaves = jax.tree.leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf.dtype for path, leaf in leaves
    }


def test_the_present_version_has_a_checkpoint():
    assert egd_optax.__version__ in [folder.name for folder in VERSIONS]
