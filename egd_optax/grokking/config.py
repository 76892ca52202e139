"""One run as a value, and the paper's runs as a table."""

import dataclasses
import math
from typing import Any, Literal, get_args

from egd_optax.grokking.tasks import TASKS, ModularArithmetic, SparseParity, Task

OptimizerName = Literal["egd", "sgd", "column_norm"]
MatricesName = Literal["first", "all"]
MethodName = Literal["auto", "svd", "gram", "newton_schulz", "randomized"]
DecayName = Literal["coupled", "decoupled"]
CHOICES = {
    "optimizer": get_args(OptimizerName),
    "matrices": get_args(MatricesName),
    "method": get_args(MethodName),
    "decay": get_args(DecayName),
}
LEAST = {"width": 1, "batch_size": 1, "epochs": 1, "epochs_after_target": 0, "seed": 0}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run.

    The defaults are the paper's for modular addition, but for the method: a full SVD there and in
    the recipes.

    Args:
        task: what to learn, and on how much of it.
        width: number of hidden units.
        optimizer: what happens to the matrices' gradients: whitened (egd), left alone (sgd), or
            divided by the norms of their columns (column_norm).
        matrices: which gradients: `first` is hidden/kernel, as in the paper; `all` every 2-D one.
        method: how the polar factor is computed; `auto` is exact.
        rank: directions that the randomized method keeps; for that method only.
        decay: `coupled` adds the decay to the gradient before the whitening, as in the paper;
            `decoupled` after it.
        learning_rate: step size of every leaf.
        weight_decay: coefficient of the decay, on every leaf.
        batch_size: examples of a step; an epoch's last partial batch is dropped.
        epochs: the run ends after this many epochs at the latest.
        target: test accuracy at which a run counts as generalised, and ends.
        epochs_after_target: epochs to go on after the target.
        switch_off: test accuracy above which the next epoch is plain SGD, looked at anew each
            epoch; None never switches.
        seed: decides the split, the initial values and the order of the batches, alone.

    Raises:
        ValueError: an unknown name, or a number outside its range.
    """

    task: Task = ModularArithmetic()  # noqa: RUF009 (frozen)
    width: int = 512
    optimizer: OptimizerName = "egd"
    matrices: MatricesName = "first"
    method: MethodName = "auto"
    rank: int | None = None
    decay: DecayName = "coupled"
    learning_rate: float = 0.7
    weight_decay: float = 1e-4
    batch_size: int = 512
    epochs: int = 12_000
    target: float = 0.95
    epochs_after_target: int = 0
    switch_off: float | None = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        _check_names(self)
        _check_rank(self)
        _check_numbers(self)
        _check_accuracies(self)

    @property
    def label(self) -> str:
        """Short name of the run, for file names and legends."""
        method = self.method if self.rank is None else f"{self.method}{self.rank}"
        details = {
            "egd": f"-{self.matrices}-{method}",
            "column_norm": f"-{self.matrices}",
            "sgd": "",
        }
        return f"{self.task.name}-{self.optimizer}{details[self.optimizer]}-seed{self.seed}"

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `from_dict` gives an equal Config back."""
        return {
            **dataclasses.asdict(self),
            "task": {"kind": self.task.kind, **dataclasses.asdict(self.task)},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """Rebuild a Config from `to_dict`'s values.

        Raises:
            ValueError: an unknown task, or an unknown or missing field.
        """
        task = dict(values.get("task", {}))
        kind = task.pop("kind", None)
        if kind not in TASKS:
            raise ValueError(f"the task's kind must be one of {', '.join(TASKS)}; got {kind!r}")
        try:
            return cls(**{**values, "task": TASKS[kind](**task)})
        except TypeError as error:
            raise ValueError(f"these values do not make a Config: {error}") from error


def _check_names(config: Config) -> None:
    for field, choices in CHOICES.items():
        if getattr(config, field) not in choices:
            raise ValueError(
                f"{field} must be one of {', '.join(choices)}; got {getattr(config, field)!r}"
            )


def _check_rank(config: Config) -> None:
    if config.rank is not None and config.rank < 1:
        raise ValueError(f"rank must be at least 1, got {config.rank}; the paper uses 10 to 128")
    if config.method == "randomized" and config.rank is None:
        raise ValueError("the randomized method needs a rank, got None; set one, for example 64")
    if config.method != "randomized" and config.rank is not None:
        raise ValueError(
            f"rank belongs to the randomized method, got rank={config.rank} with method "
            f"{config.method!r}; drop the rank or choose the randomized method"
        )


def _check_numbers(config: Config) -> None:
    if not (config.learning_rate > 0.0 and math.isfinite(config.learning_rate)):
        raise ValueError(
            f"learning_rate must be positive and finite, got {config.learning_rate}; "
            "the paper uses 0.7"
        )
    if not (config.weight_decay >= 0.0 and math.isfinite(config.weight_decay)):
        raise ValueError(
            f"weight_decay must be finite and not negative, got {config.weight_decay}; "
            "0 turns it off"
        )
    for name, least in LEAST.items():
        if getattr(config, name) < least:
            raise ValueError(f"{name} must be at least {least}, got {getattr(config, name)}")
    if config.seed >= 2**32:
        raise ValueError(f"seed must be below 2**32, got {config.seed}; choose a smaller one")
    if config.batch_size > config.task.train_size:
        raise ValueError(
            f"a batch must fit into the training set, got batch_size={config.batch_size} with "
            f"{config.task.train_size} training examples; lower batch_size"
        )


def _check_accuracies(config: Config) -> None:
    for name in ("target", "switch_off"):
        value = getattr(config, name)
        if value is not None and not 0.0 < value <= 1.0:
            raise ValueError(
                f"{name} is an accuracy and must lie in (0, 1], got {value}; the paper uses 0.95"
            )


# Settings of the paper's Table 1. The cap on the epochs lies above its slowest SGD (10116).
RECIPES: dict[str, Config] = {
    **{
        f"{operation}-{p}": Config(task=ModularArithmetic(operation, p), method="svd")
        for operation in ("addition", "multiplication")
        for p in (79, 97, 127)
    },
    **{
        f"parity-{k}": Config(
            task=SparseParity(n, k),
            method="svd",
            width=width,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            batch_size=32,
        )
        for k, n, width, learning_rate, weight_decay in (
            (2, 400, 50, 0.01, 1e-3),
            (3, 100, 100, 0.0416239, 1e-2),
            (4, 50, 100, 0.0230841, 1e-2),
        )
    },
}
