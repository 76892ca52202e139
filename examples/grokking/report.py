"""A table of runs, made from their logs."""

from collections.abc import Iterable

from rich.table import Column, Table

from grokking.record import Log
from grokking.train import first_at_target

HEADINGS = ("epochs\nto target", "seconds\nto target", "ms per\nepoch", "train", "test")


def run_table(logs: Iterable[Log]) -> Table:
    """Return one row a run: epochs and seconds to its target, then its last accuracies."""
    logs = list(logs)
    targets = {log.config.target for log in logs}
    shared = targets.pop() if len(targets) == 1 else None
    target = "target" if shared is None else f"{shared:.0%}"
    columns = [
        Column(heading.replace("target", target), justify="right", no_wrap=True)
        for heading in HEADINGS
    ]
    table = Table(Column("run", overflow="fold"), *columns, box=None, pad_edge=False)
    for log in logs:
        table.add_row(log.label + _ending(log), *_measurements(log))
    return table


def _measurements(log: Log) -> tuple[str, ...]:
    if not log.epochs:
        return ("-",) * len(HEADINGS)
    last = log.epochs[-1]
    reached = first_at_target(log.epochs, log.config.target)
    to_target = (
        (f"> {last.epoch}", f"> {last.seconds:.1f}")
        if reached is None
        else (f"{reached.epoch}", f"{reached.seconds:.1f}")
    )
    pace = f"{1000.0 * last.seconds / last.epoch:.0f}"
    return (*to_target, pace, f"{last.train_accuracy:.1%}", f"{last.test_accuracy:.1%}")


def _ending(log: Log) -> str:
    """Say how a run ended that did not end by itself."""
    ending = "cut off" if log.ending is None else log.ending["kind"]
    return "" if ending == "result" else f" ({ending})"
