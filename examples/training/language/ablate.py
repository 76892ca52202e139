"""The ablation: one change at a time from EGD's best settings in a comparison's log."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from arena.field import FIRST_FRESH_SEED, check_known
from arena.record import COUNT, Line, Log, Record
from arena.results import task_of
from arena.space import Settings
from tqdm import tqdm

from egd_optax import polar
from language.compare import Study, trial, tuned, values_of
from language.config import LEAST_STEPS, Config
from language.course import Program
from language.optimizers import EXACT, OPTIMIZERS, Choices, choices_of

BASE, EGD = "as tuned", "egd"
BATCHES = (8, 16, 32, 64, 128)


@dataclasses.dataclass(frozen=True)
class Change:
    """One change.

    Args:
        choices: of EGD.
        batch: another one, on as many bytes; None leaves it.
        reach: of the average, another one; None leaves it.
        factor: of the learning rate of the matrices.
        share: of the steps, along which the learning rates fall as far.
    """

    choices: Choices
    batch: int | None = None
    reach: float | None = None
    factor: float = 1.0
    share: float = 1.0


def changes(config: Config, best: Choices = EXACT) -> dict[str, Change]:
    """Return all changes by name, from the best settings' choices.

    Where the scale changes, so does the learning rate, such that a matrix width x width moves as
    far as before. Nothing else is tuned again.
    """

    def one(**changed: Any) -> Change:
        choices = dataclasses.replace(best, **changed)
        size = (config.width, config.width)
        return Change(choices, factor=best.length(*size) / choices.length(*size))

    scales = {"muon": "Muon's scale", "consistent_rms": "scale consistent_rms"}
    found = {
        BASE: one(),
        "half of the steps": Change(best, share=0.5),
        "five Polar Express steps": one(method=polar.NewtonSchulz(steps=5)),
        "Muon's five steps": one(method=polar.NewtonSchulz("standard")),
        "sketch of rank 16": one(method=polar.SubspaceIteration(rank=16)),
        "sketch of rank 64": one(method=polar.SubspaceIteration(rank=64)),
        "no average": one(average=None),
        **{
            f"average over 4 steps, {place}": dataclasses.replace(one(average=place), reach=4.0)
            for place in ("before", "after")
        },
        "coupled decay": one(decay="coupled"),
        "no scale": one(scale=None),
        **{told: one(scale=scale) for scale, told in scales.items() if scale != best.scale},
        "every 2nd step": one(every=2),
        "every 4th step": one(every=4),
    }
    most = config.batch * config.steps // LEAST_STEPS
    sizes = (size for size in BATCHES if size != config.batch and size <= most)
    return found | {f"batch {size}": Change(best, batch=size) for size in sizes}


def run(study: Study, compared: Record, path: Path, only: Iterable[str] = ()) -> Record:
    """Run all changes that the log at `path` lacks, on the first fresh seeds.

    Args:
        study: the model, the text, and how many seeds.
        compared: the comparison's log.
        path: the ablation's log.
        only: names of changes; none means all.

    Raises:
        ValueError: EGD is not tuned there, or on another model; an unknown change.
        OSError, LogError: the log cannot be used.
    """
    settings = best_settings(study, compared)
    known = changes(study.config, choices_of(settings))
    for name in only:
        check_known("a change", name, known)
    chosen = [name for name in known if name in set(only or known)]
    header = study.told(study.field.config() | {"ranges": {}, "fresh_seeds": None})
    header["task"] |= {"name": "language-ablation", "settings": settings}
    del header["task"]["seeds"]  # there may be more of them later
    with Log(path, header) as log:
        done = {(line["optimizer"], line["seed"]) for line in log.record.lines}
        todo = [one for one in _jobs(chosen, study.seeds) if one not in done]
        ran = {  # by the comparison
            (BASE, line["seed"]): line | {"optimizer": BASE, "round": 0}
            for line in compared.of(COUNT, EGD)
            if line["settings"] == settings
        }
        bar = tqdm(todo, unit="run", disable=None)
        last, program = "", None
        for name, seed in bar:
            bar.set_postfix_str(name)
            if (name, seed) in ran:
                log.add(ran[name, seed])
                continue
            if program is None or name != last:
                last, program = name, _program(study, known[name])
            log.add(_line(name, known[name], program, settings, seed))
        return log.record


def best_settings(study: Study, compared: Record) -> Settings:
    """Return EGD's best settings in a comparison's log."""
    for name, value in study.told({"task": {}})["task"].items():
        if compared.header["task"].get(name) != value:
            raise ValueError(
                f"an ablation is of the comparison's model and text, and its log has {name}="
                f"{compared.header['task'].get(name)}, not {value}; give the same options"
            )
    found = tuned(compared, task_of(compared), EGD)
    if found is None or not found.complete:
        raise ValueError("this needs EGD's best settings, and the log has none; `compare` first")
    return found.best["settings"]


def _jobs(names: Iterable[str], seeds: int) -> Iterator[tuple[str, int]]:
    for name in names:
        for seed in range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + seeds):
            yield name, seed


def _program(study: Study, change: Change) -> Program:
    config = study.config.at_equal_tokens(change.batch or study.config.batch)
    config = dataclasses.replace(config, steps=max(LEAST_STEPS, int(change.share * config.steps)))
    return Program(config, OPTIMIZERS[EGD], study.text, change.choices)


def _line(name: str, change: Change, program: Program, settings: Settings, seed: int) -> Line:
    changed = settings | {
        "learning_rate": settings["learning_rate"] * change.factor,
        "batch": program.config.batch,
        "reach": change.reach or settings["reach"],
    }
    if "scale" in settings:
        changed["scale"] = change.choices.scale
    if "average" in settings:
        changed["average"] = change.choices.average
    about = {"kind": COUNT, "optimizer": name, "round": 0, "settings": changed}
    return about | trial(program, values_of(EGD, changed), seed)
