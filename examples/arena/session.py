"""All that is to do on a task, from the first trial to the times, with progress and an estimate."""

import collections
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from arena.contract import Knob
from arena.field import Field
from arena.plan import Job, counted, jobs, last_round, new_rounds
from arena.record import TRIAL, Line, Log, Record
from arena.results import median_steps
from arena.space import BATCH
from arena.workers import Pool, ProbeJob, TimeJob

SPAWN_SECONDS = 5.0


def run(
    field: Field,
    source: str,
    path: Path,
    workers: int = 2,
    only: tuple[str, ...] = (),
    anew: tuple[str, ...] = (),
    timing: bool = True,
) -> Record:
    """Do all that the log at `path` lacks: tune alike, run the bests on fresh seeds, time them.

    Args:
        field: the task and all optimizers.
        source: name or file of the task, for the workers.
        path: the log, new or to go on with.
        workers: processes at once.
        only: optimizers to work on; none means all.
        anew: optimizers whose lines so far are taken back.
        timing: time the bests.

    Raises:
        OSError, LogError: the log cannot be used.
        WorkerFailed: an optimizer fails on the task.
    """
    chosen = field.only(only)
    with Log(path, field.config(), chosen.optimizers, anew) as log:
        with Pool(source, workers) as pool:
            _work(log, chosen, pool)
        if timing:
            _time(log, field, source, again=False)
        return log.record


def time_again(field: Field, source: str, path: Path) -> Record:
    """Time the bests of a log, whatever times it has; the last ones count."""
    with Log(path, field.config()) as log:
        _time(log, field, source, again=True)
        return log.record


def _work(log: Log, field: Field, pool: Pool) -> None:
    """Let the workers do all jobs, and log what they find."""
    for line in list(new_rounds(log.record, field)):
        log.add(line)
    announced = False
    with Progress(log.record, field) as progress:
        while True:
            announced = announced or _announce(log.record, field, len(pool.workers))
            _hand_out(pool, jobs(log.record, field))
            if not pool.running:
                return
            for line in pool.results():
                log.add(line)
                progress.show(line, pool)


def _hand_out(pool: Pool, todo: list[Job]) -> None:
    """Give each idle worker a job; one that it has compiled before, among equals."""
    taken = {job.key for job in pool.running if isinstance(job, Job)}
    for worker in pool.idle:
        free = [job for job in todo if job.key not in taken]
        if not free:
            return
        known = [job for job in free if (job.optimizer, job.batch) in worker.known]
        lone = [trial for trial, _ in free[0].todo] == [0] and free[0].kind == TRIAL
        job = known[0] if known and not lone else free[0]
        taken.add(job.key)
        worker.start(job)


def _time(log: Log, field: Field, source: str, again: bool) -> None:
    """Time all bests side by side, unless the log has the times of these very ones."""
    bests = {}
    for name in log.record.optimizers:
        last = last_round(log.record, field.task, name)
        if name in field.optimizers and last and last.complete and counted(log.record, last):
            settings, knobs = last.best["settings"], field.optimizers[name].knobs
            if settings.keys() - {BATCH} == {knob.name for knob in knobs}:
                bests[name] = settings, median_steps(log.record, last)
    old = log.record.times.get("rows", {})
    same = {name: row["settings"] for name, row in old.items()}
    known = same == {name: settings for name, (settings, _) in bests.items()}
    if not bests or (known and not again):
        return
    print(f"timing {len(bests)} optimizers side by side ...", flush=True)
    with Pool(source, 1, pinned=False) as pool:
        pool.workers[0].start(TimeJob(bests, field.fresh_seeds[0]))
        while pool.running:
            for line in pool.results():
                log.add(line)


def _announce(record: Record, field: Field, workers: int) -> bool:
    """Say how long it takes, once there is a trial of each optimizer to judge by."""
    seconds = estimate(record, field)
    if seconds is None:
        return False
    tqdm.write(
        f"about {told(seconds / workers + SPAWN_SECONDS)} from now with {workers} at once, judging "
        "by the trials so far; less as bad trials are given up"
    )
    return True


class Progress:
    """A bar over trials and fresh seeds; where stderr is no terminal, a line now and then."""

    def __init__(self, record: Record, field: Field):
        self._record, self._field = record, field
        self._bar = tqdm(unit="run", disable=None)
        self._started = self._said = time.perf_counter()
        left, done = remaining(record, field)
        self._bar.total, self._bar.n = left + done, done
        self._bar.refresh()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self, line: Line, pool: Pool) -> None:
        """Show that a result has come, and what is running."""
        self._bar.update()
        at_work = collections.Counter(job.optimizer for job in pool.running if isinstance(job, Job))
        self._bar.set_postfix_str(" | ".join(at_work), refresh=False)
        if self._bar.disable and time.perf_counter() > self._said + 30:
            self._said = time.perf_counter()
            left, done = remaining(self._record, self._field)
            seconds = self._said - self._started
            print(f"{seconds:6.0f} s: {done} of {left + done} done", file=sys.stderr, flush=True)


def remaining(record: Record, field: Field) -> tuple[int, int]:
    """Return how many trials and counting runs are left, and how many are done."""
    done = 0
    for name in field.optimizers:
        last = last_round(record, field.task, name)
        done += len(last.trials) + len(counted(record, last)) if last else 0
    return len(field.optimizers) * (field.task.trials + field.task.seeds) - done, done


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
    """Return the seconds of each optimizer's work at most, after measuring a few steps of it.

    These are at the middle of the batch sizes.
    """
    task = field.task
    batch = task.batches[len(task.batches) // 2]
    runs = task.trials * len(task.tuning_seeds) + task.seeds
    found = []
    with Pool(source, 1) as pool:
        for name in field.optimizers:
            pool.workers[0].start(ProbeJob(name, batch))
            while pool.running:
                for line in pool.results():
                    compilation = line["compile"] * (len(task.batches) + 4)
                    found.append(compilation + runs * task.steps * line["step_seconds"])
    return found


def estimate(record: Record, field: Field) -> float | None:
    """Return the seconds of work that is left; None before each optimizer's first trial."""
    total = 0.0
    for name in field.optimizers:
        done = record.of(TRIAL, name)
        last = last_round(record, field.task, name)
        if not done or last is None:
            return None
        seeds = field.task.seeds - len(counted(record, last))
        total += (field.task.trials - len(last.trials)) * _mean(run_seconds(line) for line in done)
        runs = [run for line in done for run in line["runs"]]
        total += seeds * _mean(run["seconds"] for run in runs)
        compilation = max(line["compile"] for line in done)
        total += compilation * len({settings["batch"] for settings in last.missing.values()})
        total += 4 * compilation  # once to count, three times to be timed
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
