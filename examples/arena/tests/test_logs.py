"""What the logs in the repository must show: nobody was tuned more, nobody is at an edge."""

import re

import pytest

from arena import demo, pages, plan
from arena.command_line import LOGS
from arena.record import COUNT, TRIAL, read
from arena.results import is_finished, rows, task_of

FINISHED = [path for path in sorted(LOGS.glob("*.jsonl")) if is_finished(read(path))]


@pytest.mark.parametrize("path", FINISHED, ids=lambda path: path.stem)
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


@pytest.mark.parametrize("path", FINISHED, ids=lambda path: path.stem)
def test_the_winner_is_at_no_edge(path):
    record = read(path)
    task = task_of(record)
    rounds = [plan.last_round(record, task, name) for name in record.optimizers]
    winner = min(rounds, key=lambda one: plan.rank(task, one.best))
    assert winner.edges == {}, winner.optimizer


def test_the_pages_are_those_of_the_logs(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "draw", lambda record, titles, path: path.touch())
    pages.render(tmp_path, LOGS)
    made = {page.name: page.read_text() for page in (tmp_path / "arena").glob("*.md")}
    kept = {page.name: page.read_text() for page in (pages.DOCS / "arena").glob("*.md")}
    assert made == kept, "run `make pages`"
    prose = [line for text in made.values() for line in text.splitlines()]
    assert not [line for line in prose if len(line) > 120 and not re.match(r"\||!\[", line)]


def test_the_readme_says_what_the_logs_say():
    readme = " ".join((pages.DOCS.parent / "README.md").read_text(encoding="utf-8").split())
    medians = {row.optimizer: f"{row.median:g}" for row in rows(read(LOGS / "addition-97.jsonl"))}
    told = (
        "EGD {egd} steps (median of 10 fresh seeds), Muon {muon}, Shampoo {shampoo}, AdamW {adamw}"
    )
    assert told.format(**medians) in readme
    sgd, paper, adamw, egd = (row[1] for row in demo.rows(read(demo.log_of(LOGS)).lines))
    assert sgd == "> 3,600"
    assert (
        f"the paper's EGD at 95 % after {paper}, AdamW tuned after {adamw}, EGD tuned after {egd}"
        in readme
    )
