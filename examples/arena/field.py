"""What competes on what, by name or from a user's file, and checks of it."""

import dataclasses
import hashlib
import importlib
import importlib.util
import io
import json
import math
import os
import token
import tokenize
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from common.checks import nearest

from arena.contract import Knob, Optimizer, Params, Task
from arena.space import BATCH, EMA, to_json
from arena.trial import size, task_start

ONE_BATCH = "-batch-"  # in the name of a task with one batch size alone
FIRST_FRESH_SEED = 100  # of all that are fresh; seeds below are for tuning
# Raised whenever other settings would be tried, or judged otherwise: 1 had stages of points, 2 new
# rounds of trials in wider ranges, 3 no more points of the sequence where nothing had learned, 4 no
# average of the weights, 5 graded a miss beside a seed that got there by its steps alone.
TUNER = 6
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
    """A task and the optimizers that compete on it, by name.

    `code` is a digest of the file that they come from, empty for the arena's own.
    """

    task: Task
    optimizers: Mapping[str, Optimizer]
    code: str = ""

    def only(self, names: Iterable[str]) -> "Field":
        """Return the field with some of the optimizers; no name means all.

        Raises:
            ValueError: an unknown name.
        """
        chosen = list(names) or list(self.optimizers)
        for name in chosen:
            check_known("an optimizer", name, self.optimizers)
        return dataclasses.replace(
            self, optimizers={name: self.optimizers[name] for name in chosen}
        )

    @property
    def fresh_seeds(self) -> tuple[int, ...]:
        """The seeds that count."""
        first = self.task.first_fresh_seed
        return tuple(range(first, first + self.task.seeds))

    def config(self) -> dict[str, Any]:
        """Return what decides the results, for a log's first line."""
        plain = {name: getattr(self.task, name) for name in PLAIN}
        config = {
            "task": plain | {"title": self.task.title, "note": self.task.note},
            "tuner": TUNER,
            **({"code": self.code} if self.code else {}),
            "fresh_seeds": self.fresh_seeds,
            "ranges": {
                name: [to_json(knob) for knob in one.knobs] for name, one in self.optimizers.items()
            },
        }
        return json.loads(json.dumps(config))


def load(source: str, trials: int | None = None, batch: int | None = None) -> Field:
    """Return the field of a task's name, or of a file that defines `task`.

    `trials` replaces the task's number of trials. With `batch` the task has that batch size alone,
    and a name that says so.

    A file may define `optimizers` as well, to compete instead of the arena's own.

    Raises:
        ValueError: an unknown name, or a file without a task.
        OSError: the file cannot be read.
    """
    path = Path(source)
    if path.suffix == ".py" or os.sep in source:
        task, optimizers, code = _from_file(path)
    else:
        tasks = importlib.import_module("arena.tasks").TASKS
        check_known("a task", source, tasks)
        task, optimizers, code = tasks[source], None, ""
    if optimizers is None:
        optimizers = importlib.import_module("arena.optimizers").OPTIMIZERS.values()
    changes: dict[str, Any] = {} if trials is None else {"trials": trials}
    for name in ("batches", "tuning_seeds"):
        value = getattr(task, name)
        changes[name] = tuple(value) if isinstance(value, Iterable) else value
    if batch is not None:
        name, title = f"{task.name}{ONE_BATCH}{batch}", f"{task.title}, batch size {batch}"
        changes |= {"name": name, "title": title, "batches": (batch,)}
    by_name: dict[str, Optimizer] = {}
    for one in optimizers:
        _require(
            isinstance(one, Optimizer),
            f"an optimizer is an arena.contract.Optimizer, got {one!r}; see arena/recipes.py",
        )
        _require(
            one.name not in by_name,
            f"optimizers have names of their own, and two are called {one.name!r}; rename one",
        )
        by_name[one.name] = _entered(one)
    return Field(dataclasses.replace(task, **changes), by_name, code)


def _entered(optimizer: Optimizer) -> Optimizer:
    """Return an optimizer with all of its knobs in a tuple: its own, and the average of weights."""
    own = [dataclasses.replace(one, choices=tuple(one.choices or ())) for one in optimizer.knobs]

    def make(values: Mapping[str, Any], task: Task, params: Params) -> Any:
        return optimizer.make({knob.name: values[knob.name] for knob in own}, task, params)

    return dataclasses.replace(optimizer, knobs=(*own, EMA), make=make)


def _from_file(path: Path) -> tuple[Task, Iterable[Optimizer] | None, str]:
    """Return task, optimizers, if any, and a digest of the code, comments left out."""
    if not path.is_file():
        raise FileNotFoundError(f"a task's file must be there, and {path} is not; name another")
    spec = importlib.util.spec_from_file_location(f"arena_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"a task's file is Python and ends in .py, got {path}; rename it")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        code = _code(path.read_text(encoding="utf-8"))
    except Exception as error:
        raise ValueError(
            f"a task's file must run, and {path} fails with {type(error).__name__}: {error}; "
            "see examples/arena/own_task.py"
        ) from error
    task = getattr(module, "task", None)
    if not isinstance(task, Task):
        raise ValueError(
            f"a task's file defines `task = Task(...)`, and {path} has {task!r} there; "
            "see examples/arena/own_task.py"
        )
    optimizers = getattr(module, "optimizers", None)
    if isinstance(optimizers, Mapping):
        optimizers = tuple(optimizers.values())
    return task, optimizers, hashlib.sha256(code.encode()).hexdigest()[:16]


def _code(text: str) -> str:
    """Return a program without its comments and empty lines."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return " ".join(one.string for one in tokens if one.type not in (token.COMMENT, token.NL))


def check_known(what: str, name: str, known: Iterable[str]) -> None:
    """Raise ValueError with the most similar name if `name` is unknown."""
    known = list(known)
    if name not in known:
        hint = nearest(name, known)
        raise ValueError(
            f"{what} is one of {', '.join(known)}; got {name!r}; {hint}name one of these"
        )


def check_field(field: Field) -> None:
    """Refuse a task or an optimizer that could not be run to its end; nothing is trained.

    Raises:
        ValueError: what is wrong, and what to do.
    """
    task = field.task
    _check_numbers(task)
    for seed in task.tuning_seeds[1:]:
        _check_data(task, *task.data(seed))
    params, _, train, test = task_start(task, task.tuning_seeds[0])
    _check_data(task, train, test)
    _check_scalar("loss", task.loss, params, train)
    _shape_of("the gradient of loss", jax.grad(task.loss), params, train)
    _check_scalar("score", task.score, params, test)
    _check_start(task, params, test)
    if task.hidden is not None:
        got: Any = jax.tree.structure(task.hidden(params))
        _require(
            got == jax.tree.structure(params),
            f"hidden must return a bool for each parameter, got {got}",
        )
    for optimizer in field.optimizers.values():
        check_optimizer(optimizer, task, params)


def check_optimizer(optimizer: Optimizer, task: Task, params: Params) -> None:
    """Refuse knobs without a range, and updates that are not of the parameters' shapes."""
    names = [knob.name for knob in optimizer.knobs]
    _require(
        len({*names, BATCH}) == len(names) + 1,
        f"knobs have names of their own, and {BATCH!r} and {EMA.name!r} are everybody's; "
        f"{optimizer.name} has {names}; rename one",
    )
    for knob in optimizer.knobs:
        _check_knob(optimizer, knob)

    def updates(values: dict[str, jax.Array], params: Params) -> Params:
        transform = optimizer.make(values, task, params)
        return transform.update(params, transform.init(params), params)[0]

    values = {
        knob.name: jax.ShapeDtypeStruct((), "int32" if knob.choices else "float32")
        for knob in optimizer.knobs
    }
    got, wanted = _shapes(jax.eval_shape(updates, values, params)), _shapes(params)
    _require(
        got == wanted,
        f"updates must have the parameters' shapes, and {optimizer.name} makes {got} for {wanted}; "
        "mend its `make`",
    )


def _check_knob(optimizer: Optimizer, knob: Knob) -> None:
    where = f"the knob {knob.name} of {optimizer.name}"
    if knob.choices:
        _require(knob.low is None and knob.high is None, f"{where} has both; drop one")
        return
    _require(
        knob.low is not None and knob.high is not None and knob.low < knob.high,
        f"a range goes from low to high, and {where} goes from {knob.low} to {knob.high}; set both",
    )
    _require(
        not knob.log or (knob.low or 0) > 0,
        f"a range in log scale begins above 0, and {where} begins at {knob.low}; use log=False",
    )
    least, most = (
        -math.inf if knob.least is None else knob.least,
        math.inf if knob.most is None else knob.most,
    )
    _require(
        least <= (knob.low or 0) and (knob.high or 0) <= most,
        f"a range lies within its limits, and {where} goes from {knob.low} to {knob.high}, with "
        f"least={knob.least} and most={knob.most}; narrow the range",
    )


def _check_numbers(task: Task) -> None:
    target: Any = task.target
    _require(
        isinstance(target, (int, float)) and math.isfinite(target),
        f"a task needs a target, a finite score to reach, got {target!r}; set target=0.95, say",
    )
    _require(
        task.name != "" and not set(task.name) & set("/\\ \t\n"),
        f"a task's name names a file, got {task.name!r}; use letters, digits and hyphens",
    )
    for name in ("steps", "every", "hold", "trials", "seeds"):
        value = getattr(task, name)
        _require(
            isinstance(value, int) and value >= 1,
            f"{name} must be a whole number of at least 1, got {value!r}; raise it",
        )
    _require(
        task.first_fresh_seed >= FIRST_FRESH_SEED,
        f"seeds that count begin at {FIRST_FRESH_SEED}, apart from those of the tuning, got "
        f"first_fresh_seed={task.first_fresh_seed}; leave it out",
    )
    _require(
        task.every <= task.steps,
        f"a trial must have a look, got every={task.every} with steps={task.steps}; lower every",
    )
    _require(
        isinstance(task.tuning_seeds, tuple)
        and 0 < len(task.tuning_seeds) == len(set(task.tuning_seeds))
        and all(isinstance(s, int) and 0 <= s < FIRST_FRESH_SEED for s in task.tuning_seeds),
        f"tuning seeds differ and lie in [0, {FIRST_FRESH_SEED}), apart from those that count, got "
        f"{task.tuning_seeds}; (0, 1) will do",
    )


def _check_data(task: Task, train: Any, test: Any) -> None:
    for name, batch in (("training", train), ("test", test)):
        counts = {leaf.shape[0] if np.ndim(leaf) else 0 for leaf in jax.tree.leaves(batch)}
        _require(
            len(counts) == 1 and 0 not in counts,
            f"arrays of the {name} data have an equal number of examples on axis 0, got "
            f"{sorted(counts)}; cut them alike",
        )
    count, batches = size(train), task.batches
    _require(
        isinstance(batches, tuple)
        and len(batches) > 0
        and all(isinstance(one, int) for one in batches)
        and list(batches) == sorted(set(batches))
        and batches[0] >= 1,
        f"batch sizes are whole numbers that ascend from at least 1, got {batches}; name them so",
    )
    _require(
        batches[-1] <= count,
        f"a batch must fit into the training set, got a size of {batches[-1]} with {count} "
        f"examples; {count} is the whole set",
    )


def _check_start(task: Task, params: Params, test: Any) -> None:
    """Refuse a target that the initial values are at: mostly, `lower` is wrong."""
    score = float(jax.jit(task.score)(params, test))
    _require(
        not (score <= task.target if task.lower else score >= task.target),
        f"the initial values must not be at the target, and with lower={task.lower} their score of "
        f"{score:.4g} is at {task.target:g}; set lower={not task.lower}, or another target",
    )


def _check_scalar(name: str, function: Callable, params: Params, batch: Any) -> None:
    got = _shape_of(name, function, params, batch)
    _require(
        getattr(got, "shape", None) == (),
        f"{name} must return a scalar, got {_shapes(got)}; use its mean",
    )


def _shape_of(name: str, function: Callable, params: Params, batch: Any) -> Any:
    try:
        return jax.eval_shape(function, params, batch)
    except Exception as error:
        raise ValueError(
            f"{name} must run on the data, and fails with {type(error).__name__}: {error}"
        ) from error


def _shapes(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: leaf.shape, tree)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
