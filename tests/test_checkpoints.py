"""Runs go on after kill -9, and the states of every version that was ever out still load."""

import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import types

import jax
import many_devices
import numpy as np
import orbax.checkpoint as ocp
import pytest
from checkpoints import states
from jax.sharding import NamedSharding, PartitionSpec
from run_config import check_config

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
sys.path.insert(0, os.path.dirname(sys.argv[0]))
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


def test_a_checkpoint_moves_between_numbers_of_devices(tmp_path):
    """Saved from eight devices, read by two, by one, and by eight again: the same bits."""
    optimizer = egd_optax.egd(
        0.1, method=egd_optax.polar.SubspaceIteration(4), momentum=0.9, mesh_axes="data"
    )
    params = {"kernel": np.random.default_rng(0).standard_normal((16, 24)).astype("float32")}

    def layout(count):
        mesh = jax.make_mesh((count,), ("data",), devices=jax.devices()[:count])
        rows = NamedSharding(mesh, PartitionSpec("data"))
        everywhere = NamedSharding(mesh, PartitionSpec())
        return mesh, lambda leaf: rows if leaf.shape[:1] == (16,) else everywhere

    mesh, where = layout(8)
    with jax.set_mesh(mesh):
        placed = jax.tree.map(lambda x: jax.device_put(x, where(x)), params)
        state = jax.tree.map(lambda x: jax.device_put(x, where(x)), optimizer.init(placed))
        updates, state = jax.jit(optimizer.update)(placed, state, placed)
    tree = first = {"params": placed, "state": state, "updates": updates}
    with ocp.StandardCheckpointer() as checkpointer:
        for count in (2, 1, 8):
            checkpointer.save(tmp_path / str(count), tree)
            checkpointer.wait_until_finished()
            _, where = layout(count)
            like = jax.tree.map(
                lambda x, where=where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where(x)),
                tree,
            )
            tree = checkpointer.restore(tmp_path / str(count), like)
            assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(tree)} == {count}
            jax.tree.map(np.testing.assert_array_equal, tree, first)


def on_many_devices(folder, *options):
    script = (sys.executable, many_devices.__file__, "--folder", folder, *options)
    command = [*script, "--steps", "6", "--save-every", "3", "--width", "16", "--layers", "1"]
    quick = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "true"}
    ran = subprocess.run(command, env=quick, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_two_processes_go_on_where_eight_devices_were(tmp_path):
    """With a time-out: devices that whiten at once must not wait for each other for ever."""
    eight = on_many_devices(tmp_path, "--devices", "8")
    shutil.rmtree(tmp_path / "steps" / "6")
    both = on_many_devices(tmp_path, "--processes", "2", "--devices", "2")
    assert [(line["step"], line["devices"]) for line in both[6:]] == [(4, 4), (5, 4), (6, 4)]
    for line, expected in zip(both[6:], eight[3:], strict=True):
        assert line["loss"] == pytest.approx(expected["loss"], rel=1e-5)  # sums in another order


def test_what_many_devices_cannot_cut_is_refused_and_leaves_the_folder_free(tmp_path):
    config = many_devices.Config(tmp_path / "run", batch_size=12)
    with pytest.raises(SystemExit, match=r"must be a multiple of the 8 devices, got 12\."):
        many_devices.train(config)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_of_one_run(tmp_path):
    config = many_devices.Config(tmp_path)
    check_config(tmp_path, config.fixed())
    check_config(tmp_path, dataclasses.replace(config, steps=300).fixed())
    with pytest.raises(SystemExit, match="holds another run"):
        check_config(tmp_path, dataclasses.replace(config, width=32).fixed())
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


@pytest.mark.parametrize("codes", [(0, 0), (None, 1), (0, -signal.SIGKILL)])
def test_the_first_process_that_fails_gives_the_code(tmp_path, monkeypatch, codes):
    """A process that a signal ended has a negative one."""
    polled, killed = iter(codes), []

    def started(command):
        process = types.SimpleNamespace(kill=lambda: killed.append(command))
        code = next(polled)
        process.poll = lambda: code
        return process

    monkeypatch.setattr(many_devices.subprocess, "Popen", started)
    assert many_devices.launch(many_devices.Config(tmp_path, processes=2)) == (codes[1] or 0)
    assert len(killed) == 2
