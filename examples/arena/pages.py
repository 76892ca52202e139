"""The pages of docs/arena from their templates, with tables and figures made from the logs."""

import functools
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from common.pages import templates
from grokking.tasks import OPERATIONS
from tabulate import tabulate

from arena import aims, borrow, demo, tables, why
from arena.contract import Task
from arena.figures import draw, draw_batches, draw_course, draw_less
from arena.recipes import optimizers as RECIPES
from arena.record import Record, read
from arena.results import is_finished, rows, task_of, tuner_of
from arena.session import range_of
from arena.space import EMA, spread

HERE = Path(__file__).resolve().parent
DOCS = HERE.parents[1] / "docs"
LUCK = "parity-3"  # the task that was tuned again and again
TUNERS = {
    6: "{first} spread over all ranges, then one after the other where a Gaussian process expects\n"
    "most. The seeds from {seed} on count",
    5: "{first} spread over all ranges, then one after the other where a Gaussian process expects\n"
    "most, by a tuner that graded misses more roughly. The seeds from {seed} on count",
    4: "{first} spread over all ranges, then one after the other where a Gaussian process expects\n"
    "most, by an earlier tuner, without the average of the weights. The seeds from {seed} on count",
    2: "{first} spread over all ranges, then one after the other where a Gaussian process expects\n"
    "most; if the best was at an edge, as many again in a range wider by a decade, by an earlier\n"
    "tuner. The seeds from {seed} on count, and had been seen with one before it",
    1: "{first} spread over all ranges, then six times some around the best so far, in ranges\n"
    "narrower by 1.5 each time, by an earlier tuner. The seeds from {seed} on count",
}
SOURCE = """---
made: by `python examples/arena pages`, from examples/arena/templates/{name} and examples/arena/logs
---
"""


def render(docs: Path, logs: Path) -> str:
    """Write `docs`/arena: a page and a figure a finished log, an index; and figures/demo.png.

    Returns:
        A line that says where.

    Raises:
        ValueError: no log is finished.
    """
    paths = sorted(logs.glob("*.jsonl"))
    records = [record for record in map(read, paths) if is_finished(record)]
    if not records:
        raise ValueError(f"no finished logs yet in {logs}; `run` makes them")
    folder = docs / "arena"
    folder.mkdir(parents=True, exist_ok=True)
    records.sort(key=lambda record: _place(record.header["task"]["name"]))
    titles = {one.name: one.title for one in (*_known("optimizers").values(), *RECIPES)}
    _write(folder, "index.md", "index.md", _overall(records, titles, logs))
    for record in records:
        name = record.header["task"]["name"]
        own = (HERE / "templates" / f"{name}.md").exists()
        template = f"{name}.md" if own else "task.md"
        _write(folder, f"{name}.md", template, _of_task(record, titles, folder, logs))
    if sizes := _by_size(logs):
        _write(folder, "batches.md", "batches.md", _of_batches(sizes, titles, folder))
    if (log := logs / "why" / f"{demo.TASK}.jsonl").exists():
        found = why.Found(read(log))
        if found.is_finished:
            _write(folder, "why.md", "why.md", _of_why(found, titles, folder))
    if (log := demo.log_of(logs)).exists():
        (docs / "figures").mkdir(exist_ok=True)
        demo.draw(read(log).lines, docs / "figures" / "demo.png")
    return f"written: {folder}"


def _overall(records: Sequence[Record], titles: dict[str, str], logs: Path) -> dict[str, Any]:
    """Return what the index may use."""

    def task_list() -> str:
        tasks = [
            task_of(record) for record in records if record.header["task"]["name"] != "recipes"
        ]
        return "\n".join(f"- [{task.title}]({task.name}.md)" for task in tasks)

    known = _known("tasks")
    compared = {name: one for one in records if (name := one.header["task"]["name"]) in known}
    everybody = set(_known("optimizers"))
    by_all = [one for one in compared.values() if everybody <= set(one.optimizers)]
    modular = [one for name, one in compared.items() if name.split("-")[0] in OPERATIONS]
    before = _before(LUCK, logs)

    def luck_table() -> str | None:
        if not before or LUCK not in compared:
            return None
        return tables.luck_table([*before, compared[LUCK]], titles)

    def as_before(name: str) -> str:
        others = [one for one in by_all if one is not compared[LUCK]]
        found = [tables.ratios([*others, one], (name,))[name] for one in before]
        return f"{', '.join(found[:-1])} and {found[-1]}"

    def borrowed_table() -> str | None:
        path = borrow.log_of(logs)
        if not path.exists():
            return None
        return tables.borrowed_table(borrow.tables_of(logs), read(path).lines, titles)

    def still_behind() -> str:
        lines = read(borrow.log_of(logs)).lines
        return " and ".join(tables.still_behind(borrow.tables_of(logs), lines))

    return {
        "steps": functools.partial(_steps, compared),
        "still_behind": still_behind,
        "by_size": lambda: bool(_by_size(logs)),
        "lent": functools.partial(_lent, compared, logs),
        "luck_table": luck_table,
        "borrowed_table": borrowed_table,
        "modular_count": lambda: len(modular),
        "modular": lambda: tables.ratios(modular, ("egd", "muon")),
        "as_before": as_before,
        "first_fresh_seed": Task.first_fresh_seed,
        "hold": Task.hold,
        "overall_table": functools.partial(tables.overall_table, by_all, titles),
        "task_list": task_list,
        "task_count": lambda: len(by_all),
        "aims_table": functools.partial(aims.aims_table, [*compared.values()], titles),
        "beside_peers": functools.partial(aims.beside_peers, [*compared.values()], titles),
        "peers": lambda: tables.peers(_known("optimizers").values()),
    }


def _steps(records: dict[str, Record], task: str, name: str) -> str:
    """Return an optimizer's median steps on a task, as a page tells them."""
    found = rows(records[task]) if task in records else []
    return next((tables.median_of(row) for row in found if row.optimizer == name), "no")


def _lent(records: dict[str, Record], logs: Path, task: str, lender: str) -> str:
    """Return EGD's median steps on a task at another's best settings."""
    path = borrow.log_of(logs)
    if task not in records or not path.exists():
        return "no"
    return tables.median_of(borrow.row(records[task], read(path).lines, lender))


def _by_size(logs: Path) -> list[Record]:
    """Return the logs of batch sizes that were tuned alone, if there are several, all finished."""
    found = [read(path) for path in (logs / "batches").glob("*.jsonl")]
    whole = len(found) > 1 and all(map(is_finished, found))
    return sorted(found, key=lambda record: task_of(record).batches) if whole else []


def _before(task: str, logs: Path) -> list[Record]:
    """Return the logs of a task by earlier tuners, the first one first."""
    return [read(path) for path in sorted((logs / "before").glob(f"{task}-*.jsonl"))]


def _of_task(record: Record, titles: dict[str, str], folder: Path, logs: Path) -> dict[str, Any]:
    """Return what a task's page may use; its figure is drawn into `folder`."""
    task = task_of(record)

    def seen() -> bool:
        seeds = record.header["fresh_seeds"]
        return any(one.header["fresh_seeds"] == seeds for one in _before(task.name, logs))

    def figure() -> str:
        draw(record, titles, folder / f"{task.name}.png")
        alt = f"{task.title}: steps of the best after so many trials, and by batch size"
        return f"![{alt}]({task.name}.png)"

    def ranges() -> str:
        found = [
            (titles.get(row.optimizer, row.optimizer), ", ".join(map(range_of, row.last.knobs)))
            for row in rows(record)
        ]
        return tabulate(found, ("optimizer", "ranges"), tablefmt="github", disable_numparse=True)

    first = record.header["fresh_seeds"][0]
    functions: dict[str, Callable[..., Any]] = {
        "note": lambda: _known("tasks").get(task.name, task).note,
        "some": lambda: not set(_known("optimizers")) <= set(record.optimizers),
        "goal": lambda: f"{'at most' if task.lower else 'at least'} {task.target:g}",
        "steps": lambda every: "step" if every == 1 else f"{every} steps",
        "seeds": lambda: _named(task.tuning_seeds),
        "seen": seen,
        "averaged": lambda: any(EMA.name in row.last.best["settings"] for row in rows(record)),
        "tuner": lambda: TUNERS[tuner_of(record)].format(first=spread(task.trials), seed=first),
        "batches": lambda: ", ".join(map(str, task.batches)),
        "table": lambda: tables.task_table(record, titles),
        "median": lambda name: _steps({task.name: record}, task.name, name),
        "pairs": lambda: tables.pairs_table(record, titles),
        "settings": lambda: tables.settings_table(record, titles),
        "figure": figure,
        "source": lambda name: (HERE / name).read_text(encoding="utf-8").rstrip(),
        "ranges": ranges,
    }
    return {"task": task, **functions}


def _of_batches(records: Sequence[Record], titles: dict[str, str], folder: Path) -> dict[str, Any]:
    """Return what the page on batch sizes may use; its figure is drawn into `folder`."""

    def figure() -> str:
        draw_batches(records, titles, folder / "batches.png")
        return "![Median steps to the target against the batch size](batches.png)"

    return {
        "task": task_of(records[0]),
        "sizes": records,
        "figure": figure,
        "table": lambda: tables.batches_table(records, titles),
    }


def _of_why(found: why.Found, titles: dict[str, str], folder: Path) -> dict[str, Any]:
    """Return what the page of reasons may use; its figures are drawn into `folder`."""
    norms = [found.at_target(name, "norm") for name in found.names]
    steps = [found.reached(name) for name in found.names]
    firsts = [found.course(name, "norm")[0] for name in found.names]
    shares = [first / last for first, last in zip(firsts, norms, strict=True)]

    def course_figure() -> str:
        draw_course(found.courses, titles, folder / "why-course.png")
        return "![Score, norm and rank of the matrices against steps](why-course.png)"

    def less_figure() -> str:
        draw_less(found.less, titles, found.budget, folder / "why-less.png")
        return "![Steps to the target against the share of the table](why-less.png)"

    return {
        "seeds": lambda: len(found.seeds),
        "budget": lambda: found.budget,
        "share_least": lambda: f"{min(shares):.2f}",
        "share_most": lambda: f"{max(shares):.2f}",
        "norm_least": lambda: f"{min(norms):.0f}",
        "norm_most": lambda: f"{max(norms):.0f}",
        "seeds_at": lambda name: found.steps(name, 0.2)[1],
        "step_spread": lambda: f"a factor of {max(steps) / min(steps):.1f}",
        "scaled_steps": lambda: found.reached("scaled"),
        "egd_steps": lambda: found.reached("egd"),
        "course_table": lambda: tables.course_table(found, titles),
        "less_table": lambda: tables.less_table(found, titles),
        "course_figure": course_figure,
        "less_figure": less_figure,
    }


def _named(seeds: Sequence[int]) -> str:
    return f"seed {seeds[0]}" if len(seeds) == 1 else f"the seeds {' and '.join(map(str, seeds))}"


def _write(folder: Path, page: str, template: str, names: dict[str, Any]) -> None:
    environment = templates(HERE / "templates")
    text = environment.get_template(template).render(names)
    (folder / page).write_text(SOURCE.format(name=template) + text, encoding="utf-8")


def _place(task: str) -> tuple[int, str]:
    """Return what orders tasks as they are listed; a user's own come last."""
    names = list(_known("tasks"))
    return (names.index(task) if task in names else len(names)), task


def _known(module: str) -> dict[str, Any]:
    return getattr(importlib.import_module(f"arena.{module}"), module.upper())
