"""A run that is killed ends with the same bits; a comparison that is stopped goes on."""

import dataclasses
import functools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from arena.plan import probed
from arena.record import COUNT, ROUND, TIMES, TRIAL, LogError, Record, read
from arena.space import BATCH, edges, from_json
from arena.suggest import suggested
from common.files import locked

from language import ablate, compare, pages, race, results
from language.command_line import Ablate, Compare, Time, main
from language.compare import Study, is_hopeless
from language.course import Point, Program
from language.optimizers import OPTIMIZERS
from language.train import END, RESUMED, STEP, DivergedError, Run, train, write
from language.train import read as read_run

LANGUAGE = Path(__file__).resolve().parents[1]
SMALL = ("--layers", "1", "--width", "16", "--heads", "2", "--context", "12", "--batch", "4")
SHORT = ("--size", "tiny", *SMALL)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """As a user's, but what is compiled is kept and compiled quickly."""
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "true",
    }
    return {name: one for name, one in os.environ.items() if name != "XLA_FLAGS"} | cache


def command(folder, corpus, *options):
    train = ["train", *SHORT, "--steps", "100", "--every", "20", "--corpus", corpus]
    return [sys.executable, str(LANGUAGE), *map(str, [*train, "--folder", folder, *options])]


def started(folder, corpus, environment):
    """Start a run, beside which others may start."""
    return subprocess.Popen(
        command(folder, corpus), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finished(process, folder):
    """Return the lines of a run's log when it has ended."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode()
    assert f"figure: {folder / 'loss.png'}" in out.decode()
    return read_run(folder / "log.jsonl")


@pytest.fixture(scope="module")
def whole(folder, environment, tmp_path_factory):
    """Return a run that is not killed, and its folder."""
    path = tmp_path_factory.mktemp("whole") / "run"
    return started(path, folder, environment), path


@pytest.fixture(scope="module")
def expected(whole):
    return functools.cache(lambda: finished(*whole))


def last_checkpoint(run):
    """Return the step of the last checkpoint that is whole."""
    return max((int(one.name) for one in run.glob("steps/*") if one.name.isdigit()), default=0)


def shares():
    """Return where to kill, as shares of the steps: other ones at every run."""
    return [random.uniform(0.05, 0.95) for _ in range(3)]


@pytest.mark.slow
@pytest.mark.parametrize("share", shares(), ids=range(3))
def test_a_killed_run_ends_with_the_same_bits(expected, folder, environment, tmp_path, share):
    path = tmp_path / "run" / "log.jsonl"
    process = started(path.parent, folder, environment)
    while process.poll() is None and last_checkpoint(path.parent) < 80 * share:
        time.sleep(0.002)
    time.sleep(0.03 * (share * 100 % 1))  # while the next one is written, or before
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert read_run(path)[-1]["kind"] == STEP
    lines = finished(started(path.parent, folder, environment), path.parent)
    assert RESUMED in [line["kind"] for line in lines]
    courses = [
        [(line["step"], line["loss"], line["validation"]) for line in log if line["kind"] == STEP]
        for log in (lines, expected())
    ]
    assert courses[0] == courses[1], share
    assert lines[-1] == expected()[-1], share


@pytest.fixture(scope="module")
def study(text, tiny):
    return Study(tiny, text, trials=3, seeds=2)


def untrained(program, values, seed):
    """Return a line as of a run: the loss has its least value inside the ranges of the rates."""
    distance = abs(math.log(values["learning_rate"] / 0.02)) + 0.01 * seed
    score = None if distance > 2 else 1 + float(distance)
    course = {"step": [2, 4, 6], "loss": [3.0, 2.0, 1.0], "validation": [3.0, 2.0, score]}
    ends = {"score": score, "seconds": 1.0, "compile": 1.0, "course": course}
    return {"seed": seed, "steps": None, **ends}


def later_settings(record, name):
    lines = record.of(TRIAL, name)
    return [line["settings"] for line in lines if line["round"] or line["trial"]]


def suggestions(record, name):
    """Return what is suggested before each trial but the first, by all that came before."""
    found, tried = [], []
    for line in record.of(TRIAL, name):
        if tried:
            (told,) = record.of(ROUND, name, line["round"])
            knobs = tuple(map(from_json, told["knobs"]))
            best = min(tried, key=lambda one: one[1])[0]
            sides = edges(knobs, best, [settings for settings, _ in tried])
            beyond = probed(sides, len(tried), told["trials"] - line["trial"])
            found.append(suggested(knobs, tried, len(tried), beyond) | {BATCH: 4})
        score = line["runs"][0]["score"]
        tried.append((line["settings"], math.inf if score is None else score))
    return found


class Stopped(BaseException):
    """As sudden as a kill."""


def test_a_stopped_comparison_goes_on_and_runs_nothing_twice(study, tmp_path, monkeypatch):
    path, left = tmp_path / "compare.jsonl", [7]
    names = ("adamw", "egd")

    def stopping(*arguments):
        left[0] -= 1
        if left[0] < 0:
            raise Stopped
        return untrained(*arguments)

    monkeypatch.setattr(compare, "trial", stopping)
    monkeypatch.setattr(compare, "_program", lambda *_: None)
    with pytest.raises(Stopped):
        compare.run(study, path, names)
    with path.open("ab") as file:
        file.write(b'{"kind": "tri')
    assert len(read(path).lines) > 7
    left[0] = 1000
    record = compare.run(study, path, names)
    for name in names:
        trials = record.of(TRIAL, name)
        found = compare.tuned(record, study.field.task, name)
        numbers = [(line["round"], line["trial"]) for line in trials]
        assert numbers == [(i, j) for i in range(found.last.number + 1) for j in range(3)]
        assert found.complete
        scores = [line["runs"][0]["score"] or math.inf for line in trials]
        assert found.best is trials[scores.index(min(scores))]
        counts = record.of(COUNT, name)
        assert [line["seed"] for line in counts] == [100, 101]
        assert all(line["settings"] == found.best["settings"] for line in counts)
    before = path.read_bytes()
    compare.run(study, path, names)
    assert path.read_bytes() == before
    further = compare.run(study, path, names, rounds=3)
    for name in names:
        one, other = (compare.tuned(log, study.field.task, name) for log in (record, further))
        assert len(other.trials) >= 3 * 3
        assert other.best["runs"][0]["score"] <= one.best["runs"][0]["score"]
        assert [line["seed"] for line in other.counts] == [100, 101]
        assert later_settings(further, name) == suggestions(further, name)
    other = dataclasses.replace(study, config=dataclasses.replace(study.config, width=32))
    with pytest.raises(LogError, match=r"was made with model\.width=16, not 32;"):
        compare.run(other, path)
    assert results.table(record).count("EGD") == 1


def test_a_round_that_is_begun_is_not_finished():
    whole = read(pages.LOGS / "compare.jsonl")
    assert results.is_finished(whole)
    begun = Record(whole.header)
    begun.lines = [*whole.lines, {**whole.of(ROUND, "egd")[-1], "round": 2}]
    assert not results.is_finished(begun)


def test_nobody_was_tuned_in_fewer_rounds_than_egd():
    """Rounds in wider ranges are apart: older logs have one where a best lay at an edge."""
    for name in ("compare.jsonl", pages.SHORT):
        record = read(pages.LOGS / name)
        rounds = {
            name: sum(not line.get("widened") for line in record.of(ROUND, name))
            for name in record.optimizers
        }
        assert min(rounds.values()) == rounds["egd"], rounds


def test_the_yardstick_had_as_many_trials_as_the_shorter_runs():
    """EGD with half of the steps is compared to AdamW with all of them."""
    whole, short = (read(pages.LOGS / name) for name in ("compare.jsonl", pages.SHORT))
    assert len(whole.of(TRIAL, "adamw")) >= len(short.of(TRIAL, "egd"))


def test_a_log_without_steps_is_refused(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"kind": "language"}\n{"kind": "step"}\n')
    with pytest.raises(ValueError, match=r"numbered steps, and .*log\.jsonl has not"):
        read_run(path)


class Diverging:
    """A program whose second look finds no finite loss."""

    recipe = types.SimpleNamespace(axes="nothing is whitened")

    def __init__(self, *_): ...

    def start(self, values, seed):
        return np.zeros(1)

    def compile(self, values, state): ...

    def course(self, values, state, *_):
        yield Point(2, 3.0, 3.0, 1.0, state)
        yield Point(4, math.nan, math.inf, 1.0, state)


def test_a_run_that_diverges_keeps_what_was_logged(text, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("language.train.Program", Diverging)
    run = Run(tmp_path, tiny, "sgd", OPTIMIZERS["sgd"].settings, 0, text)
    with pytest.raises(DivergedError, match=r"finite, .* has nan .* at step 4; lower the"):
        train(run)
    assert [line["step"] for line in read_run(run.log)[1:]] == [2]
    assert last_checkpoint(tmp_path) == 2


def test_a_race_goes_on_after_a_divergence(text, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("language.train.Program", Diverging)
    row = {"seconds": [1.0], "compile": 1.0}
    monkeypatch.setattr(race, "speed", lambda _: {race.PLAIN: row, "sgd": row, "egd": row})
    told = race.run(race.Race(tmp_path, tiny, ("sgd", "egd"), text))
    assert [line.split()[-1] for line in told.splitlines()[2:4]] == ["diverged"] * 2


def test_a_second_command_in_a_folder_is_refused(text, tiny, tmp_path):
    run = Run(tmp_path, tiny, "sgd", OPTIMIZERS["sgd"].settings, 0, text)
    with locked(tmp_path), pytest.raises(BlockingIOError, match=r"one command .* wait for it, or"):
        train(run)
    assert not list(tmp_path.iterdir())


def test_a_damaged_checkpoint_is_named(text, tiny, tmp_path):
    run = Run(tmp_path, tiny, "sgd", OPTIMIZERS["sgd"].settings, 0, text)
    train(run)
    write(run.log, read_run(run.log)[:-2])  # as if it were killed before its end
    for path in (tmp_path / "steps" / "6").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:3])
    with pytest.raises(ValueError, match=r"steps.6 cannot be read .*; delete it to go on"):
        train(run)
    shutil.rmtree(tmp_path / "steps" / "6")
    assert train(run)["kind"] == END


def test_the_repositorys_logs_are_shown_and_not_written(capsys):
    assert main(["show"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("AdamW", ablate.BASE))
    for command in (Compare, Time, Ablate):
        assert pages.LOGS not in (command().out, *command().out.resolve().parents)


def test_the_page_is_made_from_the_committed_logs(tmp_path):
    assert "written" in pages.render(tmp_path, pages.LOGS)
    made, kept = ((folder / "language.md").read_text() for folder in (tmp_path, pages.DOCS))
    assert made == kept, "run `make pages`"


def test_one_program_does_for_all_settings(tiny, text):
    program = Program(tiny, OPTIMIZERS["sgd"], text)
    settings = {"learning_rate": 0.1, "decay": 0.1, "reach": 10.0}
    good = compare.trial(program, compare.values_of("sgd", settings), 0)
    assert good["compile"] > 0
    assert good["course"]["step"] == [2, 4, 6]
    assert good["score"] == pytest.approx(good["course"]["validation"][-1], rel=1e-5)
    lost = compare.trial(program, compare.values_of("sgd", {**settings, "learning_rate": 1e4}), 0)
    assert lost["compile"] == 0
    assert lost["score"] is None
    assert lost["course"]["step"] == [2]


def test_what_is_hopeless(tiny):
    def point(step, validation):
        return Point(step, 1.0, validation, 1.0, None)

    config = dataclasses.replace(tiny, steps=40)  # 2 of them are warm-up
    assert config.warmup == 2
    assert not is_hopeless(point(2, 6.0), config)
    assert is_hopeless(point(4, 5.6), config)
    assert not is_hopeless(point(4, 5.5), config)
    assert is_hopeless(point(2, math.nan), config)


def test_differences_are_on_equal_seeds():
    record = Record({})
    for name, seed, score in (
        (ablate.BASE, 100, 1.0),
        (ablate.BASE, 101, 2.0),
        ("batch 8", 101, 2.5),
    ):
        about = {"kind": COUNT, "optimizer": name, "seed": seed}
        record.add(about | {"score": score, "course": {"step": [9]}})
    row = results.ablation_table(record).splitlines()[-1]
    assert row.split() == ["batch", "8", "2.500", "+0.500", "9", "1"]


@pytest.mark.slow
def test_from_nothing_to_the_page(folder, tmp_path, capsys):
    """All commands in turn, with training; a page is made only from a finished log."""
    own, out = ["--corpus", str(folder)], ["--out", str(tmp_path)]
    assert main(["show", *out]) == 2
    assert "there is no" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no finished comparison"):
        pages.render(tmp_path / "docs", tmp_path)
    fast = [*SHORT, "--steps", "6", "--every", "2", "--trials", "1", "--seeds", "1"]
    assert main(["compare", *fast, *own, *out, "--only", "adamw", "egd"]) == 0
    record = read(tmp_path / "compare.jsonl")
    assert record.header["task"]["corpus"]["sha256"]
    assert len(record.of(COUNT, "egd")[0]["course"]["validation"]) == 3
    assert main(["time", *own, *out]) == 0
    assert {line["kind"] for line in read(tmp_path / "compare.jsonl").lines} >= {TIMES, COUNT}
    changed = ["Muon's five steps", "every 2nd step", "batch 8"]
    assert main(["ablate", *own, *out, "--only", ablate.BASE, *changed]) == 0
    assert main(["show", *out]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("AdamW", "EGD", ablate.BASE, *changed))
    assert main(["pages", "--docs", str(tmp_path / "docs"), *out]) == 0
    page = (tmp_path / "docs" / "language.md").read_text()
    assert "| EGD " in page
    assert f"| {ablate.BASE} " not in page  # that log is not finished
    assert (tmp_path / "docs" / "figures" / "language.png").exists()


@pytest.mark.slow
def test_a_race_times_what_it_trained(folder, tmp_path, capsys):
    """As on a GPU but for the size: scanned, in bfloat16. Done twice, the runs are the same."""
    options = ["--steps", "4", "--every", "2", "--corpus", str(folder), "--dtype", "bfloat16"]
    command = ["race", *SHORT, *options, "--scanned", "True", "--folder", str(tmp_path)]
    assert main(command) == 0
    told = capsys.readouterr().out
    rows = json.loads((tmp_path / "speed.jsonl").read_text().splitlines()[1])["rows"]
    names = ["adamw", "muon", "egd"]
    assert list(rows) == ["gradients alone", *names, "EGD, Muon's five steps"]
    before = {name: read_run(tmp_path / name / "log.jsonl") for name in names}
    for name, lines in before.items():
        assert f"{lines[-1]['validation']:.3f}" in told, name
    assert main(command) == 0
    assert before == {name: read_run(tmp_path / name / "log.jsonl") for name in before}
