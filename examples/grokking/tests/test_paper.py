"""The table of experiments: complete, resumable, and its pages made from logs alone."""

import dataclasses
import json
import math
import pathlib
import signal
import subprocess
import sys
import time

import experiments
import numpy as np
import pages
import paper
import pytest
from egd_optax.grokking import Config, ModularArithmetic, session
from egd_optax.grokking.record import LogError, read_log
from of_the_paper import from_folder
from results import Outcome, outcomes

ROOT = pathlib.Path(__file__).parents[1]
TINY = Config(task=ModularArithmetic(p=7), width=16, batch_size=8, epochs=3)


def table(*epochs):
    rows = [
        experiments.Row(f"{count}-sgd", str(count), dataclasses.replace(TINY, epochs=count), 1)
        for count in epochs
    ]
    return {"tiny": experiments.Experiment("tiny", "Tiny", tuple(rows))}


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Return the folder of logs of a table of two short runs, the only one there is."""
    monkeypatch.setattr(paper, "EXPERIMENTS", table(3, 4))
    return tmp_path


def write(folder, row, config):
    path = folder / "tiny" / f"{row}-seed0.jsonl"
    session.train_logged(config, path)
    return path


def test_names_of_rows_tell_their_runs_apart():
    for experiment in experiments.EXPERIMENTS.values():
        configs = {row.name: row.config for row in experiment.rows}
        assert len(configs) == len(experiment.rows)
        assert len(set(map(str, configs.values()))) == len(configs), experiment.name


def test_every_figure_of_the_papers_modular_and_parity_tables_has_its_row():
    rows = {
        (experiment.name, *row.published)
        for experiment in experiments.EXPERIMENTS.values()
        for row in experiment.rows
        if row.published
    }
    wanted = {key for key in experiments.published() if key[0] in ("T2", "T3", "T4")}
    assert wanted <= rows <= set(experiments.published())
    assert len(wanted) == 50


RUNNER = """
import sys
sys.path[:0] = [{examples!r}, {tests!r}]
import experiments, paper, test_paper, pathlib
paper.EXPERIMENTS = test_paper.table(3, 10_000, 4)
paper.main(("tiny",), processes=1, logs=pathlib.Path({logs!r}))
"""


def start(folder):
    code = RUNNER.format(
        examples=str(ROOT / "examples" / "grokking"), tests=str(ROOT / "tests"), logs=str(folder)
    )
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)


def test_a_killed_command_goes_on_where_it_was(tmp_path):
    first, second = (tmp_path / "tiny" / f"{n}-sgd-seed0.jsonl" for n in (3, 10_000))
    running = start(tmp_path)
    deadline = time.monotonic() + 300
    while not (second.exists() and second.read_text().count("\n") > 20):
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    time.sleep(1.0)  # the worker notices that it is alone
    before = first.read_bytes()
    assert not read_log(second).finished
    assert start(tmp_path).wait(timeout=300) == 0
    assert first.read_bytes() == before
    assert all(read_log(path).finished for path in (tmp_path / "tiny").glob("*.jsonl"))
    assert second.with_suffix(".unfinished").exists()


def test_a_cut_off_last_line_is_reported_and_the_run_done_again(tiny, capsys):
    path = write(tiny, "3-sgd", TINY)
    assert [job.label for job in paper.jobs(paper.EXPERIMENTS.values(), tiny)] == [
        "tiny: 4, seed 0"
    ]
    path.write_text(cut := path.read_text()[:-30])
    again, _ = paper.jobs(paper.EXPERIMENTS.values(), tiny)
    assert "the last, is cut off and left out; it is run again" in capsys.readouterr().out
    assert path.read_text() == cut  # asking changes nothing
    assert paper.run(again) == "done"
    assert path.with_suffix(".unfinished").read_text() == cut


def test_a_run_that_diverges_is_not_run_again(tiny, monkeypatch):
    row = paper.EXPERIMENTS["tiny"].rows[0]
    wild = dataclasses.replace(row, config=dataclasses.replace(row.config, learning_rate=1e30))
    monkeypatch.setattr(paper, "EXPERIMENTS", {"tiny": experiments.Experiment("tiny", "", (wild,))})
    (job,) = paper.jobs(paper.EXPERIMENTS.values(), tiny)
    assert paper.run(job) == "diverged"
    assert not list(paper.jobs(paper.EXPERIMENTS.values(), tiny))


def test_a_log_of_another_recipe_is_refused(tiny):
    write(tiny, "3-sgd", dataclasses.replace(TINY, learning_rate=0.1))
    with pytest.raises(LogError, match=r"3-sgd-seed0.jsonl has another recipe; move it away"):
        list(paper.jobs(paper.EXPERIMENTS.values(), tiny))


def test_the_time_is_said_before_anything_runs(tiny, capsys, monkeypatch):
    monkeypatch.setattr(paper, "run_all", lambda *_: pytest.fail("training was started"))
    paper.main(("tiny",), logs=tiny, dry_run=True)
    assert "2 to do, about 1 minutes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ("T99",)}, "(and, with --data, mnist and cifar10); got T99"),
        ({"processes": 0}, "processes must be at least 1, got 0"),
        ({"logs": pathlib.Path(__file__)}, "logs must be a folder"),
        ({"names": ("mnist",), "data": pathlib.Path("nowhere")}, "is not in the folder 'nowhere'"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(tiny, capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(paper, "run_all", lambda *_: pytest.fail("training was started"))
    with pytest.raises(SystemExit) as stop:
        paper.main(**({"logs": tiny} | arguments))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tiny.iterdir())


def test_a_folder_of_mnist_is_trained_on(tiny, optax_promotes):
    """A thousand images in the format of MNIST, through the experiment that a folder adds."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (1_000, 28, 28), dtype=np.uint8)
    labels = (np.arange(1_000) % 10).astype(np.uint8)
    data = tiny / "data"
    data.mkdir()
    np.savez(data / "mnist.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    egd = next(row for row in from_folder(data)["mnist"].rows if row.label == "EGD")
    short = dataclasses.replace(egd.config, epochs=1, measure_every=1)
    result = session.train_logged(short, tiny / "run.jsonl")
    assert math.isfinite(result.history[0].train_loss)
    assert short.steps_per_epoch == 5


def test_outcomes_count_runs_that_never_got_there(tmp_path):
    config = dataclasses.replace(TINY, epochs=4, measure_every=2)
    row = experiments.Row("a", "a", config, 2)
    logs = []
    for seed, target in ((0, 1.0), (1, 0.001)):
        run = dataclasses.replace(config, seed=seed, target=target, method="svd", learning_rate=2.0)
        session.train_logged(run, tmp_path / f"{seed}.jsonl")
        logs.append(read_log(tmp_path / f"{seed}.jsonl"))
    steps = experiments.Experiment("tiny", "Tiny", (row,), unit="steps")
    outcome = Outcome(steps, row, tuple(logs))
    assert outcome.reached[0] == math.inf
    assert outcome.reached[1] in (6, 12)  # three batches an epoch, measured every second epoch
    assert outcome.cap == 12
    assert pages.spread(outcome).startswith("> 12 (")


def test_pages_are_those_of_the_logs(tmp_path, monkeypatch):
    """Every number of docs/grokking comes from a log in the repository, without any training."""
    monkeypatch.setattr(session, "train", lambda *_: pytest.fail("training was started"))
    pages.render(tmp_path)
    made = {path.name: path.read_text() for path in tmp_path.glob("*.md")}
    kept = {path.name: path.read_text() for path in pages.DOCS.glob("*.md")}
    assert made == kept, "run `make pages`"
    figures = {path.name for path in tmp_path.glob("*.png")}
    assert figures == {path.name for path in pages.DOCS.glob("*.png")}


def test_committed_logs_are_finished_and_of_the_recipes_in_the_table():
    for name, experiment in experiments.EXPERIMENTS.items():
        for row in experiment.rows:
            for log in outcomes(name)[row.name].logs:
                expected = dataclasses.replace(row.config, seed=log.config.seed)
                assert log.config == expected, log.path
                assert json.loads(json.dumps(log.recipe))["seed"] == log.config.seed
