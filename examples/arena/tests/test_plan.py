"""What a log asks for next: points, suggestions, edges; the log itself."""

import dataclasses
import json
import math

import pytest

from arena import plan
from arena.contract import Knob
from arena.field import Field
from arena.record import ANEW, COUNT, TRIAL, Log, LogError, read
from arena.space import edges, from_json, points, spread, to_json, traced
from arena.tests.conftest import work


def test_a_finished_log_asks_for_nothing(finished, toy):
    record = read(finished)
    assert plan.jobs(record, toy) == []
    assert list(plan.new_rounds(record, toy)) == []
    for name in toy.optimizers:
        last = plan.last_round(record, toy.task, name)
        assert sorted(trial["trial"] for trial in last.trials) == list(range(toy.task.trials))
        assert [line["seed"] for line in plan.counted(record, last)] == [400, 401, 402]


def test_from_any_line_on_the_rest_is_the_same(finished, toy, tmp_path):
    lines = finished.read_text().splitlines(keepends=True)
    whole = sorted(map(essence, lines[1:]))
    for count in range(1, len(lines), 5):
        path = tmp_path / f"{count}.jsonl"
        path.write_text("".join(lines[:count]) + lines[count][:9])  # killed within a line
        with Log(path, toy.config()) as log:
            work(log, toy)
        assert sorted(map(essence, path.read_text().splitlines()[1:])) == whole


def essence(text):
    """Return a line without its times."""
    line = json.loads(text)
    runs = [{**run, "seconds": 0} for run in line.get("runs", [])]
    return json.dumps(line | {"runs": runs, "seconds": 0, "compile": 0}, sort_keys=True)


def test_giving_trials_up_changes_neither_the_best_nor_the_curve_of_the_first_ones(
    finished, toy, tmp_path
):
    """Later ones follow from how far those that were given up had come."""
    first = spread(toy.task.trials)
    with Log(tmp_path / "toy.jsonl", toy.config()) as log:
        work(log, toy, lambda job: dataclasses.replace(job, todo=job.todo[:1], bound=None))
        for name in toy.optimizers:
            full = plan.last_round(log.record, toy.task, name)
            quick = plan.last_round(read(finished), toy.task, name)
            for count in range(1, first + 1):
                assert quick.best_after(count) == full.best_after(count)


def test_trials_follow_a_best_beyond_the_edge_of_its_range(toy, tmp_path):
    """The best rates are larger than the written ones; no trial is added."""
    (name, optimizer), *_ = toy.optimizers.items()
    knob = dataclasses.replace(optimizer.knobs[0], low=1e-4, high=1e-2)
    narrow = dataclasses.replace(optimizer, knobs=(knob,))
    task = dataclasses.replace(toy.task, batches=(16,), trials=24)
    field = Field(task, {name: narrow})
    with Log(tmp_path / "toy.jsonl", field.config()) as log:
        work(log, field)
        last = plan.last_round(log.record, task, name)
        assert len(last.trials) == 24
        assert last.edges == {}
        assert last.best["settings"]["lr"] > 10 * knob.high
        assert plan.value(task, last.best) < 6


def test_every_other_trial_is_spread_until_one_gets_to_the_target(toy):
    task, knobs = dataclasses.replace(toy.task, trials=12), toy.optimizers["sgd"].knobs
    spread_out = points("sgd", knobs, task.batches, 12)
    missed = [{"seed": 0, "steps": None, "ran": 60, "score": 1.0}]
    reached = [{"seed": seed, "steps": 9, "ran": 12, "score": 0.0} for seed in (0, 1)]

    def following(*runs):
        pairs = enumerate(zip(spread_out, runs, strict=False))
        lines = [{"trial": i, "settings": one, "runs": ran} for i, (one, ran) in pairs]
        return plan.Round(task, "sgd", 0, knobs, tuple(lines)).points[-1]

    assert following(*5 * [missed]) == spread_out[5]
    assert following(*6 * [missed]) != spread_out[6]
    assert following(*4 * [missed], reached) != spread_out[5]


def test_every_other_trial_looks_beyond_an_edge_and_the_last_ones_all_do():
    sides = {"lr": "high", "decay": "low"}
    found = [plan.probed(sides, done, 16 - done) for done in range(4, 16)]
    low, high = ("decay", "low"), ("lr", "high")
    assert found == [high, None, low, None, high, None, low, None, high, high, low, low]
    assert plan.probed({}, 4, 1) is None


def test_one_trial_of_each_optimizer_comes_first(toy, tmp_path):
    with Log(tmp_path / "toy.jsonl", toy.config()) as log:
        for line in plan.new_rounds(log.record, toy):
            log.add(line)
        first, second, *rest = plan.jobs(log.record, toy)
        assert [first.optimizer, second.optimizer] == list(toy.optimizers)
        assert [len(one.todo) for one in (first, second)] == [1, 1]
        assert sum(len(job.todo) for job in rest) == 4  # these two among them


def test_the_first_line_has_all_that_decides(finished):
    header = json.loads(finished.read_text().splitlines()[0])
    assert header["task"]["target"] == 0.01
    assert header["fresh_seeds"] == [400, 401, 402]
    rate, ema = header["ranges"]["sgd"]
    assert rate == {"name": "lr", "low": 0.001, "high": 1.0, "log": True}
    assert (ema["name"], ema["low"], ema["high"]) == ("ema", 1.0, 30.0)
    assert {"versions", "hardware", "started"} <= header.keys()


def test_one_writer_at_a_time(toy, tmp_path):
    path = tmp_path / "new" / "toy.jsonl"
    with Log(path, toy.config()), pytest.raises(BlockingIOError, match="another writes"):
        Log(path, toy.config())
    with Log(path, toy.config()):
        pass


def test_another_task_or_other_ranges_are_refused(finished, toy, tmp_path):
    path = tmp_path / "toy.jsonl"
    path.write_bytes(finished.read_bytes())
    harder = dataclasses.replace(toy, task=dataclasses.replace(toy.task, target=0.001))
    with pytest.raises(LogError, match=r"target=0.01, not 0.001; move it away"):
        Log(path, harder.config())
    knobs = (dataclasses.replace(toy.optimizers["sgd"].knobs[0], high=2.0),)
    sgd = dataclasses.replace(toy.optimizers["sgd"], knobs=knobs)
    wider = dataclasses.replace(toy, optimizers={**toy.optimizers, "sgd": sgd})
    with pytest.raises(LogError, match="--anew sgd"):
        Log(path, wider.config())
    with Log(path, wider.config(), anew=("sgd",)) as log:
        assert log.record.of(TRIAL, "sgd") == []
        assert log.record.times == {}
        assert len(log.record.of(COUNT, "momentum")) == 3
        assert log.record.lines[-1]["optimizer"] == "momentum"
        trial = {"kind": TRIAL, "optimizer": "sgd", "round": 0, "trial": 0}
        (line,) = plan.new_rounds(log.record, wider)
        log.add(line)
        log.add(trial)
    with Log(path, wider.config(), anew=("sgd",)) as log:  # it was killed, and goes on
        assert log.record.of(TRIAL, "sgd") == [trial]
        count = {"kind": COUNT, "optimizer": "sgd", "round": 0, "steps": 1}
        log.add(count | {"seed": 200})
    with Log(path, wider.config(), anew=("sgd",)) as log:
        assert log.record.of(TRIAL, "sgd") == [trial]
        log.add(count | {"seed": 201})
        log.add(count | {"seed": 202})
    with Log(path, wider.config(), anew=("sgd",)) as log:  # it was done, and is begun again
        assert log.record.of(TRIAL, "sgd") == []
    assert json.loads(path.read_text().splitlines()[-1]) == {"kind": ANEW, "optimizer": "sgd"}


def test_another_tuner_other_seeds_and_other_code_are_refused_and_nothing_is_taken_back(
    finished, toy, tmp_path
):
    path = tmp_path / "toy.jsonl"
    path.write_bytes(before := finished.read_bytes())
    config = toy.config()
    for name, value in (("tuner", 9), ("fresh_seeds", [7]), ("code", "other")):
        with pytest.raises(LogError, match=f"has {name}="):
            Log(path, config | {name: value}, anew=("sgd",))
    other = dict(config["ranges"], sgd=[])
    with pytest.raises(LogError, match="--anew sgd"):
        Log(path, config | {"ranges": other}, anew=("momentum",))
    with Log(path, config | {"ranges": other}, names=("momentum",)):
        pass
    assert path.read_bytes() == before


def test_what_is_no_log_is_left_alone(toy, tmp_path):
    path = tmp_path / "toy.jsonl"
    path.write_text("my notes")
    with pytest.raises(LogError, match="begins with its header"):
        Log(path, toy.config())
    assert path.read_text() == "my notes"


def test_no_log_is_said(tmp_path):
    for text in ("", "{}\n", "hello\n"):
        (tmp_path / "x").write_text(text)
        with pytest.raises(LogError, match="log"):
            read(tmp_path / "x")


RATE = Knob("lr", 1e-3, 1.0)
AVERAGE = Knob("beta", 0.0, 0.9, log=False, least=0.0, most=0.99)
KIND = Knob("kind", choices=("coupled", "decoupled"))
KNOBS = (RATE, AVERAGE, KIND)


def test_points_are_the_same_ones_again_and_cover_all_ranges():
    found = points("egd", KNOBS, (32, 64, 128), 20)
    assert found == points("egd", KNOBS, (32, 64, 128), 20)
    assert found != points("muon", KNOBS, (32, 64, 128), 20)
    rates = sorted(one["lr"] for one in found)
    assert len(found) == 20
    assert 1e-3 <= rates[0] < 2e-3
    assert 0.5 < rates[-1] <= 1.0
    assert sum(rate < 0.0316 for rate in rates) == pytest.approx(10, abs=2)
    assert {one["batch"] for one in found} == {32, 64, 128}
    assert {one["kind"] for one in found} == {"coupled", "decoupled"}


def test_fewer_points_are_the_first_ones():
    assert points("egd", KNOBS, (8,), 10) == points("egd", KNOBS, (8,), 20)[:10]


def test_a_best_beyond_which_nothing_was_tried_is_at_an_edge_unless_the_limit_is_natural():
    tried = [{"lr": rate, "beta": rate, "kind": "coupled"} for rate in (0.1, 0.2, 0.4)]
    assert edges(KNOBS, tried[1], tried) == {}
    assert edges(KNOBS, tried[0], tried) == {"lr": "low"}
    assert edges(KNOBS, tried[2], tried) == {"lr": "high", "beta": "high"}


def test_logs_keep_knobs():
    assert tuple(from_json(to_json(knob)) for knob in KNOBS) == KNOBS


def test_a_choice_arrives_as_its_number():
    values = traced(KNOBS, {"lr": 0.5, "beta": 0.0, "kind": "decoupled"})
    assert values == {"lr": 0.5, "beta": 0.0, "kind": 1}
    assert [value.dtype for value in values.values()] == ["float32", "float32", "int32"]


def test_dear_trials_are_suggested_one_by_one_and_killed_go_on_alike(toy, tmp_path):
    """Each follows from the log alone, and is given up at the best before, whatever its batch."""
    task = dataclasses.replace(toy.task, trials=12, seeds=1)
    field = Field(task, {"momentum": toy.optimizers["momentum"]})
    path = tmp_path / "toy.jsonl"
    first = spread(12)
    with Log(path, field.config()) as log:
        work(log, field)
        last = plan.last_round(log.record, task, "momentum")
        assert last.complete
        assert last.points == [trial["settings"] for trial in last.trials]
        for done in range(first, 12):
            begun = dataclasses.replace(last, trials=last.trials[:done])
            assert begun.missing == {done: last.trials[done]["settings"]}
            (job,) = plan._trials(begun)
            assert job.bound == begun.total()
        later = [plan.value(task, trial) for trial in last.trials[first:]]
        assert min(later) <= min(plan.value(task, trial) for trial in last.trials[:first])
    lines = path.read_text().splitlines(keepends=True)
    (tmp_path / "killed.jsonl").write_text("".join(lines[: first + 5]))
    with Log(tmp_path / "killed.jsonl", field.config()) as log:
        work(log, field)
    again = (tmp_path / "killed.jsonl").read_text().splitlines()
    assert sorted(map(essence, again[1:])) == sorted(map(essence, lines[1:]))


def test_a_miss_is_graded_by_its_steps_and_by_how_far_it_was(toy):
    """That is for the model alone: to find the best, all misses count as the budget."""
    task = dataclasses.replace(toy.task, target=0.8, lower=False, tuning_seeds=(0, 1))

    def graded(*runs):
        keys = ("steps", "ran", "score")
        return plan.graded(task, {"runs": [dict(zip(keys, run, strict=True)) for run in runs]})

    best = graded((30, 50, 0.9), (50, 70, 0.9))
    assert best == pytest.approx(math.log(40))
    hopeless = math.log(2 * task.steps)
    assert graded((None, 60, 0.0)) == pytest.approx(hopeless)  # however late it was given up
    assert graded((None, 60, 0.6)) == pytest.approx(0.75 * math.log(60) + 0.25 * hopeless)
    assert graded((None, 60, 0.85)) == pytest.approx(math.log(60))  # there, and not for long
    assert graded((30, 50, 0.9), (None, 60, 0.6)) == pytest.approx(math.log((30 + 75) / 2))
    assert graded((20, 40, 0.9), (None, 50, 0.1)) > graded((35, 55, 0.9), (35, 55, 0.9)) + 0.3
    assert graded((72, 92, 0.9), (None, 8, 0.4)) == pytest.approx(math.log(72))  # given up
    assert graded((None, 5, None)) == pytest.approx(hopeless)  # it diverged
    zero = dataclasses.replace(task, target=0.0, lower=True)
    run = {"steps": None, "ran": 9, "score": 0.5}
    assert plan.graded(zero, {"runs": [run]}) == pytest.approx((2 * math.log(9) + hopeless) / 3)
    near, far = ({"runs": [run | {"score": score}]} for score in (2.0, 5.0))
    assert plan.graded(zero, near) < plan.graded(zero, far) - 0.1


def test_what_diverges_at_the_first_look_is_not_sought(toy, tmp_path):
    """Rates above .5 do; the first points have some of them, and what is suggested has few."""
    wide = dataclasses.replace(toy.optimizers["sgd"], knobs=(Knob("lr", 1e-3, 1e3),))
    task = dataclasses.replace(toy.task, trials=16, seeds=1, batches=(16,))
    field = Field(task, {"sgd": wide})
    with Log(tmp_path / "toy.jsonl", field.config()) as log:
        work(log, field)
        last = plan.last_round(log.record, task, "sgd")
    diverged = [trial["runs"][0]["score"] is None for trial in last.trials]
    assert any(diverged[:4])
    assert sum(diverged[4:]) <= 4, diverged
    rates = [trial["settings"]["lr"] for trial in last.trials]
    assert 1e-3 / 10**0.6 <= min(rates) <= max(rates) <= 1e3 * 10**0.6  # a tenth of six decades
