"""EGD at the best settings of its relatives: how much of its place in a table is the tuning's luck.

Shampoo and the rows weighted by noise have EGD's coordinates, and one of their own; Muon's step has
a factor by shape. With the rest of their best settings exact EGD runs on the fresh seeds.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from arena.field import TUNER, load
from arena.record import Line, Log, Record, read
from arena.results import Row, is_finished, rows, task_of
from arena.space import BATCH, EMA, Settings
from arena.tasks import TASKS
from arena.trial import Program

LENT = "borrowed"
LENDERS = {"shampoo": "Shampoo's", "weighted": "those of weighted rows", "muon": "Muon's"}
DEFAULTS = {"kind": "decoupled", "lookahead": "Nesterov", "method": "exact"}


def log_of(logs: Path) -> Path:
    """Return the file of all these runs."""
    return logs / LENT / "runs.jsonl"


def tables_of(logs: Path) -> list[Record]:
    """Return the finished logs of the arena's own tasks in which EGD and a lender are."""
    paths = [path for name in TASKS if (path := logs / f"{name}.jsonl").exists()]
    found = [record for record in map(read, paths) if is_finished(record)]
    return [one for one in found if "egd" in one.optimizers and lenders_of(one)]


def lenders_of(record: Record) -> list[str]:
    """Return the lenders that a table has."""
    return [name for name in LENDERS if name in record.optimizers]


def run(logs: Path, path: Path) -> None:
    """Run what the log at `path` lacks, with a progress bar.

    Raises:
        ValueError: `logs` has no such table.
    """
    tables = tables_of(logs)
    if not tables:
        raise ValueError(
            f"this needs finished tables with egd and one of {', '.join(LENDERS)}, and {logs} has "
            "none; `run` makes them"
        )
    config = {"task": {"name": LENT}, "tuner": TUNER, "fresh_seeds": None, "ranges": {}}
    with Log(path, config) as log:
        todo = [job for record in tables for job in _jobs(record, log.record.lines)]
        seeds = sum(len(job["seeds"]) for job in todo)
        with tqdm(total=seeds, unit="run", disable=None) as progress:
            for job in todo:
                field = load(job["task"])
                program = Program(field.task, field.optimizers["egd"], job["settings"][BATCH])
                for seed in job.pop("seeds"):
                    found = program.run(job["settings"], seed)
                    log.add({"kind": LENT, **job, **found})
                    progress.update()


def row(record: Record, lines: Sequence[Line], lender: str) -> Row:
    """Return EGD's row with its steps at a lender's best settings.

    Raises:
        ValueError: a fresh seed is missing.
    """
    found = {line["seed"]: line["steps"] for line in _of(record, lines, lender)}
    if set(found) != set(record.header["fresh_seeds"]):
        raise ValueError(
            f"EGD ran on {len(found)} seeds of {task_of(record).name} at the best settings of "
            f"{lender}, not on all; `borrow` makes the log anew where the table has changed"
        )
    return dataclasses.replace(_row(record, "egd"), steps=found)


def _of(record: Record, lines: Sequence[Line], lender: str) -> list[Line]:
    name, wanted = task_of(record).name, _borrowed(record, lender)
    return [
        line
        for line in lines
        if (line["task"], line["lender"], line["settings"]) == (name, lender, wanted)
    ]


def _jobs(record: Record, lines: Sequence[Line]) -> Iterator[Line]:
    for lender in lenders_of(record):
        done = {line["seed"] for line in _of(record, lines, lender)}
        yield {
            "task": task_of(record).name,
            "lender": lender,
            "settings": _borrowed(record, lender),
            "seeds": [seed for seed in record.header["fresh_seeds"] if seed not in done],
        }


def _borrowed(record: Record, lender: str) -> Settings:
    """Return the lender's best settings as far as EGD has them, and the lender's way for others."""
    best = _row(record, lender).last.best["settings"]
    egd = load(task_of(record).name).optimizers["egd"]
    names = {*(knob.name for knob in egd.knobs), BATCH}
    return {name: one for name, one in (DEFAULTS | {EMA.name: 1.0} | best).items() if name in names}


def _row(record: Record, name: str) -> Row:
    return next(row for row in rows(record) if row.optimizer == name)
