"""What will be run on a task, and about how long it takes."""

from collections.abc import Iterable

from arena.contract import Knob
from arena.execute import ProbeJob
from arena.field import Field
from arena.plan import counted, last_round
from arena.record import TRIAL, Line, Record
from arena.workers import Pool


def say(field: Field, ranges: bool = False) -> None:
    """Print what will be run, and from which ranges."""
    task, names = field.task, field.optimizers
    goal = "at most" if task.lower else "at least"
    print(
        f"{task.title}: {goal} {task.target:g} for {task.hold} looks in a row, one every "
        f"{task.every} steps, within {task.steps} steps\n"
        f"{len(names)} optimizers x {task.trials} trials x {len(task.tuning_seeds)} seeds "
        f"{list(task.tuning_seeds)}, then the best of each on {task.seeds} fresh seeds "
        f"from {field.fresh_seeds[0]} on; batch sizes {list(task.batches)}"
    )
    if ranges:
        for name, optimizer in names.items():
            print(f"  {name}: {', '.join(map(range_of, optimizer.knobs))}")


def range_of(knob: Knob) -> str:
    """Return a knob's range in words."""
    if knob.choices:
        return f"{knob.name} {' or '.join(map(str, knob.choices))}"
    return f"{knob.name} {knob.low:g} to {knob.high:g}{' (log)' if knob.log else ''}"


def time_needed(field: Field, source: str, record: Record | None, workers: int) -> str:
    """Return about how long a run takes from here on, by its log or by a few measured steps."""
    seconds = None if record is None else estimate(record, field)
    if seconds is not None:
        return f"about {told(seconds / workers)} from where the log is"
    most = sum(_probe(field, source))
    return (
        f"at most about {told(most / workers)}, if no trial got to the target or was given up; "
        "mostly a small part of that: `run` says more after a trial of each optimizer"
    )


def _probe(field: Field, source: str) -> list[float]:
    """Return the seconds of each optimizer's work at most, after measuring a few steps of it."""
    task = field.task
    runs = task.trials * len(task.tuning_seeds) + task.seeds
    found = []
    with Pool(source, 1) as pool:
        for name in field.optimizers:
            pool.workers[0].start(ProbeJob(name))
            while pool.running:
                for line in pool.results():
                    compilation = line["compile"] * (len(task.batches) + 4)
                    found.append(compilation + runs * task.steps * line["step_seconds"])
    return found


def estimate(record: Record, field: Field, counting: bool = True) -> float | None:
    """Return the seconds of work that is left; None before each optimizer's first trial."""
    total = 0.0
    for name in field.optimizers:
        done = record.of(TRIAL, name)
        last = last_round(record, field.task, name)
        if not done or last is None:
            return None
        seeds = field.task.seeds - len(counted(record, last)) if counting else 0
        total += (field.task.trials - len(last.trials)) * _mean(run_seconds(line) for line in done)
        runs = [run for line in done for run in line["runs"]]
        total += seeds * _mean(run["seconds"] for run in runs)
        compilation = max(line["compile"] for line in done)
        total += compilation * len({settings["batch"] for settings in last.missing.values()})
        total += 4 * compilation if counting else 0  # once to count, three times to be timed
    return total


def run_seconds(line: Line) -> float:
    """Return the seconds of a trial's or a count's runs, without compilation."""
    return sum(run["seconds"] for run in line.get("runs", [line]))


def told(seconds: float) -> str:
    """Return a time for people.

    Examples:
        >>> told(42), told(840), told(9000)
        ('42 seconds', '14 minutes', '2.5 hours')
    """
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
