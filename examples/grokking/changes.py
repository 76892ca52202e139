"""Changes of a run's settings, written FIELD=VALUE, such as `epochs=200` or `task.p=79`."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from grokking.config import Config
from grokking.optimizers import FACTORIES, settings_of
from grokking.tasks import TASKS, Task, check_choice, nearest

# What a field's type takes from JSON, in words, and the test for it.
KINDS: dict[Any, tuple[str, Callable[[Any], bool]]] = {
    int: (
        "an integer below 2**31 such as 3",
        lambda value: type(value) is int and abs(value) < 2**31,
    ),
    float: (
        "a finite number such as 0.5",
        lambda value: type(value) in (int, float) and abs(value) < math.inf,
    ),
    bool: ("true or false", lambda value: type(value) is bool),
    str: ("text", lambda value: type(value) is str),
    types.NoneType: ("null", lambda value: value is None),
    tuple[int, ...]: (
        "a list of integers such as [0,10]",
        lambda value: type(value) is list and all(type(one) is int for one in value),
    ),
}


def with_changes(config: Config, changes: Sequence[str]) -> Config:
    """Return the config with some fields set, such as `task.p=79`; values are JSON or text.

    Raises:
        ValueError: no such field, or a value that it refuses.
    """
    given = dict(map(_parsed, changes))
    if len(given) < len(changes):
        raise ValueError(f"a field is set once, got {' '.join(changes)}; leave one out")
    name = given.get("optimizer.name", config.optimizer.name)
    check_choice("optimizer.name", name, FACTORIES)
    fields = _fields(type(config.task), name)
    groups: dict[str, dict[str, Any]] = {"": {}, "task": {}, "optimizer": {}}
    for path, value in given.items():
        if path not in fields:
            raise ValueError(
                f"a change must name a field, got {path!r}; {nearest(path, fields)}"
                f"the fields are {', '.join(fields)}"
            )
        group, _, field = path.rpartition(".")
        groups[group][field] = _checked(path, value, fields[path])
    return dataclasses.replace(
        config,
        task=dataclasses.replace(config.task, **groups["task"]),  # type: ignore
        optimizer=config.optimizer.changed(**groups["optimizer"]),
        **groups[""],
    )


def option_hint(arguments: Sequence[str]) -> str | None:
    """Return what to write for the first field that stands without --set, such as --epochs 3."""
    fields = {
        path.rpartition(".")[2]: path
        for task in TASKS.values()
        for optimizer in FACTORIES
        for path in _fields(task, optimizer)
        if path != "optimizer.name"
    }
    for argument, following in zip(arguments, [*arguments[1:], "VALUE"], strict=False):
        option, equals, value = argument.partition("=")
        path = fields.get(option.replace("-", "_").strip("_").rpartition(".")[2])
        bare = equals and "--set" not in arguments
        if path and (bare or option.startswith("--")):
            change = f"{path}={value if equals else following}"
            return f"hint: settings are changed by --set; write --set {change}"
    return None


def _parsed(change: str) -> tuple[str, Any]:
    path, equals, text = change.partition("=")
    if not equals:
        raise ValueError(
            f"a change is FIELD=VALUE, got {change!r}; write {change}=VALUE, without spaces"
        )
    if path == "seed":
        raise ValueError(f"the seed has an option of its own, got {change!r}; write --seed {text}")
    try:
        return path, json.loads(text)
    except ValueError:
        return path, text


def _fields(task: type[Task], optimizer: str) -> dict[str, Any]:
    """Return the types of the fields that a change may name."""
    own = {field.name: field.type for field in dataclasses.fields(Config)}
    parts = {
        "task": {field.name: field.type for field in dataclasses.fields(task)},  # type: ignore
        "optimizer": {"name": str}
        | {name: setting.annotation for name, setting in settings_of(optimizer).items()},
    }
    return {name: kind for name, kind in own.items() if name not in (*parts, "seed")} | {
        f"{part}.{name}": kind for part, fields in parts.items() for name, kind in fields.items()
    }


def _checked(path: str, value: Any, kind: Any) -> Any:
    """Return the value as the field has it, if the field's type takes it."""
    kinds = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    if not any(KINDS[one][1](value) for one in kinds):
        words = " or ".join(KINDS[one][0] for one in kinds)
        raise ValueError(f"{path} must be {words}; got {value!r}")
    return tuple(value) if isinstance(value, list) else value
