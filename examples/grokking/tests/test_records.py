"""What a run leaves behind and how it is asked for: logs, figures and the command line."""

import dataclasses
import io
import subprocess
import sys

import jax
import pytest
from egd_optax.grokking import session
from egd_optax.grokking.__main__ import main
from egd_optax.grokking.config import Config
from egd_optax.grokking.plots import plot_runs
from egd_optax.grokking.recipes import RECIPES
from egd_optax.grokking.record import LogError, RunLog, read_log
from egd_optax.grokking.tasks import ModularArithmetic
from egd_optax.grokking.train import TrainingDiverged
from rich.console import Console

TINY = Config(task=ModularArithmetic(p=7), width=16, batch_size=8, epochs=3)
TINY_FLAGS = ["addition-97", "--task.p", "7", "--width", "16", "--batch-size", "8", "--epochs", "3"]


def change(config=TINY, **fields):
    return dataclasses.replace(config, **fields)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Return the text of a finished run's log."""
    path = tmp_path_factory.mktemp("finished") / "run.jsonl"
    session.train_logged(TINY, path)
    return path.read_text()


@pytest.fixture
def path(finished, tmp_path):
    """Return a path with a finished run's log."""
    path = tmp_path / "run.jsonl"
    path.write_text(finished)
    return path


# Logs


def test_log_holds_the_recipe_the_epochs_and_the_result(tmp_path):
    path = tmp_path / "new" / "folder" / "run.jsonl"
    result = session.train_logged(TINY, path)
    log = read_log(path)
    assert log.config == TINY
    assert log.epochs == result.history
    assert log.ending["kind"] == "result"
    assert log.ending["epochs_to_target"] is result.epochs_to_target is None
    assert log.problems == ()
    assert set(log.recipe["versions"]) >= {"python", "jax", "jaxlib", "optax", "flax", "numpy"}
    assert log.recipe["hardware"]["platform"] == jax.devices()[0].platform
    assert log.recipe["seed"] == 0


def test_a_log_is_never_overwritten(path):
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"never overwritten.*choose another path"):
        session.train_logged(TINY, path)
    assert path.read_bytes() == before


def test_a_cut_off_last_line_is_left_out_and_reported(path, finished):
    path.write_text(finished[:-20])
    log = read_log(path)
    assert len(log.epochs) == 3
    assert log.ending is None
    assert "line 5, the last, is cut off" in log.problems[0]
    path.write_text("".join(finished.splitlines(keepends=True)[:-1]))
    assert "stops after epoch 3 without saying why" in read_log(path).problems[0]


@pytest.mark.parametrize("text", ["", "accuracy\n", "[1]\n{}\n", '{"kind": "epoch"}\n'])
def test_other_files_are_no_logs(tmp_path, text):
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    with pytest.raises(LogError, match=r"log of this package"):
        read_log(path)


def test_an_altered_line_is_an_error(path, finished):
    lines = finished.splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-9], *lines[2:]]))
    with pytest.raises(LogError, match="line 2 of"):
        read_log(path)


def test_divergence_stops_with_a_message_and_keeps_the_log(tmp_path):
    path = tmp_path / "run.jsonl"
    with pytest.raises(TrainingDiverged, match=r"must stay finite.*lower learning_rate"):
        session.train_logged(change(learning_rate=1e30), path)
    assert read_log(path).ending["kind"] == "failed"


def test_figure_is_drawn_from_logs(path, tmp_path):
    plot_runs([read_log(path)] * 2, tmp_path / "new" / "figure.png")
    assert (tmp_path / "new" / "figure.png").read_bytes().startswith(b"\x89PNG")


# Command line


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def exit_code(arguments):
    try:
        return main(arguments)
    except SystemExit as error:
        return error.code


def test_train_plot_and_table(tmp_path, capsys):
    assert exit_code(["train", *TINY_FLAGS, "--log", "run.jsonl", "--plot", "run.png"]) == 0
    assert read_log(tmp_path / "run.jsonl").config == change(method="svd")
    assert (tmp_path / "run.png").exists()
    assert exit_code(["plot", "run.jsonl", "run.jsonl", "--out", "both.png"]) == 0
    assert (tmp_path / "both.png").exists()
    capsys.readouterr()
    assert exit_code(["table", "run.jsonl"]) == 0
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("addition-7-egd", "> 3", "train", "test"))


def test_train_without_a_path_takes_a_free_name(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "addition-7-raw-sgd-seed1.jsonl").touch()
    assert exit_code(["train", *TINY_FLAGS, "--gradient", "raw", "--seed", "1"]) == 0
    names = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert names == ["addition-7-raw-sgd-seed1-2.jsonl", "addition-7-raw-sgd-seed1.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "division-97"], "division-97"),
        (["train", "addition-97", "--method", "qr"], "randomized"),
        (["train", "addition-97", "--method", "randomized", "--rank", "0"], "at least 1, got 0"),
        (["train", "parity-2", "--task.k", "401"], "k=401"),
        (["train", "addition-97", "--task.train-fraction", "1.5"], "1.5"),
        (["train", "addition-97", "--learning-rate", "-1"], "learning_rate must be positive"),
        (["train", "addition-97", "--log", "file/run.jsonl"], "file cannot be (File exists)"),
        (["train", "addition-97", "--log", "folder"], "the output must be a file"),
        (["train", "addition-97", "--plot", "folder.png"], "the output must be a file"),
        (["plot", "file", "--out", "file"], "must end in .png"),
        (["train", "addition-97", "--log", "file"], "never overwritten"),
        (["table", "missing.jsonl"], "missing.jsonl"),
        (["table", "file"], "log of this package"),
        (["plot", "--out", "x.png"], "at least one log"),
        (["table"], "at least one log"),
        (["demo", "--out", "logs"], "logs holds some"),
    ],
)
def test_bad_input_is_refused_before_training(tmp_path, capsys, monkeypatch, arguments, message):
    (tmp_path / "file").write_text("precious")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "run.jsonl").touch()
    monkeypatch.setattr(session, "train", lambda *_: pytest.fail("training was started"))
    assert exit_code(arguments) == 2
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.replace("│", " ").split())
    assert "Traceback" not in captured.err
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.parametrize("command", [[], ["train"], ["train", "parity-2"], ["plot"], ["demo"]])
def test_help(capsys, command):
    assert exit_code([*command, "--help"]) == 0
    assert "usage" in capsys.readouterr().out


def test_list_names_every_recipe(capsys):
    assert exit_code(["list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in RECIPES)


def test_ctrl_c_leaves_a_readable_log(tmp_path, capsys, monkeypatch):
    write = RunLog.epoch

    def interrupt_second(log, epoch):
        write(log, epoch)
        if epoch.epoch == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunLog, "epoch", interrupt_second)
    assert exit_code(["train", *TINY_FLAGS, "--log", "run.jsonl"]) == 130
    assert "interrupted" in capsys.readouterr().err
    log = read_log(tmp_path / "run.jsonl")
    assert (len(log.epochs), log.ending, log.problems) == (2, {"kind": "interrupted"}, ())


def test_divergence_is_one_line_and_exit_code_1(capsys):
    assert exit_code(["train", *TINY_FLAGS, "--learning-rate", "1e30"]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: the loss must stay finite")
    assert error.endswith("the log is kept")


def test_a_cut_off_log_is_warned_of(path, finished, capsys):
    path.write_text(finished[:-20])
    assert exit_code(["table", "run.jsonl"]) == 0
    assert "is cut off" in capsys.readouterr().err


def test_demo_writes_logs_and_figure_and_refuses_to_do_so_twice(tmp_path):
    folder, printed = tmp_path / "demo", io.StringIO()
    runs = {"plain": change(gradient="raw"), "whitened": TINY}
    session.run_demo(folder, runs, Console(file=printed, width=100))
    written = sorted(path.name for path in folder.iterdir())
    assert written == ["accuracy.png", *sorted(f"{run.label}.jsonl" for run in runs.values())]
    assert "> 3" in printed.getvalue()
    assert str(folder / "accuracy.png") in printed.getvalue()
    with pytest.raises(FileExistsError, match="choose another folder with --out"):
        session.run_demo(folder, runs, Console(file=printed))
    assert session.free_folder(folder) == tmp_path / "demo-2"


def test_demo_runs_have_names_of_their_own():
    runs = session.demo_runs(seed=2)
    assert len({config.label for config in runs.values()}) == len(runs) == 3
    assert {config.seed for config in runs.values()} == {2}


def test_importing_the_experiments_draws_nothing():
    code = "import egd_optax.grokking, sys; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
