"""What was aimed at when the arena was planned, and what of it holds."""

import math
from collections.abc import Callable, Sequence

from grokking.tasks import OPERATIONS
from tabulate import tabulate

from arena.record import Record
from arena.results import Row, ratio_to, rows, task_of
from arena.tables import NONE, OURS, YARDSTICK, ratio_told, steps_of

STEPS = {
    **{f"{operation}-{p}": 18 for operation in OPERATIONS for p in (97, 127)},
    **{f"{operation}-79": 20 for operation in OPERATIONS},
    "transformer-97": 220,
}
ENTRIES = ("egd", "weighted")  # ours; each has a budget of its own
FEW = 12  # steps on a modular table that were hoped for
ByName = dict[str, Row]
Check = Callable[[Row, ByName], bool]
MODULAR, PARITY, TRANSFORMER = (*OPERATIONS,), ("parity",), ("transformer",)

RIVALS = {MODULAR: (YARDSTICK, "muon"), PARITY: (), TRANSFORMER: (YARDSTICK, "muon", "grokfast")}


def _reached(ours: Row, field: ByName) -> bool:
    """Return whether every seed got there, in the steps aimed at in the median."""
    return ours.reached == len(ours.steps) and ours.median <= STEPS[ours.task.name]


def _at_most(other: str, part: float = 1.0) -> Check:
    """Return the check that the steps are at most this part of another optimizer's."""
    return lambda ours, field: not ours.missed and ours.median <= part * field[other].median


def _fewer_than(other: str) -> Check:
    return lambda ours, field: not ours.missed and ours.median < field[other].median


def _quickest(ours: Row, field: ByName) -> bool:
    """Return whether it takes at most the seconds of every peer that got there."""
    timed = [row.seconds for row in _peers(field) if row.seconds and not row.missed]
    return (
        not ours.missed
        and ours.seconds is not None
        and ours.seconds <= min(timed, default=math.inf)
    )


def _on_most_seeds(ours: Row, field: ByName) -> bool:
    """Return whether 9 of 10 seeds got there, in at most the steps of every peer."""
    best = min(row.median for row in _peers(field))
    return ours.reached >= 0.9 * len(ours.steps) and ours.median <= best


AIMS: tuple[tuple[str, tuple[str, ...], Check], ...] = (
    ("Modular tables: at most 18 steps, 20 modulo 79, on every seed", MODULAR, _reached),
    (
        f"Modular tables: at most {FEW} steps",
        MODULAR,
        lambda ours, _: not ours.missed and ours.median <= FEW,
    ),
    ("Modular tables: at most a third of AdamW's steps", MODULAR, _at_most(YARDSTICK, 1 / 3)),
    ("Modular tables: no more steps than Muon", MODULAR, _at_most("muon")),
    ("Modular tables: at most the seconds of every peer", MODULAR, _quickest),
    (
        "Parity: 9 of 10 seeds, at most the steps of every peer",
        PARITY,
        _on_most_seeds,
    ),
    ("Transformer: at most 220 steps", TRANSFORMER, _reached),
    ("Transformer: at most .6 of AdamW's steps", TRANSFORMER, _at_most(YARDSTICK, 0.6)),
    ("Transformer: no more steps than Muon", TRANSFORMER, _at_most("muon")),
    ("Transformer: fewer steps than Grokfast", TRANSFORMER, _fewer_than("grokfast")),
)


def aims_table(records: Sequence[Record], titles: dict[str, str]) -> str:
    """Return each aim, and on how many of its tasks our entries reach it, in Markdown."""
    fields = [{row.optimizer: row for row in rows(record)} for record in records]
    table = []
    for aim, kinds, check in AIMS:
        chosen = [
            field for field in fields if next(iter(field.values())).task.name.startswith(kinds)
        ]
        chosen = [field for field in chosen if {*RIVALS[kinds]} <= field.keys()]
        held = [
            [name in field and check(field[name], field) for name in ENTRIES] for field in chosen
        ]
        cells = [
            _count(ok[place] for ok, field in zip(held, chosen, strict=True) if name in field)
            for place, name in enumerate(ENTRIES)
        ]
        table.append((aim, *cells, _count(map(any, held))))
    headings = ("aim", *(titles[name] for name in ENTRIES), "one of the two")
    return tabulate(table, headings, tablefmt="github", disable_numparse=True)


def beside_peers(records: Sequence[Record], titles: dict[str, str]) -> str:
    """Return our steps on each task beside the best peer's, in steps and in seconds."""
    table = []
    for record in records:
        found = rows(record)
        field = {row.optimizer: row for row in found}
        if not {"egd", YARDSTICK} <= field.keys():
            continue
        ours, weighted = field["egd"], field.get("weighted")
        best = next(row for row in found if row.optimizer not in OURS)
        timed = [row for row in _peers(field) if row.seconds and not row.missed]
        quickest = min(timed, key=lambda row: row.seconds or 0.0, default=None)
        ratios = (ratio_to([found], name, YARDSTICK) for name in ENTRIES if name in field)
        to_yardstick = [ratio_told(*one) for one in ratios]
        table.append(
            [
                task_of(record).title,
                steps_of(ours),
                f"{ours.reached} of {len(ours.steps)}",
                steps_of(weighted) if weighted else NONE,
                ", ".join(to_yardstick),
                f"{titles[best.optimizer]}, {steps_of(best)}",
                NONE if ours.missed or not ours.seconds else f"{ours.seconds:.2f}",
                f"{titles[quickest.optimizer]}, {quickest.seconds:.2f}" if quickest else NONE,
            ]
        )
    headings = ["task", "EGD's steps", "seeds", "weighted rows' steps", "both / AdamW", "best peer"]
    headings += ["EGD's seconds, without compiling", "least of a peer"]
    return tabulate(table, headings, tablefmt="github", disable_numparse=True)


def _peers(field: ByName) -> list[Row]:
    return [row for name, row in field.items() if name not in OURS]


def _count(held) -> str:
    every = list(held)
    return f"{sum(every)} of {len(every)}" if every else NONE
