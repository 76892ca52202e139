"""The command line: what it writes and prints, what it refuses, how it ends."""

import json
import os
import sys

import jax
import pytest

from grokking import session
from grokking.command_line import COMMANDS, main
from grokking.config import with_changes
from grokking.experiments import PAPER
from grokking.log import Writer, read_runs

TINY = ("--set", "task.p=7", "width=16", "--set", "batch_size=8", "epochs=3")


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def exit_code(*arguments):
    try:
        return main(arguments)
    except SystemExit as error:
        return error.code


def test_train_writes_a_log_and_a_figure_and_prints_a_row(tiny, tmp_path, capsys):
    arguments = ("train", "addition-97", *TINY, "--log", "run.jsonl", "--plot", "run.png")
    assert exit_code(*arguments) == 0
    (run,) = read_runs(tmp_path / "run.jsonl")
    assert run.config == tiny
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("addition-97-seed0", "> 3", "train", "test"))


def test_show_prints_and_draws_several_logs_and_warns(tmp_path, finished, capsys):
    (tmp_path / "one.jsonl").write_text(finished)
    (tmp_path / "two.jsonl").write_text(finished.replace("a-seed0", "b-seed0")[:-20])
    assert exit_code("show", "one.jsonl", "two.jsonl", "--plot", "new/both.png") == 0
    captured = capsys.readouterr()
    assert "b-seed0 (cut off)" in captured.out
    assert "warning: the log of b-seed0 stops after epoch 3" in captured.err
    assert (tmp_path / "new" / "both.png").exists()


@pytest.mark.usefixtures("untrained")
def test_train_without_a_log_takes_a_free_name(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "T2-p79-sgd-seed1.jsonl").touch()
    assert exit_code("train", "T2/p79-sgd", "--seed", "1") == 0
    assert (tmp_path / "runs" / "T2-p79-sgd-seed1-2.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "division-97"], "TABLE/ROW; got 'division-97'"),
        (["train", "T2/p97-sdg"], "TABLE/ROW; got 'T2/p97-sdg'; did you mean T2/p97-sgd?"),
        (["train", "addition-97", "--epochs", "3"], "write --set epochs=3"),
        (["train", "addition-97", "--learning-rate=1e-3"], "--set optimizer.learning_rate=1e-3"),
        (["train", "addition-97", "epochs=3"], "write --set epochs=3"),
        (["train", "addition-97", "--set"], "--set needs a change, got none"),
        (["train", "addition-97", "--seed", "-1"], "seed must be at least 0"),
        (["train", "mnist", "--set", "spectra_at=[0]"], "spectra_at needs"),
        (["train", "addition-97", "--log", "a.png", "--plot", "a.png"], "must not replace a log"),
        (["train", "addition-97", "--log", "file/run.jsonl"], "file cannot be (File exists)"),
        (["train", "addition-97", "--log", "folder"], "the output must be a file"),
        (["train", "addition-97", "--plot", "folder.png"], "the output must be a file"),
        (["train", "addition-97", "--log", "file"], "never overwritten"),
        (["show", "missing"], "can use, and missing is not (No such file or directory); choose"),
        (["show", "missing", "--plot", "new/a.png"], "missing is not (No such"),
        (["show", "folder"], "folder is not (Is a directory)"),
        (["show", "file"], "a log holds at least one run"),
        (["show"], "at least one log"),
        (["paper", "parity"], "got parity; did you mean parity-seeds? none means all"),
        (["pages", "--docs", "file"], "file/grokking is not (Not a directory)"),
        (["paper", "--processes", "0"], "processes must be at least 1, got 0"),
        (["paper", "--logs", "file"], "logs must be a folder"),
        (["train"], "required"),
        (["learn"], "Available subcommands: train, show"),
    ],
)
def test_bad_input_is_refused_before_training(tmp_path, capsys, monkeypatch, arguments, message):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.png").mkdir()
    monkeypatch.setattr(session, "train", lambda *_: pytest.fail("training was started"))
    before = sorted(tmp_path.rglob("*"))
    assert exit_code(*arguments) == 2
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.replace("│", " ").split())
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["epoch=3"], "got 'epoch'; did you mean epochs? the fields are width, init_scale"),
        (["task.q=3"], "got 'task.q'; did you mean task.p?"),
        (["method=svd"], "did you mean optimizer.method?"),
        (["task.k=3"], "got 'task.k'"),  # a field of another task
        (["optimizer.name=plain", "optimizer.rank=3"], "got 'optimizer.rank'"),
        (["seed=3"], "got 'seed=3'; write --seed 3"),
        (["epochs"], "a change is FIELD=VALUE, got 'epochs'"),
        (["epochs=3", "epochs=4"], "a field is set once, got epochs=3 epochs=4"),
        (["epochs=abc"], "epochs must be an integer below 2**31 such as 3; got 'abc'"),
        (["epochs=true"], "got True"),
        (["epochs=3.0"], "got 3.0"),
        ([f"width={2**31}"], f"got {2**31}"),
        (["init_scale=NaN"], "init_scale must be a finite number such as 0.5; got nan"),
        (["target=all"], "target must be a finite number such as 0.5 or null; got 'all'"),
        (["spectra_at=[0,1.5]"], "spectra_at must be a list of integers such as [0,10]"),
        (["optimizer.latched=True"], "optimizer.latched must be true or false; got 'True'"),
        (["task.operation=3"], "task.operation must be text; got 3"),
        (["optimizer.name=[1]"], "optimizer.name must be one of plain, egd"),
        (["optimizer.method=qr"], "method must be one of auto"),
    ],
)
def test_changes_are_refused_with_rule_value_and_remedy(changes, message):
    with pytest.raises(ValueError) as caught:
        with_changes(PAPER["addition-97"], changes)
    assert message in str(caught.value)


def test_changes_reach_the_config():
    changes = ["task.p=79", "spectra_at=[0,5]", "target=null", "optimizer.name=plain"]
    expected = PAPER["addition-79"].changed(optimizer="plain", spectra_at=(0, 5), target=None)
    assert with_changes(PAPER["addition-97"], changes) == expected


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)], ids=" ".join)
def test_help(capsys, command):
    assert exit_code(*command, "--help") == 0
    assert "usage: python examples/grokking" in capsys.readouterr().out


def test_list_names_every_run_and_shows_settings(capsys):
    assert exit_code("list") == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in (*PAPER, "T2/p97-egd_svd", "methods/blend400"))
    assert exit_code("list", "T2/p97-egd_rsvd64") == 0
    assert json.loads(capsys.readouterr().out)["optimizer"]["rank"] == 64


@pytest.mark.usefixtures("untrained")
def test_ctrl_c_leaves_a_readable_log(tmp_path, capsys, monkeypatch):
    write = Writer.epoch

    def interrupt_second(log, epoch):
        write(log, epoch)
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Writer, "epoch", interrupt_second)
    assert exit_code("train", "addition-97", *TINY, "--log", "run.jsonl") == 130
    assert "interrupted; what was logged is kept" in capsys.readouterr().err
    (run,) = read_runs(tmp_path / "run.jsonl")
    assert (len(run.epochs), run.ending) == (2, {"kind": "interrupted"})


@pytest.mark.usefixtures("untrained")
def test_divergence_is_one_line_and_exit_code_1(capsys):
    changes = (*TINY, "optimizer.learning_rate=1e30")
    assert exit_code("train", "addition-97", *changes) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: the loss must stay finite")
    assert error.endswith("the log is kept")


def test_a_run_that_does_not_fit_the_machine_is_one_line_and_exit_code_1(capsys, monkeypatch):
    def train(*_):
        raise jax.errors.JaxRuntimeError("Out of memory\nallocating")

    monkeypatch.setattr(session, "train", train)
    assert exit_code("train", "addition-97") == 1
    error = capsys.readouterr().err
    assert error == (
        "error: the run must fit the machine, and JAX says: Out of memory; lower its sizes\n"
    )


def test_a_reader_that_stops_early_is_no_error(capsys, monkeypatch):
    """As in `list | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout:
        monkeypatch.setattr(sys, "stdout", stdout)
        assert exit_code("list") == 0
    assert capsys.readouterr().err == ""
