"""One run as a value, and changes of it on the command line."""

import dataclasses
import json
import math
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from common.checks import check_choice, check_least, nearest

from grokking.optimizers import FACTORIES, Optimizer, settings_of
from grokking.tasks import TASKS, ModularArithmetic, Task


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run. The defaults are the paper's for modular addition.

    Args:
        task: what to learn; it brings its network.
        optimizer: how to learn it.
        width: number of hidden units, or width of the transformer's residual stream.
        init_scale: factor on every initial value of the network.
        batch_size: examples of a step; an epoch's last partial batch is dropped.
        epochs: the run ends after this many epochs at the latest.
        target: test accuracy at which a run counts as generalized, and ends; None goes on.
        epochs_after_target: epochs to go on after the target.
        measure_every: epochs from one measurement, and line of the log, to the next.
        spectra_at: measured epochs (0: the start) at which the log gets the singular values of
            hidden/kernel's full-batch gradient.
        seed: decides the split, the initial values and the order of the batches, alone.

    Raises:
        ValueError: a number outside its range.
    """

    task: Task = ModularArithmetic()  # noqa: RUF009 (frozen)
    optimizer: Optimizer = Optimizer(  # noqa: RUF009 (frozen)
        "egd", {"learning_rate": 0.7, "weight_decay": 1e-4, "switch_off": 0.95}
    )
    width: int = 512
    init_scale: float = 1.0
    batch_size: int = 512
    epochs: int = 12_000
    target: float | None = 0.95
    epochs_after_target: int = 0
    measure_every: int = 1
    spectra_at: tuple[int, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("width", "batch_size", "epochs", "measure_every"):
            check_least(name, getattr(self, name), 1)
        check_least("epochs_after_target", self.epochs_after_target, 0)
        if any(not 0 <= epoch <= self.epochs for epoch in self.spectra_at):
            raise ValueError(
                f"spectra_at must lie in [0, epochs], got {self.spectra_at} with "
                f"epochs={self.epochs}; change one"
            )
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"seed must be at least 0 and below 2**32, got {self.seed}; 0 will do")
        if self.batch_size > self.task.train_size:
            raise ValueError(
                f"a batch must fit into the training set, got batch_size={self.batch_size} with "
                f"{self.task.train_size} training examples; lower batch_size"
            )
        if self.target is not None and not 0 < self.target <= 1:
            raise ValueError(
                f"target is an accuracy and must lie in (0, 1], got {self.target}; "
                "the paper uses 0.95"
            )
        if any(epoch % self.measure_every for epoch in (self.epochs, *self.spectra_at)):
            raise ValueError(
                "epochs and spectra_at must be multiples of measure_every, got "
                f"{self.epochs} and {self.spectra_at} with measure_every={self.measure_every}; "
                "change one"
            )
        shuffles = self.task.shuffle_every
        if shuffles and shuffles % self.measure_every:
            raise ValueError(
                "shuffle_every must be a multiple of measure_every, as data changes between "
                f"measurements alone; got {shuffles} with measure_every={self.measure_every}; "
                "change one"
            )

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in the training set."""
        return self.task.train_size // self.batch_size

    def changed(self, *, optimizer: str | None = None, **changes: Any) -> "Config":
        """Return a copy with other fields, and with other settings of the optimizer.

        Args:
            optimizer: name of another factory; settings that it takes are kept.
            **changes: fields of Config, and settings of the optimizer.
        """
        fields = {name: changes.pop(name) for name in list(changes) if hasattr(self, name)}
        return dataclasses.replace(
            self, optimizer=self.optimizer.changed(optimizer, **changes), **fields
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `from_dict` gives an equal Config back."""
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "task": {"kind": self.task.kind, **dataclasses.asdict(self.task)},  # type: ignore
            "optimizer": self.optimizer.to_dict(),
            "spectra_at": list(self.spectra_at),
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """Rebuild a Config from `to_dict`'s values.

        Raises:
            ValueError: an unknown task, or an unknown or missing field.
        """
        try:
            task, optimizer = dict(values["task"]), dict(values["optimizer"])
            rest = {name: values[name] for name in values if name not in ("task", "optimizer")}
            return cls(
                TASKS[task.pop("kind")](**task),
                Optimizer(optimizer.pop("name"), optimizer),
                **rest | {"spectra_at": tuple(values.get("spectra_at", ()))},
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"these values do not make a Config: {error!r}") from error


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
