"""The comparison: every optimizer tuned alike in the arena's manner, then on fresh seeds.

What is tuned is the validation loss at the end. A trial is one line of the arena's log, with its
course. A quarter of the first round's trials are spread over the ranges. The settings of all others
have the largest expected improvement, by all trials before. Further rounds are further trials.
A trial that is hopeless ends early, by one rule for all: after the warm-up its validation loss is
above that of a guess, ln 256, or no number.
"""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import numpy as np
from arena.contract import Knob, Optimizer, Task
from arena.field import FIRST_FRESH_SEED, Field
from arena.plan import Round, last_round, probed, rank
from arena.record import COUNT, ROUND, TIMES, TRIAL, Line, Log, Record
from arena.space import BATCH, Settings, edges, points, spread, to_json, traced
from arena.suggest import suggested
from common.checks import check_least
from common.environment import environment
from tqdm import tqdm

from language.config import HOPELESS, Config
from language.corpus import Corpus
from language.course import Point, Program
from language.optimizers import OPTIMIZERS, Choices, Entry, Values, choices_of

TUNING_SEED = 0
ROUNDS, STEPS = 15, 4  # of timing: in turn, so many steps each


class Steps(Protocol):
    """What is timed: a program that `compile` has compiled, one step after the other."""

    @property
    def step(self) -> Callable[..., tuple[Any, jax.Array]]: ...

    def start(self, values: Values, seed: int) -> Any: ...

    def compile(self, values: Values, state: Any) -> float: ...

    def batch(self, seed: int, step: int) -> np.ndarray: ...


class Plan(Protocol):
    """What a comparison asks a study for: field, a log's config, the line of one run, its steps."""

    @property
    def field(self) -> Field: ...

    def told(self, header: Line) -> Line: ...

    def trained(self, name: str, settings: Settings, seed: int) -> Line: ...

    def steps(self, name: str, settings: Settings) -> tuple[Steps, Values]: ...


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared: a model, a text, optimizers, and how often each is tried.

    Args:
        config: the model and its training.
        text: what is read.
        trials: of each optimizer, in each round.
        seeds: fresh ones, for the best of each.
    """

    config: Config
    text: Corpus
    trials: int = 8
    seeds: int = 3

    def __post_init__(self) -> None:
        self.text.check_context(self.config.context)
        for name in ("trials", "seeds"):
            check_least(name, getattr(self, name), 1)

    @property
    def field(self) -> Field:
        """The study in the arena's words: no target is reached, the lowest score is the best."""
        return planned(self, "language", "Language model", OPTIMIZERS)

    def told(self, header: Line) -> Line:
        """Return a log's config with the model and the text, which must not change either."""
        own = {"model": self.config.to_json(), "corpus": self.text.facts}
        return told(header, own)

    def trained(self, name: str, settings: Settings, seed: int) -> Line:
        """Train once, and return the run's line."""
        program = _program(self.config, self.text, name, choices_of(settings))
        return trial(program, values_of(name, settings), seed)

    def steps(self, name: str, settings: Settings) -> tuple[Program, Values]:
        """Return a program that is not compiled yet, and its numbers."""
        program = Program(self.config, OPTIMIZERS[name], self.text, choices_of(settings))
        return program, values_of(name, settings)


def told(header: Line, own: Line) -> Line:
    """Return a log's config with what is a study's own; how it is tuned, each line says."""
    config = {**header, "task": {**header["task"], **own}}
    return json.loads(json.dumps({name: one for name, one in config.items() if name != "tuner"}))


def planned(study: Any, name: str, title: str, optimizers: Mapping[str, Entry]) -> Field:
    """Return a study as the arena plans it, which trains nothing of it: the lowest score wins."""
    config = study.config
    task = Task(
        name=name,
        title=title,
        init=_untold,
        loss=_untold,
        data=_untold,
        score=_untold,
        target=-1.0,  # never reached
        steps=config.steps,
        batches=(config.batch,),
        every=config.every,
        trials=study.trials,
        seeds=study.seeds,
        tuning_seeds=(TUNING_SEED,),
        first_fresh_seed=FIRST_FRESH_SEED,
        lower=True,
    )
    entries = {
        name: Optimizer(name, entry.title, entry.source, entry.knobs, _untold)
        for name, entry in optimizers.items()
    }
    return Field(task, entries)


class Tuned(NamedTuple):
    """How far the tuning of an optimizer is.

    Args:
        last: its last round.
        trials: those of all rounds.
        counts: the best's runs on fresh seeds.
    """

    last: Round
    trials: list[Line]
    counts: list[Line]

    @property
    def best(self) -> Line:
        """The best trial of all rounds."""
        return best_of(self.last.task, self.trials)

    @property
    def edges(self) -> dict[str, str]:
        """The knobs whose best value is at an edge of all that was tried, and the side."""
        tried = [trial["settings"] for trial in self.trials]
        return edges(self.last.knobs, self.best["settings"], tried)

    @property
    def complete(self) -> bool:
        """Whether all trials of the last round are in."""
        return self.last.complete

    def next(self) -> tuple[int, Settings]:
        """Return number and settings of the trial that the last round lacks next.

        The first ones are spread over the ranges, the others where most is expected. If the best
        lies at an edge, some look beyond, the last ones of a round all do: as in the arena.
        """
        last, number = self.last, len(self.last.trials)
        batches, trials = last.task.batches, last.task.trials
        first = points(last.optimizer, last.knobs, batches, spread(trials))
        if last.number == 0 and number < len(first):
            return number, first[number]
        tried = [(trial["settings"], _score(trial)) for trial in self.trials]
        beyond = probed(self.edges, len(tried), trials - number)
        return number, suggested(last.knobs, tried, len(tried), beyond) | {BATCH: batches[0]}


def best_of(task: Task, trials: Iterable[Line]) -> Line:
    """Return the trial with the lowest score, the first one of equal ones."""
    return min(trials, key=lambda trial: (rank(task, trial)[:2], trial["round"], trial["trial"]))


def tuned(record: Record, task: Task, name: str) -> Tuned | None:
    """Return how far an optimizer is; None before its first round."""
    last = last_round(record, task, name)
    if last is None:
        return None
    trials = record.of(TRIAL, name)
    settings = best_of(task, trials)["settings"] if trials else None
    counts = [line for line in record.of(COUNT, name) if line["settings"] == settings]
    return Tuned(last, trials, counts)


def run(study: Plan, path: Path, only: Iterable[str] = (), rounds: int = 1) -> Record:
    """Do all that the log at `path` lacks: tune alike, then run the bests on fresh seeds.

    Args:
        study: what is compared.
        path: the log.
        only: names of optimizers; none means all.
        rounds: of so many trials each.

    Raises:
        ValueError: an unknown optimizer, or no round.
        OSError, LogError: the log cannot be used.
    """
    check_least("rounds", rounds, 1)
    chosen = study.field.only(only)
    with Log(path, study.told(study.field.config())) as log, _bar(log.record, chosen) as bar:
        for name in chosen.optimizers:
            bar.set_postfix_str(name)
            while line := _next(study, log.record, name, rounds):
                log.add(line)
                if line["kind"] == ROUND:
                    bar.total = _runs(log.record, chosen)
                else:
                    bar.update()
        return log.record


def _next(study: Plan, record: Record, name: str, rounds: int) -> Line | None:
    """Return the line that an optimizer's part of the log lacks first; None: it has all."""
    found = tuned(record, study.field.task, name)
    if found is None:
        return _round(study, name, 0, study.field.optimizers[name].knobs)
    if found.complete and found.last.number + 1 < rounds:
        return _round(study, name, found.last.number + 1, found.last.knobs)
    if not found.complete:
        number, settings = found.next()
        about = {"optimizer": name, "round": found.last.number, "trial": number}
        line = study.trained(name, settings, TUNING_SEED)
        compilation = {"compile": line.pop("compile")}
        return {"kind": TRIAL, **about, "settings": settings, **compilation, "runs": [line]}
    done = {line["seed"] for line in found.counts}
    seed = next((seed for seed in study.field.fresh_seeds if seed not in done), None)
    if seed is None:
        return None
    settings = found.best["settings"]
    about = {"optimizer": name, "round": found.last.number, "settings": settings}
    return {"kind": COUNT, **about, **study.trained(name, settings, seed)}


def _round(study: Plan, name: str, number: int, knobs: Iterable[Knob]) -> Line:
    line = {"kind": ROUND, "optimizer": name, "round": number, "trials": study.field.task.trials}
    return line | {"knobs": [to_json(knob) for knob in knobs]}


def time_bests(study: Plan, path: Path) -> Record:
    """Time steps of a log's bests in turn, in one process; nothing else should be running."""
    with Log(path, study.told(study.field.config())) as log:
        found = {name: tuned(log.record, study.field.task, name) for name in log.record.optimizers}
        bests = {name: one.best["settings"] for name, one in found.items() if one and one.trials}
        if bests:
            rows = timed({name: study.steps(name, best) for name, best in bests.items()})
            whole = {name: {"settings": bests[name]} | row for name, row in rows.items()}
            about = {"kind": TIMES, "hardware": environment()["hardware"]}
            log.add(about | {"rows": whole})
        return log.record


def trial(program: Program, values: dict[str, np.generic], seed: int) -> Line:
    """Return a run's line: its course, and its score, None if it was hopeless."""
    state = program.start(values, seed)
    compilation = program.compile(values, state)
    points = []
    hopeless = False
    for point in program.course(values, state, seed):
        points.append(point)
        hopeless = is_hopeless(point, program.config)
        if hopeless:
            break
    return {
        "seed": seed,
        "steps": None,  # there is no target
        "score": None if hopeless else points[-1].validation,
        "seconds": round(sum(point.seconds for point in points), 3),
        "compile": round(compilation, 2),
        "course": {
            "step": [point.step for point in points],
            "loss": [_short(point.loss) for point in points],
            "validation": [_short(point.validation) for point in points],
        },
    }


def is_hopeless(point: Point, config: Config) -> bool:
    """Return whether a run is not worth going on with, or not worth anything at its end."""
    known = math.isfinite(point.validation) and math.isfinite(point.loss)
    return not known or (point.step > config.warmup and point.validation > HOPELESS)


@functools.lru_cache(maxsize=4)  # of one optimizer, with either scale and average
def _program(config: Config, text: Corpus, name: str, choices: Choices) -> Program:
    return Program(config, OPTIMIZERS[name], text, choices)


def timed(programs: Mapping[str, tuple[Steps, Values]]) -> Line:
    """Return seconds of a step of each, several times in turn, and of its compilation."""
    states: dict[str, Any] = {}
    rows: dict[str, Line] = {}
    for name, (program, values) in programs.items():
        states[name] = program.start(values, TUNING_SEED)
        rows[name] = {"compile": round(program.compile(values, states[name]), 2), "seconds": []}
    for number in range(ROUNDS + 1):
        for name, (program, values) in programs.items():
            started = time.perf_counter()
            for step in range(STEPS):
                batch = program.batch(TUNING_SEED, step)
                states[name], loss = program.step(values, states[name], batch)
            loss.block_until_ready()
            if number:  # the first round only warms up
                rows[name]["seconds"].append(round((time.perf_counter() - started) / STEPS, 6))
    return rows


def values_of(name: str, settings: Settings) -> dict[str, np.generic]:
    """Return a run's numbers."""
    return traced(OPTIMIZERS[name].numbers, settings)


def _bar(record: Record, chosen: Field) -> tqdm:
    found = [tuned(record, chosen.task, name) for name in chosen.optimizers]
    done = sum(len(one.trials) + len(one.counts) for one in found if one)
    return tqdm(total=_runs(record, chosen), initial=done, unit="run", disable=None)


def _runs(record: Record, chosen: Field) -> int:
    """Return how many runs there are, with those that are still to come in the rounds so far."""
    rounds = sum(max(1, len(record.of(ROUND, name))) for name in chosen.optimizers)
    return rounds * chosen.task.trials + len(chosen.optimizers) * chosen.task.seeds


def _score(trial: Line) -> float:
    score = trial["runs"][0]["score"]
    return math.inf if score is None else score


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _untold(*_: Any) -> Any:
    raise NotImplementedError("the arena plans this study, and does not train it")
