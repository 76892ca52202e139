"""The whole arena as a user runs it, in processes of its own."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arena import plan
from arena.command_line import main
from arena.field import load
from arena.record import COUNT, TRIAL, Log, read
from arena.space import points
from arena.tests.conftest import TOY, work
from arena.workers import Pool, WorkerFailed

ARENA = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_killed_arena_goes_on_and_runs_nothing_twice(tmp_path, toy, capsys):
    path = tmp_path / "toy.jsonl"
    command = [sys.executable, str(ARENA), "run", str(TOY), "--out", str(tmp_path)]
    process = subprocess.Popen(command, start_new_session=True)
    while process.poll() is None and not (path.exists() and b'"trial"' in path.read_bytes()):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with path.open("ab") as file:
        file.write(b'{"kind": "tri')
    assert main(command[2:]) == 0
    record = read(path)
    for name in toy.optimizers:
        last = plan.last_round(record, toy.task, name)
        assert [trial["trial"] for trial in last.trials] == list(range(toy.task.trials))
        assert sorted(line["seed"] for line in record.of(COUNT, name)) == list(toy.fresh_seeds)
        trials = [(line["round"], line["trial"]) for line in record.of(TRIAL, name)]
        assert len(set(trials)) == len(trials)
    assert set(record.times["rows"]) == {"sgd", "momentum"}
    assert "momentum" in capsys.readouterr().out
    before = path.read_bytes()
    assert main(command[2:]) == 0
    assert path.read_bytes() == before
    assert main(["time", str(TOY), "--out", str(tmp_path)]) == 0
    assert len(path.read_bytes().splitlines()) == len(before.splitlines()) + 1


@pytest.mark.slow
def test_a_worker_that_ends_is_told(tmp_path, toy):
    knobs = toy.optimizers["sgd"].knobs
    (settings,) = points("sgd", knobs, (4,), 1)
    job = plan.Job(TRIAL, "sgd", 0, ((0, settings),), (0, 1))
    with Pool(str(TOY), 1) as pool:
        pool.workers[0]._process.kill()
        pool.workers[0].start(job)
        with pytest.raises(WorkerFailed, match="ended while it had sgd; was"):
            list(pool.results())
    with Pool(str(TOY), 1) as pool:
        pool.workers[0].start(dataclasses.replace(job, optimizer="gone"))
        with pytest.raises(WorkerFailed, match=r"(?s)gone must run .* fails:.*KeyError"):
            list(pool.results())


@pytest.mark.slow
def test_the_example_of_an_own_task_is_learned(tmp_path, capsys):
    own = str(ARENA / "own_task.py")
    options = ["--out", str(tmp_path), "--trials", "3"]
    assert main(["plan", own, "--only", "egd", *options]) == 0
    assert "learning_rate 0.01 to 10 (log)" in capsys.readouterr().out
    assert main(["run", own, "--only", "egd", "--no-times", *options]) == 0
    assert main(["show", "own", *options]) == 0
    assert re.search(r" [1-9]\d* of 10 ", capsys.readouterr().out)


def test_one_batch_size_alone_has_a_log_of_its_own(tmp_path, toy, capsys):
    field = load(str(TOY), trials=2, batch=4)
    with Log(tmp_path / "toy-batch-4.jsonl", field.config()) as log:
        work(log, field)
    trials = [line for name in toy.optimizers for line in log.record.of(TRIAL, name)]
    assert [line["settings"]["batch"] for line in trials] == [4] * 4
    assert main(["show", "toy", "--batch", "4", "--out", str(tmp_path)]) == 0
    assert "momentum" in capsys.readouterr().out
    assert main(["show", str(TOY), "--out", str(tmp_path)]) == 2
    assert "there is no" in capsys.readouterr().err
