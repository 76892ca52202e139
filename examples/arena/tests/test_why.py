"""The course of runs, less data, the demonstration: what is logged, and that it goes on."""

import jax
import numpy as np
import pytest

from arena import demo, why
from arena.contract import Task
from arena.field import Field
from arena.optimizers import OPTIMIZERS
from arena.record import read
from arena.tasks import TASKS, with_fraction

LINE = Task(
    "line",
    "A line",
    lambda key: {"w": jax.random.normal(key, (3, 2))},
    lambda params, batch: ((batch[0] @ params["w"] - batch[1]) ** 2).mean(),
    lambda seed: ((np.ones((8, 3)), np.ones((8, 2))), (np.ones((4, 3)), np.ones((4, 2)))),
    lambda params, batch: -((batch[0] @ params["w"] - batch[1]) ** 2).mean(),
    target=-0.01,
    steps=10,
    batches=(8,),
)
BEST = {"learning_rate": 0.1, "decay": 0.0, "batch": 8}


@pytest.fixture
def study(monkeypatch):
    monkeypatch.setattr(why, "STEPS", 3)
    monkeypatch.setattr(why, "FRACTIONS", ())
    return why.Study(Field(LINE, {"sgd": OPTIMIZERS["sgd"]}), {"sgd": BEST})


def test_the_course_of_a_run_has_the_norms_after_each_step(study, tmp_path):
    why.run(study, tmp_path / "line.jsonl")
    lines = read(tmp_path / "line.jsonl").lines
    assert [line["seed"] for line in lines] == list(study.seeds)
    params, gradient = why.task_start(LINE, study.seeds[0])[0], jax.grad(LINE.loss)
    for step in range(3):
        params = {"w": params["w"] - 0.1 * gradient(params, LINE.data(0)[0])["w"]}
        values = np.linalg.svd(np.float64(params["w"]))[1]
        np.testing.assert_allclose(lines[0]["norm"][step], (values**2).sum() ** 0.5, rtol=1e-4)
        np.testing.assert_allclose(lines[0]["nuclear"][step], values.sum(), rtol=1e-4)
        rank = values.sum() ** 2 / (values**2).sum()
        np.testing.assert_allclose(lines[0]["rank"][step], rank, rtol=1e-4)


def test_what_is_logged_is_not_run_again(study, tmp_path, monkeypatch):
    path = tmp_path / "line.jsonl"
    why.run(study, path)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:3]) + lines[3][:20])  # killed within a line
    runs, course = [], why.course
    monkeypatch.setattr(why, "course", lambda *all: runs.append(all) or course(*all))
    why.run(study, path)
    assert len(runs) == why.SEEDS - 2
    assert path.read_bytes() == whole


def test_a_share_of_the_table_is_trained_on():
    train, test = with_fraction("addition-97", 0.2).data(0)
    assert (len(train.inputs), len(test.inputs)) == (1881, 7528)
    assert with_fraction("addition-97", 0.5).batches == TASKS["addition-97"].batches
    with pytest.raises(ValueError, match="only modular tables"):
        with_fraction("parity-2", 0.2)


def test_the_target_is_held_to_the_end():
    line = {"steps": [1, 2, 3, 4], "test": [0.2, 0.96, 0.9, 0.97]}
    assert demo.reached(line, 0.95) == 4
    assert demo.reached(line, 0.98) is None
