"""Logs: what a run leaves behind, whole, cut off, altered, or written by several at once."""

from concurrent.futures import ThreadPoolExecutor

import jax
import pytest

from grokking.log import LogError, Writer, append, read_runs
from grokking.session import train_logged
from grokking.spectra import Spectrum
from grokking.training import TrainingDiverged


@pytest.fixture
def log(finished, tmp_path):
    """Return the log of two runs, a-seed0 and b-seed0."""
    path = tmp_path / "table.jsonl"
    path.write_text(finished + finished.replace("a-seed0", "b-seed0"))
    return path


def test_a_log_holds_settings_epochs_and_result(tiny, tmp_path):
    path = tmp_path / "new" / "folder" / "run.jsonl"
    result = train_logged(path, "a-seed0", tiny, "A", bar=False)
    (run,) = read_runs(path)
    assert (run.name, run.label, run.config) == ("a-seed0", "A", tiny)
    assert [epoch.epoch for epoch in run.epochs] == [1, 2, 3]
    assert run.ending == {"kind": "result", **vars(result)}
    assert run.finished
    assert run.problem is None
    packages = {"python", "egd_optax", "jax", "jaxlib", "optax", "flax", "numpy"}
    assert set(run.header["versions"]) == packages
    assert run.header["hardware"]["platform"] == jax.devices()[0].platform
    assert run.header["seed"] == 0
    assert "started" in run.header


def test_spectra_are_read_back_to_five_digits(tiny, tmp_path):
    spectrum = Spectrum(2, (1.0, 1 / 3), (0.5,), (-1e-9,))
    with Writer(tmp_path / "run.jsonl", "a", tiny) as log:
        log.spectrum(spectrum)
    (run,) = read_runs(tmp_path / "run.jsonl")
    assert run.spectra == (Spectrum(2, (1.0, 0.33333), (0.5,), (-1e-9,)),)


@pytest.mark.parametrize("cut", [-20, -300])
def test_a_run_that_was_cut_off_is_read_and_told(log, cut):
    log.write_text(log.read_text()[:cut])
    whole, cut_off = read_runs(log)
    assert whole.finished
    assert not cut_off.finished
    assert cut_off.problem.startswith("the log of b-seed0 stops after epoch")


def test_a_cut_off_run_may_stand_before_others(log, finished):
    log.write_text(finished[:-20] + "\n" + finished)
    first, second = read_runs(log)
    assert (first.finished, second.finished) == (False, True)


@pytest.mark.parametrize(
    "text", ["", "accuracy\n", "[1]\n{}\n", "1" * 5000, "[" * 100_000, '{"kind": "epoch"}\n']
)
def test_other_files_are_no_logs(tmp_path, text):
    path = tmp_path / "run.jsonl"
    path.write_text(text)
    with pytest.raises(LogError, match=r"holds at least one run|is no line of a log|before one"):
        read_runs(path)


def test_altered_lines_are_errors(log):
    lines = log.read_text().splitlines()
    log.write_text("\n".join([lines[0], lines[1][:-9], *lines[2:]]))
    with pytest.raises(LogError, match=r"line 2 of .*table.jsonl is no line of a log"):
        read_runs(log)
    log.write_text("\n".join([lines[0], lines[1].replace("train_loss", "loss"), *lines[2:]]))
    with pytest.raises(LogError, match=r"the run a-seed0 in .* does not read as one"):
        read_runs(log)
    log.write_text("\n".join([lines[0].replace("label", "title"), *lines[1:]]))
    with pytest.raises(LogError, match=r"its header lacks label"):
        read_runs(log)
    log.write_text(
        "\n".join([lines[0], lines[1].replace('"epoch": 1', '"epoch": "1"'), *lines[2:]])
    )
    with pytest.raises(LogError, match=r"an epoch has numbers alone"):
        read_runs(log)


def test_divergence_and_interruption_are_last_lines(tiny, tmp_path):
    path = tmp_path / "run.jsonl"
    with pytest.raises(TrainingDiverged):
        train_logged(path, "a", tiny.changed(learning_rate=1e30), bar=False)
    with pytest.raises(KeyboardInterrupt), Writer(path, "b", tiny):
        raise KeyboardInterrupt
    diverged, interrupted = read_runs(path)
    assert (diverged.ending["kind"], diverged.diverged, diverged.finished) == ("failed", True, True)
    assert (interrupted.ending["kind"], interrupted.finished) == ("interrupted", False)


def test_runs_that_end_at_once_are_all_added(finished, tmp_path):
    """Eight writers, and a table whose last line was cut off: no line is lost or mixed."""
    table = tmp_path / "table.jsonl"
    table.write_text(finished[:-20])
    parts = [tmp_path / f"{index}.part" for index in range(8)]
    for index, part in enumerate(parts):
        part.write_text(finished.replace("a-seed0", f"b-seed{index}"))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda part: append(table, part), parts))
    cut_off, *runs = read_runs(table)
    assert not cut_off.finished
    assert {run.name for run in runs} == {f"b-seed{index}" for index in range(8)}
    assert all(run.finished for run in runs)
    assert [path.name for path in tmp_path.iterdir()] == ["table.jsonl"]
