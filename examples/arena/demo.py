"""The demonstration: SGD, AdamW tuned, the paper's EGD and ours on addition modulo 97."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import optax
from tqdm import tqdm

from arena.contract import Params, Task
from arena.field import load
from arena.figures import draw_demo
from arena.optimizers import OPTIMIZERS, Values
from arena.plan import last_round
from arena.record import Line, Log, Record, read
from arena.results import task_of
from arena.space import BATCH, Settings, traced
from arena.tasks import TASKS
from arena.trial import Program, averaged, share, task_start
from egd_optax import egd

TASK = "addition-97"
RUN = "demo"
SEED = 100


@dataclasses.dataclass(frozen=True)
class Entry:
    """One run: its optimizer and batch size, how many steps, and how many from look to look."""

    title: str
    settings: Settings
    steps: int
    every: int
    make: Callable[[Values, Task, Params], optax.GradientTransformation]
    knobs: tuple = ()


def entries(record: Record) -> dict[str, Entry]:
    """Return the runs by name; those that were tuned have the best settings of a log."""

    def tuned(name: str, title: str, steps: int) -> Entry:
        last = last_round(record, task_of(record), name)
        if last is None or not last.complete:
            raise ValueError(
                f"the demo needs a log in which {name} is tuned; `run {TASK}` makes it"
            )
        optimizer = OPTIMIZERS[name]
        return Entry(title, last.best["settings"], steps, 1, optimizer.make, last.knobs)

    return {
        "sgd": Entry("SGD, not tuned", {BATCH: 512}, 3_600, 9, _sgd),
        "paper": Entry("EGD, first matrix (paper)", {BATCH: 512}, 1_800, 9, _paper),
        "adamw": tuned("adamw", "AdamW, tuned", 100),
        "egd": tuned("egd", "EGD, tuned", 60),
    }


def _sgd(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(1e-4), optax.sgd(0.7))


def _paper(values: Values, task: Task, params: Params) -> optax.GradientTransformation:
    return egd(0.7, weight_decay=1e-4, matrices="hidden")


def run(log_path: Path, tuned: Record, seed: int) -> list[Line]:
    """Train what the log lacks, with a progress bar, and return the lines of all runs.

    Raises:
        ValueError: the seed is negative, or one of the tuning.
    """
    tuning = TASKS[TASK].tuning_seeds
    if seed < 0 or seed in tuning:
        raise ValueError(
            f"the demo's seed is at least 0 and none of the tuning's {tuning}, got {seed}; "
            f"{SEED} will do"
        )
    field = load(TASK)
    with Log(log_path, {**field.config(), "seed": seed}) as log:
        wanted = entries(tuned)
        for name, entry in wanted.items():
            if not any(_is_of(line, name, entry) for line in log.record.lines):
                log.add({"kind": RUN, "name": name, **_trained(entry, seed)})
        return [
            line for line in log.record.lines if _is_of(line, line["name"], wanted[line["name"]])
        ]


def _is_of(line: Line, name: str, entry: Entry) -> bool:
    """Return whether a run has an entry's name and settings: another tuning has others."""
    return line["name"] == name and line["settings"] == entry.settings


def _trained(entry: Entry, seed: int) -> Line:
    """Return the accuracies of a run, look by look."""
    line: Line = {"title": entry.title, "settings": entry.settings}
    line |= {"steps": [], "train": [], "test": []}
    started = time.perf_counter()
    with tqdm(total=entry.steps, desc=entry.title, unit="step", disable=None) as progress:
        for step, train, test in _looks(entry, seed):
            line["steps"].append(step)
            line["train"].append(round(float(train), 5))
            line["test"].append(round(float(test), 5))
            progress.set_postfix_str(f"train {train:.1%}, test {test:.1%}", refresh=False)
            progress.update(entry.every)
    return line | {"seconds": round(time.perf_counter() - started, 1)}


def _looks(entry: Entry, seed: int) -> Iterator[tuple[int, Any, Any]]:
    task = TASKS[TASK]
    program = Program(task, OPTIMIZERS["sgd"], entry.settings[BATCH])
    params, key, train, test = task_start(task, seed)
    values = traced(entry.knobs, entry.settings)
    transform = entry.make(values, task, params)
    advance = functools.partial(program.step, transform, share(values), key)

    @jax.jit
    def look(state, train, test):
        state = jax.lax.fori_loop(0, entry.every, lambda _, state: advance(train, state), state)
        weights = averaged(state)
        return state, task.score(weights, train), task.score(weights, test)

    state = program.start(transform, params, train)
    for step in range(entry.every, entry.steps + 1, entry.every):
        state, *scores = look(state, train, test)
        yield step, *scores


def target() -> float:
    """Return the accuracy that counts."""
    return TASKS[TASK].target


def reached(line: Line, goal: float) -> int | None:
    """Return the first step from which on the target is held to the end; None if there is none."""
    first = None
    for step, score in zip(line["steps"], line["test"], strict=True):
        first = (first or step) if score >= goal else None
    return first


def rows(lines: Sequence[Line]) -> list[tuple[str, str, str, str]]:
    """Return title, steps to the target, last accuracy and seconds of each run."""
    return [
        (
            line["title"],
            str(reached(line, target()) or f"> {line['steps'][-1]:,}"),
            f"{line['test'][-1]:.1%}",
            f"{line['seconds']:.0f}",
        )
        for line in lines
    ]


def draw(lines: Sequence[Line], path: Path) -> None:
    """Draw accuracy against steps, with the steps to the target in the legend."""
    draw_demo(lines, [steps for _, steps, *_ in rows(lines)], target(), path)


def tuned_log(logs: Path) -> Record:
    """Return the log with the tuned settings."""
    return read(logs / f"{TASK}.jsonl")


def log_of(folder: Path, seed: int = SEED) -> Path:
    """Return the file of the demonstration's runs."""
    return folder / RUN / f"seed-{seed}.jsonl"
