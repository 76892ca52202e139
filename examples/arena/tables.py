"""Tables of a log, for the console and for the pages."""

import math
from collections.abc import Iterable, Sequence

from rich.table import Column
from rich.table import Table as ConsoleTable
from tabulate import tabulate

from arena import borrow
from arena.contract import Optimizer
from arena.plan import value
from arena.record import Line, Record
from arena.results import Row, after, duels, paired, ratio_to, rows, task_of, tuner_of
from arena.space import BATCH
from arena.why import Found

NONE = "-"
YARDSTICK = "adamw"
OURS = ("egd", "weighted", "scaled")  # EGD, a variant and a control
TUNERS = {
    1: "in stages",
    3: "Gaussian process",
    4: "and spread until one learns",
    6: "and an average of the weights",
}


def console_table(record: Record) -> ConsoleTable:
    """Return the table of a log, also of one that is not finished; settings are in another."""
    right = ["steps", "examples", "seconds", "reached", "batch", f"tuned after {_after(record)}"]
    columns = [Column(name, justify="right", no_wrap=True) for name in right]
    table = ConsoleTable(Column("optimizer", no_wrap=True), *columns, box=None, pad_edge=False)
    for row in rows(record):
        table.add_row(row.optimizer, *cells_of(row)[:-1])
    return table


def console_settings(record: Record) -> ConsoleTable:
    """Return the best settings of each optimizer."""
    table = ConsoleTable("", "best settings", box=None, pad_edge=False)
    for row in rows(record):
        table.add_row(row.optimizer, cells_of(row)[-1])
    return table


def task_table(record: Record, titles: dict[str, str]) -> str:
    """Return the table of a log in Markdown."""
    task = task_of(record)
    headings = [
        "optimizer",
        "steps, median (range)",
        "examples",
        "seconds without / with compiling",
    ]
    headings += [
        f"reaches {task.target:g} (95 % interval)",
        "batch",
        f"tuned after {_after(record)}",
    ]
    found = [[titles.get(r.optimizer, r.optimizer), *cells_of(r)[:-1]] for r in rows(record)]
    return tabulate(found, headings, tablefmt="github", disable_numparse=True)


def tasks_table(records: Sequence[Record], titles: dict[str, str]) -> str:
    """Return steps and seconds to each task's target, in the order of the first task."""
    found = [{row.optimizer: row for row in rows(record)} for record in records]
    headings, cells = ["optimizer"], [[titles.get(name, name)] for name in found[0]]
    for record, by_name in zip(records, found, strict=True):
        headings += [f"{task_of(record).title}, steps (range)", "seconds without / with compiling"]
        for line, name in zip(cells, found[0], strict=True):
            line += [steps_of(by_name[name]), _seconds(by_name[name])]
    return tabulate(cells, headings, tablefmt="github", disable_numparse=True)


def settings_table(record: Record, titles: dict[str, str]) -> str:
    """Return the best settings of each optimizer in Markdown."""
    found = [(titles.get(r.optimizer, r.optimizer), cells_of(r)[-1]) for r in rows(record)]
    return tabulate(found, ("optimizer", "settings"), tablefmt="github", disable_numparse=True)


def overall_table(records: Sequence[Record], titles: dict[str, str]) -> str:
    """Return ratios to the yardstick over all tasks, and on how many of them it is beaten."""
    by_task = [rows(record) for record in records]
    names = dict.fromkeys(row.optimizer for found in by_task for row in found if row.steps)
    found = {name: ratio_to(by_task, name, YARDSTICK) for name in names}
    table = []
    for name in sorted(names, key=lambda name: found[name][0]):
        *_, tasks = found[name]
        wins, losses = duels(by_task, name, YARDSTICK)
        score = NONE if name == YARDSTICK else f"{wins} : {losses}"
        table.append([titles.get(name, name), ratio_told(*found[name]), tasks, score])
    headings = ["optimizer", "steps / AdamW's", "tasks", "with fewer : more steps than AdamW"]
    return tabulate(table, headings, tablefmt="github", disable_numparse=True)


def ratios(records: Sequence[Record], names: Iterable[str]) -> dict[str, str]:
    """Return some optimizers' ratios to the yardstick over all tasks, as the table tells them."""
    by_task = [rows(record) for record in records]
    return {name: ratio_told(*ratio_to(by_task, name, YARDSTICK)) for name in names}


def pairs_table(record: Record, titles: dict[str, str]) -> str:
    """Return on how many fresh seeds EGD needs fewer steps than another, and more, in Markdown."""
    by_name = {row.optimizer: row for row in rows(record) if row.steps}
    ours = by_name.pop("egd", None)
    if ours is None:
        return ""
    table = []
    for name, row in by_name.items():
        wins, losses, p = paired(ours, row)
        table.append((titles.get(name, name), wins, losses, f"{p:.2g}"))
    headings = ("beside EGD", "EGD needs fewer steps", "more steps", "p of the sign test")
    return tabulate(table, headings, tablefmt="github", disable_numparse=True)


def luck_table(records: Sequence[Record], titles: dict[str, str]) -> str:
    """Return steps and seeds of one task by one tuner after the other, in the last one's order."""
    found = [{row.optimizer: row for row in rows(record)} for record in records]
    table = [
        [titles.get(name, name), *(f"{steps_of(one[name])}; {one[name].reached}" for one in found)]
        for name in found[-1]
    ]
    headings = ["optimizer", *(TUNERS[tuner_of(record)] for record in records)]
    return tabulate(table, headings, tablefmt="github", disable_numparse=True)


def borrowed_table(records: Sequence[Record], lines: Sequence[Line], titles: dict[str, str]) -> str:
    """Return EGD's steps and seeds at its own best settings and at its relatives', in Markdown."""
    table = []
    for record in records:
        found = rows(record)
        own = next(row for row in found if row.optimizer == "egd")
        best = next(row for row in found if row.optimizer not in OURS)
        some = borrow.lenders_of(record)
        lent = [borrow.row(record, lines, one) if one in some else None for one in borrow.LENDERS]
        cells = [f"{steps_of(row)}; {row.reached}" if row else NONE for row in (own, *lent)]
        table.append([own.task.title, *cells, f"{titles[best.optimizer]}, {steps_of(best)}"])
    headings = ["task", "EGD at its own settings", *borrow.LENDERS.values(), "best peer"]
    return tabulate(table, headings, tablefmt="github", disable_numparse=True)


def still_behind(records: Sequence[Record], lines: Sequence[Line]) -> list[str]:
    """Return the tasks on which EGD needs more steps than the best peer at all these settings."""
    found = []
    for record in records:
        here = rows(record)
        own = next(row for row in here if row.optimizer == "egd")
        best = next(row for row in here if row.optimizer not in OURS)
        lent = [borrow.row(record, lines, one) for one in borrow.lenders_of(record)]
        if min(row.median for row in (own, *lent)) > best.median:
            found.append(own.task.title)
    return found


def peers(optimizers: Iterable[Optimizer]) -> str:
    """Return who competes, where it is from, and what is particular, in Markdown."""
    found = [(one.title, one.source, one.note) for one in optimizers]
    return tabulate(found, ("optimizer", "from", "here"), tablefmt="github", disable_numparse=True)


def cells_of(row: Row) -> list[str]:
    """Return a row's cells after its name."""
    best = row.last.best
    settings = {name: one for name, one in best["settings"].items() if name != BATCH}
    told = ", ".join(f"{name} {_number(one)}" for name, one in settings.items())
    return [
        steps_of(row),
        f"{'> ' * row.missed}{row.median * row.batch:,.0f}" if row.steps else NONE,
        _seconds(row),
        _share(row),
        str(row.batch),
        " / ".join(_mean_steps(row, one) for one in row.best_after),
        told + _remark(row),
    ]


def steps_of(row: Row) -> str:
    """Return median and range of the steps; on the tuning seeds as long as no other was run."""
    if not row.steps:
        mean = value(row.task, row.last.best)
        return f"({mean:g} tuning)" if mean < row.task.steps else f"(> {mean:g} tuning)"
    low, high = min(row.counted), max(row.counted)
    median = median_of(row)
    over = ">" if row.reached < len(row.steps) else ""
    return median if low == high else f"{median} ({low} to {over}{high})"


def median_of(row: Row) -> str:
    """Return the median of the steps, a bound if it is missed."""
    return f"> {row.task.steps}" if row.missed else f"{row.median:g}"


def ratio_told(ratio: float, bound: str, tasks: int) -> str:
    """Return a ratio with its bound, as `ratio_to` finds them."""
    return f"{bound} {ratio:.2f}".strip() if tasks else NONE


def _seconds(row: Row) -> str:
    if row.seconds is None or row.compile_seconds is None:
        return NONE
    both = f"{_brief(row.seconds)} / {_brief(row.seconds + row.compile_seconds)}"
    return f"{'> ' * row.missed}{both}"


def _brief(seconds: float) -> str:
    """Return seconds to the hundredth, or to one digit."""
    return f"{seconds:.2f}" if seconds >= 0.1 else f"{seconds:.1g}"


def _share(row: Row) -> str:
    if not row.steps:
        return NONE
    low, high = row.interval
    return f"{row.reached} of {len(row.steps)} ({low:.0%} to {high:.0%})"


def _mean_steps(row: Row, steps: float) -> str:
    if math.isinf(steps):
        return NONE
    return f"> {row.task.steps}" if steps >= row.task.steps else f"{steps:g}"


def _remark(row: Row) -> str:
    """Return what a reader must know: a round in progress, wider ranges, a best at an edge."""
    last = row.last
    remarks = [f"{len(last.trials)} of {row.task.trials} trials"] if not last.complete else []
    if last.number:
        remarks.append(f"ranges widened {last.number} x")
    if last.complete and last.edges:
        remarks.append(f"at the edge of {', '.join(last.edges)}")
    return f" [{'; '.join(remarks)}]" if remarks else ""


def course_table(found: Found, titles: dict[str, str]) -> str:
    """Return norms and ranks after the first step and at the target, in Markdown."""
    measures = ("norm", "nuclear", "rank")
    table = []
    for name in sorted(found.names, key=found.reached):
        pairs = [(found.course(name, m)[0], found.at_target(name, m)) for m in measures]
        cells = (f"{first:.0f} to {last:.0f}" for first, last in pairs)
        table.append((titles.get(name, name), found.reached(name), *cells))
    headings = ("optimizer", "steps", "norm, first step to target", "nuclear norm", "rank")
    return tabulate(table, headings, tablefmt="github", disable_numparse=True)


def less_table(found: Found, titles: dict[str, str]) -> str:
    """Return the median steps by share of the data, and the seeds that got there, in Markdown."""
    table = []
    for name in sorted(found.names, key=lambda name: found.steps(name, found.fractions[-1])):
        cells = []
        for fraction in found.fractions:
            steps, reached = found.steps(name, fraction)
            few = 2 * reached <= len(found.seeds)
            cells.append(f"{'> ' * few}{steps:g} ({reached} of {len(found.seeds)})")
        table.append((titles.get(name, name), *cells))
    headings = ("optimizer", *(f"{fraction:.0%} of the table" for fraction in found.fractions))
    return tabulate(table, headings, tablefmt="github", disable_numparse=True)


def batches_table(records: Sequence[Record], titles: dict[str, str]) -> str:
    """Return steps, and seeds that got there, by the size that was tuned alone, in Markdown."""
    found = [{row.optimizer: row for row in rows(record)} for record in records]
    table = [
        [titles.get(name, name), *(f"{steps_of(one[name])}; {one[name].reached}" for one in found)]
        for name in found[-1]
    ]
    headings = ["optimizer", *(str(task_of(record).batches[0]) for record in records)]
    return tabulate(table, headings, tablefmt="github", disable_numparse=True)


def list_all(tasks: dict, optimizers: dict[str, Optimizer]) -> str:
    """Return names and titles of tasks and optimizers."""
    lines = ["tasks:", *(f"  {name:20} {task.title}" for name, task in tasks.items())]
    lines += ["", "optimizers:"]
    lines += [f"  {name:20} {one.title} ({one.source})" for name, one in optimizers.items()]
    return "\n".join(lines)


def _after(record: Record) -> str:
    return " / ".join(map(str, after(task_of(record))))


def _number(one: object) -> str:
    return f"{one:g}" if isinstance(one, float) else str(one)
