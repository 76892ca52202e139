import dataclasses
import json

from arena import plan
from arena.field import Field
from arena.record import COUNT, ROUND, TRIAL, Log, read
from arena.tests.conftest import work


def test_a_finished_log_asks_for_nothing(finished, toy):
    record = read(finished)
    assert plan.jobs(record, toy) == []
    assert list(plan.new_rounds(record, toy)) == []
    for name in toy.optimizers:
        last = plan.last_round(record, toy.task, name)
        assert sorted(trial["trial"] for trial in last.trials) == list(range(16))
        assert [line["seed"] for line in plan.counted(record, last)] == [100, 101, 102]


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


def test_giving_trials_up_changes_neither_the_best_nor_the_curve(finished, toy, tmp_path):
    with Log(tmp_path / "toy.jsonl", toy.config()) as log:
        work(log, toy, lambda job: dataclasses.replace(job, todo=job.todo[:1], bound=None))
        for name in toy.optimizers:
            full = plan.last_round(log.record, toy.task, name)
            quick = plan.last_round(read(finished), toy.task, name)
            assert quick.best["settings"] == full.best["settings"]
            for count in range(1, 17):
                assert quick.best_after(count) == full.best_after(count)


def test_a_best_at_an_edge_widens_the_range_at_most_three_times(toy, tmp_path):
    (name, optimizer), *_ = toy.optimizers.items()
    knob = dataclasses.replace(optimizer.knobs[0], low=1e-6, high=1e-5)
    narrow = dataclasses.replace(optimizer, knobs=(knob,))
    task = dataclasses.replace(toy.task, batches=(16,))
    field = Field(task, {name: narrow})
    with Log(tmp_path / "toy.jsonl", field.config()) as log:
        work(log, field)
        rounds = log.record.of(ROUND, name)
        assert [line["knobs"][0]["high"] for line in rounds] == [1e-5, 1e-4, 1e-3, 1e-2]
        assert len(log.record.of(TRIAL, name)) == 64
        assert {line["round"] for line in log.record.of(COUNT, name)} == {3}
        assert plan.last_round(log.record, task, name).edges == {"lr": "high"}


def test_one_trial_of_each_optimizer_comes_first(toy, tmp_path):
    with Log(tmp_path / "toy.jsonl", toy.config()) as log:
        for line in plan.new_rounds(log.record, toy):
            log.add(line)
        first, second, *rest = plan.jobs(log.record, toy)
        assert [first.optimizer, second.optimizer] == list(toy.optimizers)
        assert [len(one.todo) for one in (first, second)] == [1, 1]
        assert sum(len(job.todo) for job in rest) == 8  # of the first stage, these two among them
