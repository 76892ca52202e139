"""Trials, the course of runs, less data, the demonstration."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from arena import demo, trial, why
from arena.contract import Knob, Optimizer, Task
from arena.field import Field
from arena.optimizers import OPTIMIZERS
from arena.record import read
from arena.space import EMA
from arena.tasks import TASKS, with_fraction
from arena.trial import Program
from arena.workers import trial_runs

# A clock: its only parameter counts steps, and the score of each is written down in the test data.
CLOCK = Optimizer(
    "clock",
    "A clock",
    "here",
    (Knob("pace", 0.5, 2.0),),
    lambda values, *_: optax.sgd(-values["pace"]),
)


def clock(scores, hold=2, **fields):
    scores = np.array([0.0, *scores], "float32")

    def loss(params, batch):
        return jnp.mean(batch) * params["t"]

    def score(params, table):
        return table[jnp.round(params["t"]).astype(jnp.int32)]

    task = Task(
        name="clock",
        title="A clock",
        init=lambda key: {"t": jnp.zeros(())},
        loss=loss,
        data=lambda seed: (np.ones(4, "float32"), scores),
        score=score,
        target=0.5,
        steps=len(scores) - 1,
        batches=(4,),
        hold=hold,
    )
    return dataclasses.replace(task, **fields)


def several(tables, **fields):
    """Return the clock whose scores the seed chooses."""
    tables = [np.array([0.0, *scores], "float32") for scores in tables]
    data = lambda seed: (np.ones(4, "float32"), tables[seed])  # noqa: E731
    return clock(tables[0][1:], data=data, **fields)


def run(task, limit=None, pace=1.0):
    return Program(task, CLOCK, 4).run({"pace": pace}, 0, limit)


HELD = [
    ([0, 1, 1, 1, 0, 0], 2, 3),  # the first look of a run that is held
    ([1, 0, 0, 1, 1, 0], 4, 5),  # a run that is not held does not count
    ([0, 0, 0, 0, 1, 1], 5, 6),  # the budget is 5, and what is held then goes on
    ([0, 0, 0, 0, 1, 0], None, 6),
    ([0, 1, 0, 1, 0, 0], None, 5),
    ([0, 0.5, 0.5, 0, 0, 0], 2, 3),  # the target itself counts
    ([0, np.nan, 0, 0, 0, 0], None, 5),
]


def test_the_target_counts_where_it_is_held():
    program = Program(several([scores for scores, _, _ in HELD], hold=2, steps=5), CLOCK, 4)
    found = [program.run({"pace": 1.0}, seed) for seed in range(len(HELD))]
    assert [(one["steps"], one["ran"]) for one in found] == [(steps, ran) for _, steps, ran in HELD]


def test_less_is_better_if_lower():
    found = run(clock([1, 0.2, 0.4, 1, 1], lower=True))
    assert (found["steps"], found["best"], found["score"]) == (2, pytest.approx(0.2), 0.4)


def test_looks_are_at_the_average_of_the_weights():
    """A clock at 1, 2, ... has the average .25, .69, ...: it passes 2.5 at step 5, with 2.71."""
    average, steps = 0.0, 0
    while round(average) < 3:
        steps += 1
        average += (steps - average) / 4
    task = clock([0, 0, 1, 1, 1, 1, 1, 1, 1, 1])
    averaged = dataclasses.replace(CLOCK, knobs=(*CLOCK.knobs, EMA))
    settings = {"pace": 1.0, "ema": 4.0}
    assert Program(task, averaged, 4).run(settings, 0)["steps"] == steps == 5
    assert Program(task, averaged, 4).run({"pace": 1.0, "ema": 1.0}, 0)["steps"] == 3
    start = trial.task_start(task, 0)[:3]
    alone = jax.jit(Program(task, averaged, 4).steps_alone)(settings, *start, 5)
    assert alone["t"] == pytest.approx(2.71, abs=5e-3)


def test_the_average_of_weights_in_16_bits_is_precise():
    task = clock([0] * 50, init=lambda key: {"t": jnp.zeros((), jnp.bfloat16)})
    program = Program(task, CLOCK, 4)
    params, key, train, _ = trial.task_start(task, 0)
    transform, steps, expected = optax.sgd(-1.0), 40, 0.0
    step = functools.partial(program.step, transform, 1 / 30, key, train)
    start = program.start(transform, params, train)
    state = jax.jit(lambda state: jax.lax.fori_loop(0, steps, lambda _, s: step(s), state))(start)
    for weight in range(1, steps + 1):
        expected += (weight - expected) / 30
    assert float(state.average["t"]) == pytest.approx(expected, rel=1e-5)
    assert trial.averaged(state)["t"].dtype == jnp.bfloat16


def test_looks_come_every_so_many_steps():
    found = run(clock([1, 1, 0, 1, 1, 1, 0], every=2))
    assert (found["steps"], found["ran"]) == (2, 4)


def test_a_run_past_its_limit_ends_unless_it_is_at_the_target():
    task = clock([0, 0, 0, 1, 1, 0, 0])
    assert run(task, limit=2)["ran"] == 2
    assert run(task, limit=3)["ran"] == 3
    found = run(task, limit=4)
    assert (found["steps"], found["ran"]) == (4, 5)


def test_looks_that_are_left_out_change_nothing(monkeypatch):
    random = np.random.default_rng(0)
    task = several((random.random((20, 40)) < 0.8).astype("float32"), hold=8)
    found = []
    for jump in (1, 4, 8):
        monkeypatch.setattr(trial, "JUMP", jump)
        program = Program(task, CLOCK, 4)
        found.append([program.run({"pace": 1.0}, seed)["steps"] for seed in range(20)])
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) > 5


def test_a_trial_is_given_up_once_it_cannot_be_the_best():
    task = clock([0, 0, 0, 1, 1, 0, 0, 0, 0, 0])
    program = Program(task, CLOCK, 4)
    assert [one["steps"] for one in trial_runs(task, program, {"pace": 1.0}, (0, 1), 8)] == [4, 4]
    given_up = trial_runs(task, program, {"pace": 1.0}, (0, 1), 4)
    assert [(one["steps"], one["ran"]) for one in given_up] == [(None, 3)]


def test_a_run_whose_loss_is_not_finite_ends_without_the_target():
    def loss(params, batch):
        return jnp.mean(batch) * jnp.where(params["t"] > 1.5, jnp.inf, params["t"])

    found = run(clock([0, 0, 1, 1, 1, 1], loss=loss))
    assert found["steps"] is None
    assert found["ran"] <= 4


def test_settings_share_one_compilation():
    program = Program(clock([0] * 8), CLOCK, 4)
    slow, fast = (program.run({"pace": pace}, 0) for pace in (0.5, 1.0))
    assert slow["ran"] == fast["ran"]
    assert program.take_compile_seconds() > 0
    program.run({"pace": 0.75}, 1)
    assert program.take_compile_seconds() == 0


def test_an_epoch_has_every_example_once_in_a_new_order():
    train = jnp.arange(7.0)
    program = Program(clock([0], data=lambda seed: (train, train)), CLOCK, 3)
    state = program.start(optax.identity(), {}, train)
    next_batch = jax.jit(functools.partial(program._next_batch, jax.random.key(0), train))
    seen = []
    for step in range(4):
        order, batch = next_batch(state._replace(step=jnp.int32(step)))
        state = state._replace(order=order)
        seen.append(batch.tolist())
    assert len({*seen[0], *seen[1]}) == len({*seen[2], *seen[3]}) == 6
    assert seen[:2] != seen[2:]


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
BEST = {"learning_rate": 0.1, "decay": 0.0, "batch": 8, "ema": 4.0}


@pytest.fixture
def study(monkeypatch):
    monkeypatch.setattr(why, "STEPS", 3)
    monkeypatch.setattr(why, "FRACTIONS", ())
    sgd = OPTIMIZERS["sgd"]
    averaged = dataclasses.replace(sgd, knobs=(*sgd.knobs, EMA))
    return why.Study(Field(LINE, {"sgd": averaged}), {"sgd": BEST})


def test_the_course_of_a_run_has_the_norms_after_each_step(study, tmp_path):
    why.run(study, tmp_path / "line.jsonl")
    lines = read(tmp_path / "line.jsonl").lines
    assert [line["seed"] for line in lines] == list(study.seeds)
    params, gradient = why.task_start(LINE, study.seeds[0])[0], jax.grad(LINE.loss)
    average = np.float64(params["w"])
    for step in range(3):
        params = {"w": params["w"] - 0.1 * gradient(params, LINE.data(0)[0])["w"]}
        average = 0.75 * average + 0.25 * np.float64(params["w"])
        values = np.linalg.svd(average)[1]
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


def test_a_bad_seed_or_task_is_refused_before_a_run(tmp_path):
    for seed in (-5, 1):
        with pytest.raises(ValueError, match=f"the demo's seed is at least 0 .* got {seed}; 100"):
            demo.run(tmp_path / "log.jsonl", None, seed)
    with pytest.raises(ValueError, match=r"only modular tables .* got line"):
        why.study(Field(LINE, {"sgd": OPTIMIZERS["sgd"]}), None)
    assert not list(tmp_path.iterdir())
