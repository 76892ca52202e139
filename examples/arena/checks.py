"""What is refused before anything runs: each error has the rule, the value, and the remedy."""

import math
from typing import Any

import jax

from arena.contract import Knob, Optimizer, Params, Task
from arena.field import FIRST_FRESH_SEED, Field
from arena.space import BATCH
from arena.trial import size, task_start


def check_field(field: Field) -> None:
    """Refuse a task or an optimizer that could not be run to its end; nothing is trained.

    Raises:
        ValueError: what is wrong, and what to do.
    """
    task = field.task
    _check_numbers(task)
    params, _, train, test = task_start(task, task.tuning_seeds[0])
    _check_data(task, train, test)
    _check_scalar("loss", "use its mean", jax.eval_shape(task.loss, params, train))
    _check_scalar("score", "use its mean", jax.eval_shape(task.score, params, test))
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
        f"knobs have names of their own other than {BATCH!r}, and {optimizer.name} has {names}; "
        "rename one",
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
        task.every <= task.steps,
        f"a trial must have a look, got every={task.every} with steps={task.steps}; lower every",
    )
    _require(
        len(task.tuning_seeds) > 0 and all(0 <= s < FIRST_FRESH_SEED for s in task.tuning_seeds),
        f"tuning seeds lie in [0, {FIRST_FRESH_SEED}), apart from those that count, got "
        f"{task.tuning_seeds}; (0, 1) will do",
    )


def _check_data(task: Task, train: Any, test: Any) -> None:
    for name, batch in (("training", train), ("test", test)):
        counts = {len(leaf) for leaf in jax.tree.leaves(batch)}
        _require(
            len(counts) == 1 and 0 not in counts,
            f"arrays of the {name} data have an equal number of examples on axis 0, got "
            f"{sorted(counts)}; cut them alike",
        )
    count, batches = size(train), task.batches
    _require(
        len(batches) > 0 and list(batches) == sorted(set(batches)) and batches[0] >= 1,
        f"batch sizes ascend from at least 1, got {batches}; name them so",
    )
    _require(
        batches[-1] <= count,
        f"a batch must fit into the training set, got a size of {batches[-1]} with {count} "
        f"examples; {count} is the whole set",
    )


def _check_scalar(name: str, remedy: str, got: Any) -> None:
    _require(
        getattr(got, "shape", None) == (),
        f"{name} must return a scalar, got {_shapes(got)}; {remedy}",
    )


def _shapes(tree: Any) -> Any:
    shapes = jax.tree.map(lambda leaf: leaf.shape, tree)
    return shapes


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
