"""Data checks: the pages are those of the committed logs, and the logs say what the pages say.

Only one test here runs code of the library; the others read logs again.
"""

import dataclasses
import json
import re

import chex
import jax
import numpy as np
import optax
import pytest

from egd_optax import matching
from grokking import claims, pages, session
from grokking.experiments import LOGS, PAPER
from grokking.log import read_runs
from grokking.outcomes import epoch_times, outcomes
from grokking.questions import EXPERIMENTS
from grokking.toy_experiment import read_toy, slope, worst_gap
from grokking.training import Program, train


def test_pages_and_figures_are_made_from_the_logs_alone(tmp_path, monkeypatch):
    """Every number of docs/grokking comes from a log in the repository, without any training."""
    monkeypatch.setattr(session, "train", lambda *_: pytest.fail("training was started"))
    pages.render(tmp_path)
    made, kept = (
        {path.name: path.read_text() for path in (folder / "grokking").glob("*.md")}
        for folder in (tmp_path, pages.DOCS)
    )
    assert made == kept, "run `make pages`"
    assert all("made: by `make pages`, from examples/grokking/" in page for page in made.values())
    figures = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.png")}
    links = {name for page in made.values() for name in re.findall(r"\]\((\S+\.png)\)", page)}
    assert {path.name for path in figures} == links
    assert all(b"make pages" in (tmp_path / path).read_bytes() for path in figures)


def test_every_row_has_its_runs_with_the_settings_of_the_table():
    for name, experiment in EXPERIMENTS.items():
        for row in experiment.rows:
            found = {run.name: run.config for run in outcomes(name)[row.name].runs}
            assert found == row.runs(), (name, row.name)


def test_every_run_says_where_it_comes_from():
    for log in sorted({experiment.log() for experiment in EXPERIMENTS.values()}):
        for run in read_runs(log):
            assert run.finished
            assert {"config", "seed", "versions", "hardware", "started"} <= set(run.header)
            assert run.header["seed"] == run.config.seed
    timing = json.loads((LOGS / "timing.jsonl").read_text().splitlines()[0])
    assert {"versions", "hardware", "started"} <= set(timing)


@pytest.mark.parametrize("table", ["T2", "T3"])
def test_modular_epochs_are_within_a_quarter_of_the_papers(table):
    found = outcomes(table).values()
    assert len(found) == 15
    off = {one.row.label: one.median / one.published for one in found}
    assert all(0.75 < ratio < 1.25 for ratio in off.values()), off
    assert min(claims.speedups(table)) >= 40


@pytest.mark.parametrize("row", ["k4-egd_rsvd30", "k2-egd_rsvd40"])
def test_parity_sketches_are_no_more_than_a_quarter_slower_than_the_papers(row):
    outcome = outcomes("T4")[row]
    assert outcome.median <= 1.25 * outcome.published


def test_toy_theory_and_simulation_agree():
    log = read_toy(claims.TOY)
    equal = claims.equal_sets(log)
    assert {curve.train_size for curve in equal.curves} == {0, 100_000}
    assert max(worst_gap(log), worst_gap(equal)) < 0.02
    assert 0.9 < slope(log, 0.5, "simulation", "gd") < 1.1
    assert abs(slope(log, 0.5, "simulation", "equalized")) < 0.02


def test_transformer_gets_there_within_2500_steps():
    for row in ("egd", "egd-between", "grokfast_ema", "grokfast_ma", "adam-decay"):
        assert max(outcomes("T7")[row].reached) <= 2_500


def test_mnist_steps_are_within_a_quarter_of_the_papers_if_adamw_has_grokfasts_decay():
    found = outcomes("T6")
    ratios = {name: one.median / one.published for name, one in found.items() if one.published}
    assert len(ratios) == 6
    assert all(0.75 < ratio < 1.25 for ratio in ratios.values()), ratios
    assert found["adamw"].median < 0.1 * found["adamw-0.01"].median
    for method in ("egd", "egd_rsvd16", "egd_rsvd8", "egd_rsvd4"):
        assert found[method].median < 0.5 * found["adamw"].median


def test_an_epoch_after_the_switch_costs_an_epoch_of_sgd():
    for p in (79, 97, 127):
        assert epoch_times()[f"after/p{p}-egd_svd"] <= 1.1 * epoch_times()[f"T2/p{p}-sgd"]


@pytest.mark.parametrize("seed", range(3))
def test_one_seed_gives_one_log_whichever_process_wrote_it(seed):
    """Three experiments ran these settings, hours apart: equal but for times and the cap."""
    rows = (("T2", "p97-egd_svd"), ("floor", "relative"), ("methods", "svd"))
    histories = [outcomes(table)[row].runs[seed].epochs for table, row in rows]
    timeless = [[dataclasses.replace(e, seconds=0.0) for e in history] for history in histories]
    assert timeless[0] == timeless[1] == timeless[2]


@pytest.mark.slow
def test_column_normalization_is_a_hundredfold_learning_rate_in_modular_arithmetic():
    """Its floor of .01 lies above the norm of every column, in every step of the first epochs."""
    paper = PAPER["addition-97"]
    program = Program(paper.changed(optimizer="column_norm", measure_every=3))
    state, split = program.start()
    one, _ = jax.jit(program.advance)(state, split)
    program.optimizer = optax.with_extra_args_support(
        optax.chain(
            optax.add_decayed_weights(1e-4),
            optax.masked(optax.scale(100.0), matching("^hidden/kernel$")),
            optax.sgd(0.7),
        )
    )
    start, _ = program.start()
    other, _ = jax.jit(program.advance)(start, split)
    # Round-off differs between G / .01 and 100 G, and grows over the steps.
    chex.assert_trees_all_close(one.params, other.params, rtol=0, atol=1e-4)
    moved = jax.tree.map(lambda a, b: float(abs(a - b).max()), one.params, state.params)
    assert moved["hidden"]["kernel"] > 0.1


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """Override the others': long runs take all optimizations."""


@pytest.mark.parametrize(
    "row",
    [
        "T4/k4-egd_svd",
        *(
            pytest.param(row, marks=pytest.mark.slow)
            for row in (
                "T2/p79-egd_rsvd64",
                "T4/k4-sgd",
                "T4/k4-column_norm",
                "T6/adamw",
                "T6/grokfast",
                "T6/muon",
                "T7/grokfast_ma",
                "T8/1-radam-egd",
                "T8/4-rmsprop-plain",
                "length/scaled-0.7",
                "methods/blend400",
                "parity-seeds/k4-egd-average",
            )
        ),
    ],
)
def test_settings_still_give_the_numbers_of_the_logs(row, optax_promotes):
    """A setting that got lost on the way would show in the first measurement."""
    table, name = row.split("/")
    outcome = outcomes(table)[name]
    program = Program(outcome.row.config)
    _, metrics = jax.jit(program.advance)(*program.start())
    logged = outcome.runs[0].epochs[0]
    # Round-off moves these by 2e-4 at most, a learning rate off by a tenth by 2e-3 at least.
    np.testing.assert_allclose(metrics["train_loss"], logged.train_loss, rtol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_papers_setting_groks_addition(seed):
    paper = PAPER["addition-97"].changed(seed=seed, epochs=160)
    assert 95 <= train(paper).epochs_to_target <= 140
    both = train(paper.changed(matrices="all", method="auto", switch_off=None, epochs=20))
    assert both.epochs_to_target <= 14
    assert train(paper.changed(optimizer="plain", epochs=140)).test_accuracy < 0.2
