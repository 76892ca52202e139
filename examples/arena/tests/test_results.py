import json

import pytest

from arena import execute, pages, tables
from arena.record import COUNT, TIMES, Record, read
from arena.results import by_batch, ratio_to, rows, sign_test, task_of


def counting(record, name, steps):
    """Return a copy whose runs on fresh seeds took other steps, None for missed."""
    lines = [line for line in record.lines if (line["kind"], line["optimizer"]) != (COUNT, name)]
    copy = Record(record.header)
    number = max(line["round"] for line in lines if line["optimizer"] == name)
    for seed, one in enumerate(steps, 100):
        line = {"kind": COUNT, "optimizer": name, "round": number, "seed": seed, "steps": one}
        lines.append(line)
    copy.lines = lines
    return copy


@pytest.fixture
def record(finished):
    both = counting(read(finished), "sgd", (20, None, 40))
    return counting(both, "momentum", (10, 12, 50))


def test_a_miss_counts_at_the_budget(record):
    momentum, sgd = rows(record)
    assert (momentum.optimizer, momentum.median, momentum.reached) == ("momentum", 12, 3)
    assert (sgd.optimizer, sgd.median, sgd.reached) == ("sgd", 40, 2)
    assert tables.steps_of(momentum) == "12 (10 to 50)"
    assert tables.steps_of(sgd) == "40 (20 to >60)"
    low, high = sgd.interval
    assert (low, high) == (pytest.approx(0.2077, abs=1e-4), pytest.approx(0.9385, abs=1e-4))
    (missed,) = (r for r in rows(counting(record, "sgd", (None, None, 9))) if r.optimizer == "sgd")
    assert tables.steps_of(missed) == "> 60 (9 to >60)"


def test_ratios_and_wins_are_on_equal_seeds(record):
    found = [rows(record), rows(record)]
    assert ratio_to(found, "momentum", "sgd") == (pytest.approx(12 / 40), 2)
    assert sign_test(found, "momentum", "sgd") == (4, 2, pytest.approx(0.6875))
    assert sign_test(found, "sgd", "sgd") == (0, 0, 1.0)


def test_best_by_batch_and_after_trials_do_not_rise(record):
    for row in rows(record):
        steps = [row.last.best_after(count) for count in range(1, 5)]
        assert steps == sorted(steps, reverse=True)
        best = by_batch(record, row.optimizer)
        assert list(best) == [4, 16]
        assert min(best.values()) <= steps[-1]


def test_the_task_of_a_log_is_the_task(record, toy):
    assert task_of(record).batches == toy.task.batches
    assert task_of(record).tuning_seeds == (0, 1)


def test_times_are_of_the_bests_side_by_side(record, toy, monkeypatch):
    monkeypatch.setattr(execute, "COMPILES", 1)
    bests = {row.optimizer: (row.last.best["settings"], 10) for row in rows(record)}
    (line,) = execute.execute(toy, execute.TimeJob(bests, 100))
    assert line["kind"] == TIMES
    assert {len(row["seconds"]) for row in line["rows"].values()} == {5}
    record.add(json.loads(json.dumps(line)))
    for row in rows(record):
        assert 0 < row.seconds < 1
        assert row.compile_seconds > 0


def test_pages_have_the_table_the_figure_and_the_ranges(finished, tmp_path):
    assert "no finished logs yet" in pages.render(tmp_path, tmp_path)
    pages.render(tmp_path, finished.parent)
    text = (tmp_path / "arena" / "toy.md").read_text()
    assert "SGD" in text
    assert "![A line" in text
    assert "lr 0.001 to" in text
    assert (tmp_path / "arena" / "toy.png").stat().st_size > 10_000
    assert "[A line](toy.md)" in (tmp_path / "arena" / "index.md").read_text()
