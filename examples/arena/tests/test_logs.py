"""What the logs in the repository must show: nobody was tuned more, nobody is at an edge."""

import pytest

from arena import plan
from arena.command_line import LOGS
from arena.record import COUNT, TRIAL, read
from arena.results import task_of


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_optimizer_is_tuned_alike(path):
    record = read(path)
    task = task_of(record)
    for name in record.optimizers:
        last = plan.last_round(record, task, name)
        numbers = [line["trial"] for line in record.of(TRIAL, name, last.number)]
        assert sorted(numbers) == list(range(task.trials)), name
        assert [trial["settings"] for trial in last.trials] == last.points, name
        assert not last.edges or last.number == plan.WIDENINGS, name
        seeds = [line["seed"] for line in record.of(COUNT, name)]
        assert sorted(seeds) == record.header["fresh_seeds"], name
        assert not set(seeds) & set(task.tuning_seeds), name


@pytest.mark.parametrize("path", sorted(LOGS.glob("*.jsonl")), ids=lambda path: path.stem)
def test_the_winner_is_at_no_edge(path):
    record = read(path)
    task = task_of(record)
    rounds = [plan.last_round(record, task, name) for name in record.optimizers]
    winner = min(rounds, key=lambda one: plan.rank(task, one.best))
    assert winner.edges == {}, winner.optimizer
