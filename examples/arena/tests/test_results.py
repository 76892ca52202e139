"""Tables and pages, of a toy and of the logs in the repository."""

import json
import re

import jax
import jax.numpy as jnp
import pytest

from arena import aims, borrow, demo, pages, plan, tables, workers
from arena.command_line import LOGS
from arena.field import TUNER, load
from arena.record import COUNT, TIMES, TRIAL, Log, Record, read
from arena.results import by_batch, duels, is_finished, paired, ratio_to, rows, task_of
from arena.space import EMA, points, spread, traced
from arena.tasks import TASKS
from arena.tests.conftest import TOY, work


def counting(record, name, steps):
    """Return a copy whose runs on fresh seeds took other steps, None for missed."""
    lines = [
        line for line in record.lines if (line["kind"], line.get("optimizer")) != (COUNT, name)
    ]
    copy = Record(record.header)
    number = max(line["round"] for line in lines if line.get("optimizer") == name)
    for seed, one in enumerate(steps, 200):
        line = {"kind": COUNT, "optimizer": name, "round": number, "seed": seed, "steps": one}
        lines.append(line)
    copy.lines = lines
    return copy


@pytest.fixture
def record(finished):
    both = counting(read(finished), "sgd", (20, None, 40))
    return counting(both, "momentum", (10, 12, 50))


def test_a_miss_counts_at_the_budget(record):
    momentum, sgd = rows(record)
    assert (momentum.optimizer, momentum.median, momentum.reached) == ("momentum", 12, 3)
    assert (sgd.optimizer, sgd.median, sgd.reached) == ("sgd", 40, 2)
    assert tables.steps_of(momentum) == "12 (10 to 50)"
    assert tables.steps_of(sgd) == "40 (20 to >60)"
    low, high = sgd.interval
    assert (low, high) == (pytest.approx(0.2077, abs=1e-4), pytest.approx(0.9385, abs=1e-4))
    (missed,) = (r for r in rows(counting(record, "sgd", (None, None, 9))) if r.optimizer == "sgd")
    assert tables.steps_of(missed) == "> 60 (9 to >60)"


def test_ratios_and_wins_are_over_tasks_and_told_as_bounds_where_one_missed(record):
    found = [rows(record), rows(record)]
    assert ratio_to(found, "momentum", "sgd") == (pytest.approx(12 / 40), "", 2)
    assert duels(found, "momentum", "sgd") == (2, 0)
    assert duels(found, "sgd", "momentum") == (0, 2)
    assert duels(found, "sgd", "sgd") == (0, 0)
    missed = rows(counting(record, "sgd", (None, None, 9)))
    assert ratio_to([*found, missed], "momentum", "sgd")[1] == "<"
    assert ratio_to([*found, missed], "sgd", "momentum")[1] == ">"
    both = rows(counting(counting(record, "sgd", (None,)), "momentum", (None,)))
    assert ratio_to([*found, both], "sgd", "momentum") == (
        pytest.approx((40 / 12) ** (2 / 3)),
        "?",
        3,
    )
    assert ratio_to([], "sgd", "momentum")[2] == 0
    half = rows(counting(record, "sgd", (9, None)))
    assert [row.median for row in half] == [12, 60]


def test_aims_are_told_of_tasks_with_egd_and_the_yardstick(record):
    log = read(LOGS / "addition-97.jsonl")
    found = aims.beside_peers([log, record], dict.fromkeys(log.optimizers, "somebody"))
    assert "0.45" in found  # 13 / 29
    assert "somebody, 13 (12 to 13)" in found
    assert "0.35" in found
    assert "somebody, 0.43" in found  # the variant's .41 is no peer's
    assert len(found.splitlines()) == 3


@pytest.mark.parametrize(
    ("ours", "held"),
    [
        ([18] * 10, [True, False, True, True]),
        ([18] * 9 + [None], [False, False, True, True]),  # 18 in the median, but a seed missed
        ([12] * 10, [True, True, True, True]),
        ([19] * 10, [False, False, False, True]),
        ([21] * 10, [False, False, False, False]),
        ([12] * 5 + [None] * 5, [False, False, False, False]),  # the median is a miss
    ],
)
def test_an_aim_is_reached_at_its_number(ours, held):
    log = read(LOGS / "addition-97.jsonl")
    for name, steps in (("adamw", [54] * 10), ("muon", [20] * 10), ("egd", ours)):
        log = counting(log, name, steps)
    table = aims.aims_table([log], {name: name for name in log.optimizers})
    _, _, *lines = table.splitlines()
    found = [line.split("|")[2].strip() for line in lines]
    assert found[:4] == [f"{one:d} of 1" for one in held]
    assert found[5:] == ["-"] * 5  # no parity, no transformer
    few = Record(log.header)
    few.lines = [line for line in log.lines if line.get("optimizer") in ("egd", "adamw")]
    _, _, *lines = aims.aims_table([few], {name: name for name in log.optimizers}).splitlines()
    assert {line.split("|")[2].strip() for line in lines} == {"-"}  # Muon is not there


def test_the_best_is_told_by_batch_and_after_so_many_trials(record):
    tried = [(4, [30, 50]), (16, [20, None]), (4, [10, 20])]  # means 40, 40 (a miss is 60), 15
    record.lines = [line for line in record.lines if line["kind"] != TRIAL]
    record.lines += [
        {
            "kind": TRIAL,
            "optimizer": "sgd",
            "round": 0,
            "trial": trial,
            "settings": {"lr": 0.1, "batch": batch},
            "runs": [{"steps": one, "score": 0.0} for one in steps],
        }
        for trial, (batch, steps) in enumerate(tried)
    ]
    (row,) = rows(record)
    assert [row.last.best_after(count) for count in (1, 2, 3)] == [40, 40, 15]
    assert by_batch(record, "sgd") == {4: 15}  # at 16 one seed missed, or was given up


def test_seeds_are_paired(record):
    momentum, sgd = rows(record)  # 10, 12, 50 and 20, None, 40
    wins, losses, p = paired(momentum, sgd)
    assert (wins, losses, p) == (2, 1, 1.0)
    assert paired(sgd, sgd) == (0, 0, 1.0)
    more = counting(counting(record, "sgd", [30] * 10), "momentum", [20] * 9 + [None])
    momentum, sgd = rows(more)
    wins, losses, p = paired(momentum, sgd)
    assert (wins, losses) == (9, 1)
    assert p == pytest.approx(2 * 11 / 2**10)  # 0 or 1 of 10 coins, two-sided


def test_the_task_of_a_log_is_the_task(record, toy):
    assert task_of(record).batches == toy.task.batches
    assert task_of(record).tuning_seeds == (0, 1)


def test_times_are_of_the_bests_side_by_side(record, toy, monkeypatch):
    monkeypatch.setattr(workers, "COMPILES", 1)
    bests = {row.optimizer: (row.last.best["settings"], 10) for row in rows(record)}
    (line,) = workers.execute(toy, workers.TimeJob(bests, 200))
    assert line["kind"] == TIMES
    assert {len(row["seconds"]) for row in line["rows"].values()} == {5}
    record.add(json.loads(json.dumps(line)))
    for row in rows(record):
        assert 0 < row.seconds < 1
        assert row.compile_seconds > 0


def test_the_demo_runs_with_the_settings_of_its_log():
    for name, entry in demo.entries(demo.tuned_log(LOGS)).items():
        values = traced(entry.knobs, entry.settings)
        params = {"hidden": {"kernel": jnp.ones((4, 3))}, "readout": {"kernel": jnp.ones((3, 2))}}
        transform = entry.make(values, TASKS[demo.TASK], params)
        updates, _ = transform.update(params, transform.init(params), params)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(updates)), name


def test_the_demo_and_the_reasons_have_the_settings_of_the_log():
    record = demo.tuned_log(LOGS)
    bests = {row.optimizer: row.last.best["settings"] for row in rows(record)}
    for line in read(LOGS / "why" / f"{demo.TASK}.jsonl").lines:
        assert line["settings"] == bests[line["optimizer"]]
    lines = read(borrow.log_of(LOGS)).lines
    for table in borrow.tables_of(LOGS):
        for lender in borrow.lenders_of(table):
            seeds = list(borrow.row(table, lines, lender).steps)
            assert seeds == table.header["fresh_seeds"], lender
    entries = demo.entries(record)
    runs = read(demo.log_of(LOGS)).lines
    assert {line["name"]: line["settings"] for line in runs} == {
        name: entry.settings for name, entry in entries.items()
    }


def test_borrowed_runs_go_on_where_they_were(tmp_path):
    path = borrow.log_of(tmp_path)
    with pytest.raises(
        ValueError, match="needs finished tables with egd and one of shampoo, weighted, muon"
    ):
        borrow.run(tmp_path, path)
    path.parent.mkdir()  # so nothing was written
    header, lost, *kept = borrow.log_of(LOGS).read_text().splitlines()
    path.write_text("".join(f"{line}\n" for line in (header, *kept)))
    borrow.run(LOGS, path)
    *before, again = path.read_text().splitlines()
    assert before == [header, *kept]
    lost, again = json.loads(lost), json.loads(again)
    same = ("task", "lender", "settings", "seed")
    assert [again[name] for name in same] == [lost[name] for name in same]
    assert abs(again["steps"] - lost["steps"]) <= 2  # another machine rounds otherwise


def test_pages_have_the_table_the_figure_and_the_ranges(finished, tmp_path):
    with pytest.raises(ValueError, match="no finished logs yet"):
        pages.render(tmp_path, tmp_path)
    pages.render(tmp_path, finished.parent)
    text = (tmp_path / "arena" / "toy.md").read_text()
    assert "SGD" in text
    assert "![A line" in text
    assert "lr 0.001 to" in text
    assert (tmp_path / "arena" / "toy.png").stat().st_size > 10_000
    assert "[A line](toy.md)" in (tmp_path / "arena" / "index.md").read_text()


def test_batch_sizes_tuned_alone_have_a_page(toy, tmp_path, finished):
    logs = tmp_path / "logs"
    (logs / "batches").mkdir(parents=True)
    (logs / "toy.jsonl").write_bytes(finished.read_bytes())
    for size in toy.task.batches:
        field = load(str(TOY), trials=2, batch=size)
        with Log(logs / "batches" / f"{size}.jsonl", field.config()) as log:
            work(log, field)
    pages.render(tmp_path, logs)
    text = (tmp_path / "arena" / "batches.md").read_text()
    assert re.search(r"optimizer +\| 4 +\| 16 ", text)
    assert (tmp_path / "arena" / "batches.png").stat().st_size > 10_000
    assert "(batches.md)" in (tmp_path / "arena" / "index.md").read_text()


TABLES = [*sorted(LOGS.glob("*.jsonl")), *sorted(LOGS.glob("batches/*.jsonl"))]
FINISHED = [path for path in TABLES if is_finished(read(path))]


@pytest.mark.parametrize("path", FINISHED, ids=lambda path: path.stem)
def test_every_optimizer_is_tuned_alike(path):
    record = read(path)
    task = task_of(record)
    for name in record.optimizers:
        last = plan.last_round(record, task, name)
        numbers = [line["trial"] for line in record.of(TRIAL, name, last.number)]
        assert sorted(numbers) == list(range(task.trials)), name
        if record.header.get("tuner") == TUNER:
            first = points(name, last.knobs, task.batches, spread(task.trials))
            assert [one["settings"] for one in last.trials[: len(first)]] == first, name
            assert EMA in last.knobs, name
        seeds = [line["seed"] for line in record.of(COUNT, name)]
        assert sorted(seeds) == record.header["fresh_seeds"], name
        assert not set(seeds) & set(task.tuning_seeds), name


@pytest.mark.parametrize("path", FINISHED, ids=lambda path: path.stem)
def test_the_winner_is_at_no_edge(path):
    winner, *_ = rows(read(path))
    assert winner.last.edges == {}, winner.optimizer


def test_the_pages_are_those_of_the_logs(tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "draw", lambda record, titles, path: path.touch())
    pages.render(tmp_path, LOGS)
    made = {page.name: page.read_text() for page in (tmp_path / "arena").glob("*.md")}
    kept = {page.name: page.read_text() for page in (pages.DOCS / "arena").glob("*.md")}
    assert made == kept, "run `make pages`"
    prose = [line for text in made.values() for line in text.splitlines()]
    assert not [line for line in prose if len(line) > 120 and not re.match(r"\||!\[", line)]


def test_the_readme_says_what_the_logs_say():
    readme = " ".join((pages.DOCS.parent / "README.md").read_text(encoding="utf-8").split())
    medians = {row.optimizer: f"{row.median:g}" for row in rows(read(LOGS / "addition-97.jsonl"))}
    told = (
        "EGD {egd} steps (median of 10 fresh seeds), Muon {muon}, Shampoo {shampoo}, AdamW {adamw}"
    )
    assert told.format(**medians) in readme
    sgd, paper, adamw, egd = (row[1] for row in demo.rows(read(demo.log_of(LOGS)).lines))
    assert sgd == "> 3,600"
    assert (
        f"the paper's EGD at 95 % after {paper}, AdamW tuned after {adamw}, EGD tuned after {egd}"
        in readme
    )
