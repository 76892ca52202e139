import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from arena.checks import check_field
from arena.command_line import main
from arena.contract import Knob
from arena.tests.conftest import TOY


def changed(field, **changes):
    return dataclasses.replace(field, task=dataclasses.replace(field.task, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target": None}, "needs a target.* got None; set target=0.95"),
        ({"target": float("nan")}, "got nan"),
        (
            {"loss": lambda params, batch: batch[1] * params["w"][0]},
            r"scalar, got \(16,\); use",
        ),
        ({"score": lambda params, batch: batch[1]}, r"score must return a scalar, got \(8,\)"),
        ({"batches": (4, 64)}, "size of 64 with 16 examples; 16 is the whole set"),
        ({"batches": (16, 4)}, r"ascend.* got \(16, 4\)"),
        ({"steps": 0}, "steps must be .* got 0; raise it"),
        ({"every": 100}, "every=100 with steps=60; lower every"),
        ({"tuning_seeds": (0, 100)}, r"apart from those that count, got \(0, 100\)"),
        ({"name": "a/b"}, "got 'a/b'"),
        ({"data": lambda seed: ((np.ones(3), np.ones(2)), np.ones(2))}, r"got \[2, 3\]; cut"),
    ],
)
def test_a_bad_task_is_refused(toy, changes, message):
    with pytest.raises(ValueError, match=message):
        check_field(changed(toy, **changes))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"knobs": (Knob("lr", 1.0, 0.1),)}, "goes from 1.0 to 0.1; set both"),
        ({"knobs": (Knob("lr", 0.0, 0.1),)}, "begins at 0.0; use log=False"),
        ({"knobs": (Knob("batch", 0.1, 1.0),)}, "'batch'"),
        (
            {"make": lambda *_: optax.stateless(lambda u, _: {"w": jnp.sum(u["w"])})},
            "mend its `make`",
        ),
    ],
)
def test_a_bad_optimizer_is_refused(toy, changes, message):
    bad = dataclasses.replace(toy.optimizers["sgd"], **changes)
    with pytest.raises(ValueError, match=message):
        check_field(dataclasses.replace(toy, optimizers={"sgd": bad}))


def test_the_command_line_refuses_before_anything_runs(tmp_path, capsys):
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "file").write_text("")
    toy = str(TOY)
    for arguments, message in (
        (["run", str(tmp_path / "empty.py")], "defines `task = Task(...)`"),
        (["run", str(tmp_path / "none.py")], "is not; name another"),
        (["run"], "needs one task"),
        (["run", toy, "--only", "sdg"], "did you mean sgd?"),
        (["run", toy, "--out", str(tmp_path / "file" / "x")], "choose another path"),
        (["tune", toy, "adam", "--out", str(tmp_path)], "one of sgd, momentum; got 'adam'"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty.py", "file"]
