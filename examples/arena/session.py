"""All that is to do on a task, from the first trial to the times, with progress and an estimate."""

import collections
import sys
import time
from pathlib import Path

from tqdm import tqdm

from arena.estimates import estimate, told
from arena.execute import TimeJob
from arena.field import Field
from arena.plan import Job, Round, counted, jobs, last_round, new_rounds
from arena.record import ROUND, TRIAL, Line, Log, Record
from arena.results import median_steps
from arena.workers import Pool

SPAWN_SECONDS = 5.0


def run(
    field: Field,
    source: str,
    path: Path,
    workers: int = 2,
    only: tuple[str, ...] = (),
    anew: tuple[str, ...] = (),
    counting: bool = True,
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
        counting: run the bests on fresh seeds.
        timing: time them.

    Raises:
        OSError, LogError: the log cannot be used.
        WorkerFailed: an optimizer fails on the task.
    """
    chosen = field.only(only)
    with Log(path, field.config(), anew) as log:
        with Pool(source, workers) as pool:
            _work(log, chosen, pool, counting)
        if timing:
            _time(log, field, source, again=False)
        return log.record


def time_again(field: Field, source: str, path: Path) -> Record:
    """Time the bests of a log, whatever times it has; the last ones count."""
    with Log(path, field.config()) as log:
        _time(log, field, source, again=True)
        return log.record


def _work(log: Log, field: Field, pool: Pool, counting: bool) -> None:
    """Let the workers do all jobs, and log what they find."""
    _widen(log, field)
    announced = False
    with Progress(log.record, field, counting) as progress:
        while True:
            announced = announced or _announce(log.record, field, len(pool.workers), counting)
            _hand_out(pool, jobs(log.record, field, counting))
            if not pool.running:
                return
            for line in pool.results():
                log.add(line)
                progress.show(line, pool)
            if _widen(log, field):
                progress.recount()


def _widen(log: Log, field: Field) -> bool:
    """Log the rounds that are due, and say which ranges are widened."""
    lines = list(new_rounds(log.record, field))
    for line in lines:
        log.add(line)
        if line["widened"]:
            sides = ", ".join(f"{knob} ({side})" for knob, side in line["widened"].items())
            tqdm.write(f"{line['optimizer']}: the best lies at an edge of {sides}; tuned wider")
    return bool(lines)


def _hand_out(pool: Pool, todo: list[Job]) -> None:
    """Give each idle worker a job; one that it has compiled before, among equals."""
    taken = {job.key for job in pool.running if isinstance(job, Job)}
    for worker in pool.idle:
        free = [job for job in todo if job.key not in taken]
        if not free:
            return
        known = [job for job in free if (job.optimizer, job.batch) in worker.known]
        lone = len(free[0].todo) == 1 and free[0].kind == TRIAL
        job = known[0] if known and not lone else free[0]
        taken.add(job.key)
        worker.start(job)


def _time(log: Log, field: Field, source: str, again: bool) -> None:
    """Time all bests side by side, unless the log has the times of these very ones."""
    bests = {}
    for name in log.record.optimizers:
        last = last_round(log.record, field.task, name)
        if name in field.optimizers and last and last.complete and counted(log.record, last):
            bests[name] = last.best["settings"], median_steps(log.record, last)
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


def _announce(record: Record, field: Field, workers: int, counting: bool) -> bool:
    """Say how long it takes, once there is a trial of each optimizer to judge by."""
    seconds = estimate(record, field, counting)
    if seconds is None:
        return False
    tqdm.write(
        f"about {told(seconds / workers + SPAWN_SECONDS)} from now with {workers} at once, judging "
        "by the trials so far; less as bad trials are given up, more for each range that is widened"
    )
    return True


class Progress:
    """A bar over trials and fresh seeds; where stderr is no terminal, a line now and then."""

    def __init__(self, record: Record, field: Field, counting: bool):
        self._record, self._field, self._counting = record, field, counting
        self._bar = tqdm(unit="run", disable=None)
        self._started = self._said = time.perf_counter()
        self.recount()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def recount(self) -> None:
        """Count again what is done and to do."""
        left, done = remaining(self._record, self._field, self._counting)
        self._bar.total, self._bar.n = left + done, done
        self._bar.refresh()

    def show(self, line: Line, pool: Pool) -> None:
        """Show that a result has come, and what is running."""
        self._bar.update()
        at_work = collections.Counter(job.optimizer for job in pool.running if isinstance(job, Job))
        self._bar.set_postfix_str(" | ".join(at_work), refresh=False)
        if self._bar.disable and time.perf_counter() > self._said + 30:
            self._said = time.perf_counter()
            left, done = remaining(self._record, self._field, self._counting)
            seconds = self._said - self._started
            print(f"{seconds:6.0f} s: {done} of {left + done} done", file=sys.stderr, flush=True)


def remaining(record: Record, field: Field, counting: bool) -> tuple[int, int]:
    """Return how many trials and counting runs are left, and how many are done."""
    left = done = 0
    for name in field.optimizers:
        last: Round | None = last_round(record, field.task, name)
        trials = len(record.of(TRIAL, name))
        counts = len(counted(record, last)) if counting and last else 0
        rounds = max(1, len(record.of(ROUND, name)))
        due = rounds * field.task.trials + (field.task.seeds if counting else 0)
        left, done = left + due - trials - counts, done + trials + counts
    return left, done
