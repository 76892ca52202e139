"""The command line: what it writes and prints, what it refuses, how it ends."""

import json

import pytest

from grokking import command_line, session
from grokking.command_line import COMMANDS, main
from grokking.experiments import PAPER
from grokking.log import Writer, read_runs

TINY = ("--set", "task.p=7", "width=16", "batch_size=8", "epochs=3")


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
        (["train", "T2/p98"], "TABLE/ROW; got 'T2/p98'"),
        (["train", "addition-97", "--set", "optimizer.method=qr"], "method must be one of auto"),
        (["train", "addition-97", "--set", "optimizer.rate=1"], "got rate"),
        (["train", "addition-97", "--set", "task.train_fraction=1.5"], "got 1.5"),
        (["train", "addition-97", "--set", "epoch=3"], "do not make a Config"),
        (["train", "addition-97", "--set", "epochs"], "a change is FIELD=VALUE"),
        (["train", "addition-97", "--set", "epochs=many"], "do not make a Config"),
        (["train", "addition-97", "--seed", "-1"], "seed must be at least 0"),
        (["train", "addition-97", "--log", "file/run.jsonl"], "file cannot be (File exists)"),
        (["train", "addition-97", "--log", "folder"], "the output must be a file"),
        (["train", "addition-97", "--plot", "folder.png"], "the output must be a file"),
        (["train", "addition-97", "--log", "file"], "never overwritten"),
        (["show", "file", "--plot", "file"], "must end in .png"),
        (["show", "missing.jsonl"], "missing.jsonl"),
        (["show", "file"], "a log holds at least one run"),
        (["show"], "at least one log"),
        (["demo", "--out", "logs"], "never overwritten"),
        (["demo", "--out", "file"], "file cannot be (File exists)"),
        (["paper", "T99"], "the experiments are T2, T3, T4"),
        (["paper", "--processes", "0"], "processes must be at least 1, got 0"),
        (["paper", "--logs", "file"], "logs must be a folder"),
        (["train"], "required"),
        (["learn"], "Available subcommands: demo, train, show"),
    ],
)
def test_bad_input_is_refused_before_training(tmp_path, capsys, monkeypatch, arguments, message):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "demo.jsonl").touch()
    monkeypatch.setattr(session, "train", lambda *_: pytest.fail("training was started"))
    assert exit_code(*arguments) == 2
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.replace("│", " ").split())
    assert "Traceback" not in captured.err
    assert (tmp_path / "file").read_text() == "precious"


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


@pytest.mark.usefixtures("untrained")
def test_demo_writes_a_log_and_a_figure_into_a_free_folder(tiny, tmp_path, capsys, monkeypatch):
    runs = {"sgd-seed0": ("SGD", tiny.changed(optimizer="plain")), "egd-seed0": ("EGD", tiny)}
    monkeypatch.setattr(command_line, "demo_runs", lambda seed: runs)
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert exit_code("demo") == 0
    folder = tmp_path / "runs" / "demo-2"
    assert sorted(path.name for path in folder.iterdir()) == ["accuracy.png", "demo.jsonl"]
    assert [run.label for run in read_runs(folder / "demo.jsonl")] == ["SGD", "EGD"]
    assert "> 3" in capsys.readouterr().out


def test_the_demo_has_three_runs_of_one_seed():
    runs = session.demo_runs(seed=2)
    assert [config.seed for _, config in runs.values()] == [2, 2, 2]
    assert list(runs) == ["sgd-seed2", "egd-seed2", "egd-both-seed2"]
