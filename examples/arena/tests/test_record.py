import dataclasses
import json

import pytest

from arena.record import ANEW, COUNT, TRIAL, Log, LogError, read


def test_the_first_line_has_all_that_decides(finished):
    header = json.loads(finished.read_text().splitlines()[0])
    assert header["task"]["target"] == 0.01
    assert header["fresh_seeds"] == [100, 101, 102]
    assert header["ranges"]["sgd"] == [{"name": "lr", "low": 0.001, "high": 1.0, "log": True}]
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
    assert json.loads(path.read_text().splitlines()[-1]) == {"kind": ANEW, "optimizer": "sgd"}


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
