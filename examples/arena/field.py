"""What competes on what: a task by its name or from a user's file, and the optimizers."""

import dataclasses
import importlib
import importlib.util
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from grokking.tasks import nearest

from arena.contract import Optimizer, Task
from arena.space import to_json

FIRST_FRESH_SEED = 100
# What of a task is in its log's first line, and must not change while the log grows.
PLAIN = (
    "name",
    "target",
    "steps",
    "batches",
    "every",
    "hold",
    "trials",
    "seeds",
    "tuning_seeds",
    "lower",
)


@dataclasses.dataclass(frozen=True)
class Field:
    """A task and the optimizers that compete on it, by name."""

    task: Task
    optimizers: Mapping[str, Optimizer]

    def only(self, names: Iterable[str]) -> "Field":
        """Return the field with some of the optimizers; no name means all.

        Raises:
            ValueError: an unknown name.
        """
        chosen = list(names) or list(self.optimizers)
        for name in chosen:
            check_known("an optimizer", name, self.optimizers)
        return Field(self.task, {name: self.optimizers[name] for name in chosen})

    @property
    def fresh_seeds(self) -> tuple[int, ...]:
        """The seeds that count."""
        return tuple(range(FIRST_FRESH_SEED, FIRST_FRESH_SEED + self.task.seeds))

    def config(self) -> dict[str, Any]:
        """Return what decides the results, for a log's first line."""
        plain = {name: getattr(self.task, name) for name in PLAIN}
        config = {
            "task": plain | {"title": self.task.title, "note": self.task.note},
            "fresh_seeds": self.fresh_seeds,
            "ranges": {
                name: [to_json(knob) for knob in one.knobs] for name, one in self.optimizers.items()
            },
        }
        return json.loads(json.dumps(config))


def load(source: str, trials: int | None = None) -> Field:
    """Return the field of a task's name, or of a file that defines `task`.

    A file may define `optimizers` as well, to compete instead of the arena's own.

    Raises:
        ValueError: an unknown name, or a file without a task.
        OSError: the file cannot be read.
    """
    path = Path(source)
    if path.suffix == ".py" or os.sep in source:
        task, optimizers = _from_file(path)
    else:
        tasks = importlib.import_module("arena.tasks").TASKS
        check_known("a task", source, tasks)
        task, optimizers = tasks[source], None
    if optimizers is None:
        optimizers = importlib.import_module("arena.optimizers").OPTIMIZERS.values()
    changes: dict[str, Any] = {} if trials is None else {"trials": trials}
    for name in ("batches", "tuning_seeds"):
        changes[name] = tuple(getattr(task, name))
    return Field(dataclasses.replace(task, **changes), {one.name: one for one in optimizers})


def _from_file(path: Path) -> tuple[Task, Iterable[Optimizer] | None]:
    if not path.is_file():
        raise FileNotFoundError(f"a task's file must be there, and {path} is not; name another")
    spec = importlib.util.spec_from_file_location(f"arena_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"a task's file is Python and ends in .py, got {path}; rename it")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    task = getattr(module, "task", None)
    if not isinstance(task, Task):
        raise ValueError(
            f"a task's file defines `task = Task(...)`, and {path} has {task!r} there; "
            "see examples/arena/own_task.py"
        )
    optimizers = getattr(module, "optimizers", None)
    return task, tuple(optimizers.values()) if isinstance(optimizers, Mapping) else optimizers


def check_known(what: str, name: str, known: Iterable[str]) -> None:
    """Raise ValueError with the most similar name if `name` is unknown."""
    known = list(known)
    if name not in known:
        hint = nearest(name, known)
        raise ValueError(f"{what} is one of {', '.join(known)}; got {name!r}; {hint}see `list`")
