"""Runs go on after kill -9, and the states of every version that was ever out still load."""

import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoints import states

import egd_optax

pytestmark = pytest.mark.usefixtures("quick_compilation")

SCRIPT = pathlib.Path(__file__).parents[1] / "examples" / "training" / "train_and_resume.py"
FILES = sorted(states.FOLDER.glob("*.npz"))
TEMPLATE = {name: states.template(name) for name in states.TRANSFORMATIONS}
# The second checkpoint is still being written when the process dies.
DIES = """
import os, runpy, signal, sys
import orbax.checkpoint as ocp

save = ocp.CheckpointManager.save

def save_and_die(self, step, **arguments):
    saved = save(self, step, **arguments)
    if step == 102:
        os.kill(os.getpid(), signal.SIGKILL)
    return saved

ocp.CheckpointManager.save = save_and_die
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run(folder, *options, dies=False):
    # The method with a state, and a checkpoint between two halves of an accumulated gradient.
    fixed = ("--steps", "303", "--save-every", "51", "--method", "subspace", *options)
    start = ["-c", DIES] if dies else []
    command = [sys.executable, *start, SCRIPT, "--folder", folder, *fixed]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bits(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(whole).returncode == 0
    assert run(broken, dies=True).returncode == -signal.SIGKILL
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


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_state_of_an_earlier_version_goes_on(file):
    """Names, shapes and dtypes are the same, and so are the updates of the next step."""
    with np.load(file) as stored:
        saved = dict(stored)
    wanted = states.by_name(TEMPLATE)
    types = [{key: (x.shape, x.dtype) for key, x in leaves.items()} for leaves in (saved, wanted)]
    assert types[0] == types[1]
    before = jax.tree.unflatten(jax.tree.structure(TEMPLATE), [saved[key] for key in wanted])
    for name, content in before.items():
        updates, _ = states.step(name, content["state"], content["gradients"])
        # Another machine's QR and products round differently: 1e-5 is 80 eps.
        jax.tree.map(
            lambda new, old: np.testing.assert_allclose(new, old, atol=1e-5),
            updates,
            content["updates"],
        )


def test_the_present_version_has_a_file():
    assert egd_optax.__version__ in [file.stem for file in FILES]


def test_orbax_saves_and_restores_every_state(tmp_path):
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "states", TEMPLATE)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "states", TEMPLATE)
    assert jax.tree.structure(restored) == jax.tree.structure(TEMPLATE)
    jax.tree.map(np.testing.assert_array_equal, restored, TEMPLATE)
