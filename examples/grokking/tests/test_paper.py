"""The experiments' table: complete, and resumable after anything."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from common.files import locked

from grokking import paper
from grokking.experiments import Experiment, Row, published
from grokking.log import LogError, append, read_runs
from grokking.outcomes import Outcome, finished_runs
from grokking.questions import EXPERIMENTS
from grokking.session import train_logged
from grokking.tables import spread

PATHS = [str(Path(__file__).parents[2]), str(Path(__file__).parents[3])]
pytestmark = pytest.mark.usefixtures("untrained")


def table(tiny, *epochs):
    rows = [Row(f"{count}", f"{count}", tiny.changed(epochs=count), 1) for count in epochs]
    return Experiment("tiny", "Tiny", tuple(rows))


def jobs(experiment, logs):
    return list(paper.jobs([experiment], logs))


def test_names_of_rows_tell_their_runs_apart():
    for experiment in EXPERIMENTS.values():
        configs = {row.name: str(row.config) for row in experiment.rows}
        assert len(configs) == len(experiment.rows) == len(set(configs.values()))


def test_every_figure_of_the_papers_modular_and_parity_tables_has_its_row():
    rows = {
        (experiment.name, *row.published)
        for experiment in EXPERIMENTS.values()
        for row in experiment.rows
        if row.published
    }
    wanted = {key for key in published() if key[0] in ("T2", "T3", "T4")}
    assert wanted <= rows <= set(published())
    assert len(wanted) == 50


def test_a_finished_run_is_added_to_its_table_and_not_done_again(tiny, tmp_path):
    first, second = jobs(table(tiny, 3, 4), tmp_path)
    assert paper.run(first) == "done"
    assert not first.part.exists()
    assert list(finished_runs(tmp_path / "tiny.jsonl")) == ["3-seed0"]
    assert jobs(table(tiny, 3, 4), tmp_path) == [second]


RUNNER = """
import sys
sys.path[:0] = {paths!r}
from pathlib import Path
from grokking import paper
from grokking.config import Config
from grokking.experiments import Experiment, Row
import json
config = Config.from_dict(json.loads({config!r}))
rows = (Row("a", "a", config, 1), Row("b", "b", config, 1))
todo = list(paper.jobs([Experiment("tiny", "", rows)], Path({logs!r})))
if __name__ == "__main__":
    {call}
"""


def start(logs, config, call):
    """Start a process that does the two runs of a table."""
    text = json.dumps(config.to_dict())
    program = logs.parent / "program.py"  # a file, for spawned processes import it
    program.write_text(RUNNER.format(paths=PATHS, config=text, logs=str(logs), call=call))
    return subprocess.Popen([sys.executable, program], stderr=subprocess.DEVNULL)


def kill_in(process, part, lines):
    """Kill a process when a run's own file has some lines."""
    deadline = time.monotonic() + 300
    while not (part.exists() and part.read_text().count("\n") > lines):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()


@pytest.mark.slow
def test_a_run_that_was_killed_is_kept_and_done_again(tiny, tmp_path):
    logs = tmp_path / "logs"
    config = tiny.changed(epochs=1_000, target=None)
    part = logs / "parts" / "tiny" / "b-seed0.part"
    kill_in(start(logs, config, "paper.run(todo[0]); paper.run(todo[1])"), part, 20)
    before = (logs / "tiny.jsonl").read_bytes()
    experiment = Experiment("tiny", "", tuple(Row(n, n, config, 1) for n in "ab"))
    (job,) = jobs(experiment, logs)
    assert job.name == "b-seed0"
    assert paper.run(job) == "done"
    assert (logs / "tiny.jsonl").read_bytes().startswith(before)
    assert list(finished_runs(logs / "tiny.jsonl")) == ["a-seed0", "b-seed0"]
    assert [path.name for path in part.parent.iterdir()] == ["b-seed0.unfinished"]


@pytest.mark.slow
def test_two_workers_and_a_killed_parent(tiny, tmp_path):
    """Both workers notice that they are alone, and the same command finishes the table."""
    logs = tmp_path / "logs"
    config = tiny.changed(epochs=10_000, target=None)
    part = logs / "parts" / "tiny" / "b-seed0.part"
    kill_in(start(logs, config, "paper.run_all(todo, 2)"), part, 20)
    time.sleep(1.0)
    size = part.stat().st_size
    time.sleep(1.0)
    assert part.stat().st_size == size
    assert start(logs, config, "assert not paper.run_all(todo, 2)").wait(timeout=300) == 0
    assert sorted(finished_runs(logs / "tiny.jsonl")) == ["a-seed0", "b-seed0"]


def test_a_run_that_ended_just_before_a_crash_is_not_done_again(tiny, tmp_path):
    (job,) = jobs(table(tiny, 3), tmp_path)
    train_logged(job.part, job.name, job.config, bar=False)
    (again,) = jobs(table(tiny, 3), tmp_path)
    assert paper.run(again) == "done before"
    assert not jobs(table(tiny, 3), tmp_path)


def test_a_cut_off_run_in_a_table_is_reported_and_done_again(tiny, tmp_path, capsys):
    (job,) = jobs(table(tiny, 3), tmp_path)
    paper.run(job)
    job.log.write_text(cut := job.log.read_text()[:-30])
    (again,) = jobs(table(tiny, 3), tmp_path)
    assert "3-seed0 stops after epoch 3 without saying why; it is run" in capsys.readouterr().out
    paper.run(again)
    assert job.log.read_text().startswith(cut)
    assert not jobs(table(tiny, 3), tmp_path)


def test_a_run_that_diverges_is_not_done_again(tiny, tmp_path):
    wild = table(tiny.changed(learning_rate=1e30), 3)
    (job,) = jobs(wild, tmp_path)
    assert paper.run(job) == "diverged"
    assert not jobs(wild, tmp_path)


def test_a_finished_run_with_other_settings_is_refused(tiny, tmp_path):
    (job,) = jobs(table(tiny.changed(width=8), 3), tmp_path)
    paper.run(job)
    with pytest.raises(LogError, match=r"3-seed0 in .*tiny.jsonl has others; move it away"):
        jobs(table(tiny, 3), tmp_path)


def test_what_is_missing_is_said_before_anything_runs(tiny, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(paper, "EXPERIMENTS", {"tiny": table(tiny, 3, 4)})
    monkeypatch.setattr(paper, "run_all", lambda *_: pytest.fail("training was started"))
    assert paper.run_missing(("tiny",), 2, tmp_path, dry_run=True) == []
    assert "2 to do, about 1 minutes" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_other_logs_are_made_whole_or_not_at_all(tmp_path, monkeypatch):
    def half(path):
        path.write_text("half")
        raise RuntimeError("stopped")

    monkeypatch.setitem(paper.OTHERS, "toy", (half, 1.0))
    with pytest.raises(RuntimeError):
        paper.run_missing(("toy",), 1, tmp_path, dry_run=False)
    assert not (tmp_path / "toy.jsonl").exists()
    monkeypatch.setitem(paper.OTHERS, "toy", (lambda path: path.write_text("whole"), 1.0))
    paper.run_missing(("toy",), 1, tmp_path, dry_run=False)
    assert (tmp_path / "toy.jsonl").read_text() == "whole"


def test_one_command_at_a_time(tmp_path):
    (tmp_path / "parts").mkdir()
    with locked(tmp_path / "parts"), pytest.raises(BlockingIOError, match=r"another writes to"):
        paper.run_missing(("toy",), 1, tmp_path, dry_run=False)
    assert not (tmp_path / "toy.jsonl").exists()


def test_outcomes_count_runs_that_never_got_there(tiny, tmp_path):
    """Two seeds, each with a target of its own, one below the accuracy; three steps an epoch."""
    part, log = tmp_path / "part", tmp_path / "tiny.jsonl"
    for seed, target in ((0, 1.0), (1, 0.1)):
        train_logged(part, f"a-seed{seed}", tiny.changed(seed=seed, target=target), bar=False)
        append(log, part)
    row = Row("a", "a", tiny, 2)
    outcome = Outcome(Experiment("tiny", "Tiny", (row,), "steps"), row, tuple(read_runs(log)))
    assert outcome.reached == [float("inf"), 3]
    assert spread(outcome) == "> 9 (3 to > 9)"
