"""One run as a value."""

import dataclasses
import math
import sys
from typing import Any, Literal, get_args

from grokking.tasks import TASKS, ModularArithmetic, SparseParity, Task

GradientName = Literal["raw", "egd", "column_norm", "norm", "grokfast_ema", "grokfast_ma"]
OptimizerName = Literal["sgd", "adam", "radam", "rmsprop", "muon"]
MatricesName = Literal["first", "all", "feed_forward"]
MethodName = Literal["auto", "svd", "gram", "newton_schulz", "randomized", "streaming"]
DecayName = Literal["coupled", "between", "decoupled"]
RelabelName = Literal["examples", "classes"]
CHOICES = {
    "gradient": get_args(GradientName),
    "optimizer": get_args(OptimizerName),
    "matrices": get_args(MatricesName),
    "method": get_args(MethodName),
    "decay": get_args(DecayName),
    "relabel": get_args(RelabelName),
}
SKETCHES = ("randomized", "streaming")
LEAST = {
    "width": 1,
    "every": 1,
    "blend_steps": 0,
    "warmup_steps": 0,
    "batch_size": 1,
    "epochs": 1,
    "epochs_after_target": 0,
    "measure_every": 1,
    "phases": 1,
    "seed": 0,
}
TINY = sys.float_info.min
# Half-open ranges of the other numbers, the rule in words, and a remedy.
RANGES = {
    "learning_rate": (TINY, math.inf, "be positive and finite", "the paper uses 0.7"),
    "init_scale": (TINY, math.inf, "be positive and finite", "1 is the network's own"),
    "floor": (TINY, math.inf, "be positive and finite", "the published code has 1e-6"),
    "weight_decay": (0.0, math.inf, "be finite and not negative", "0 turns it off"),
    "power": (-math.inf, math.inf, "be finite", "0 whitens"),
    "momentum": (0.0, 1.0, "lie in [0, 1)", "0 turns it off"),
    "b2": (0.0, 1.0, "lie in [0, 1)", "0.999 is usual"),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides a run.

    The defaults are the paper's for modular addition, but for the method: a full SVD there and in
    the recipes. The task brings its network: TwoLayerMLP for one-hots and signs, DecoderTransformer
    for tokens, MLP with two hidden layers for images.

    Args:
        task: what to learn, and on how much of it.
        width: number of hidden units, or width of the transformer's residual stream.
        init_scale: factor on every initial value of the network.
        gradient: what becomes of the gradient first: nothing (raw), chosen matrices are whitened
            (egd), divided by the norms of their columns (column_norm) or scaled to the length of
            a whitened one (norm), or slow components are amplified (grokfast_ema, grokfast_ma).
        matrices: which gradients egd, column_norm and norm change: `first` is hidden/kernel, as
            in the paper; `all` every kernel of two axes; `feed_forward` the transformer's four.
        method: how the polar factor is computed; `auto` is exact.
        rank: directions that the sketches (randomized, streaming) keep; for them only.
        power: exponent q of the singular values in U S^q V^T; 0 whitens. Other than 0: svd only.
        floor: absolute least singular value to divide by, as in the published code, in place of
            the relative rank tolerance; svd only.
        momentum: decay rate of a moving average of the gradient before it is whitened.
        every: whitening at every k-th step only, the raw gradient at the others.
        blend_steps: steps over which the raw gradient goes over into the whitened one.
        switch_off: test accuracy above which what follows is raw, looked at after each
            measurement; None never switches.
        latch: whether the switch stays, once it has happened.
        decay: where the decay joins: `coupled` before the gradient's change, as in the paper;
            `between` after it and before the optimizer, as in torch's Adam; `decoupled` after
            the optimizer.
        optimizer: what makes the step: sgd (the change itself), adam, radam, rmsprop, muon.
        b2: adam's, radam's decay rate of the squared gradients.
        learning_rate: step size of every leaf.
        warmup_steps: steps of a linear warm-up of the learning rate.
        weight_decay: coefficient of the decay, on every leaf.
        batch_size: examples of a step; an epoch's last partial batch is dropped.
        epochs: the run ends after this many epochs at the latest.
        target: test accuracy at which a run counts as generalised, and ends; None goes on.
        epochs_after_target: epochs to go on after the target.
        measure_every: epochs from one measurement, and line of the log, to the next.
        spectra_at: epochs (0: the start) at which the log gets the singular values of the first
            matrix's full-batch gradient.
        phases: equal parts of the run; between them the labels are shuffled.
        relabel: what is shuffled: the training set's labels among its `examples`, or the names of
            the `classes` in both sets.
        seed: decides the split, the initial values and the order of the batches, alone.

    Raises:
        ValueError: an unknown name, a number outside its range, or settings that do not go
            together.
    """

    task: Task = ModularArithmetic()  # noqa: RUF009 (frozen)
    width: int = 512
    init_scale: float = 1.0
    gradient: GradientName = "egd"
    matrices: MatricesName = "first"
    method: MethodName = "auto"
    rank: int | None = None
    power: float = 0.0
    floor: float | None = None
    momentum: float = 0.0
    every: int = 1
    blend_steps: int = 0
    switch_off: float | None = 0.95
    latch: bool = False
    decay: DecayName = "coupled"
    optimizer: OptimizerName = "sgd"
    b2: float = 0.999
    learning_rate: float = 0.7
    warmup_steps: int = 0
    weight_decay: float = 1e-4
    batch_size: int = 512
    epochs: int = 12_000
    target: float | None = 0.95
    epochs_after_target: int = 0
    measure_every: int = 1
    spectra_at: tuple[int, ...] = ()
    phases: int = 1
    relabel: RelabelName = "examples"
    seed: int = 0

    def __post_init__(self) -> None:
        _check_names(self)
        _check_method(self)
        _check_numbers(self)
        _check_shares(self)
        _check_epochs(self)

    @property
    def label(self) -> str:
        """Short name of the run, for file names and legends."""
        method = self.method if self.rank is None else f"{self.method}{self.rank}"
        details = {
            "egd": f"-{self.matrices}-{method}",
            "column_norm": f"-{self.matrices}",
            "norm": f"-{self.matrices}",
        }
        parts = [f"{self.task.name}-{self.gradient}{details.get(self.gradient, '')}"]
        return "-".join([*parts, self.optimizer, f"seed{self.seed}"])

    @property
    def steps_per_epoch(self) -> int:
        """Number of full batches in the training set."""
        return self.task.train_size // self.batch_size

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; `from_dict` gives an equal Config back."""
        return {
            **dataclasses.asdict(self),
            "task": {"kind": self.task.kind, **dataclasses.asdict(self.task)},
        }

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """Rebuild a Config from `to_dict`'s values, also from those of version 0.1's logs.

        Raises:
            ValueError: an unknown task, or an unknown or missing field.
        """
        if "gradient" not in values and "optimizer" in values:  # version 0.1: one name for both
            first = {"sgd": "raw"}.get(values["optimizer"], values["optimizer"])
            values = {**values, "gradient": first, "optimizer": "sgd"}
        task = dict(values.get("task", {}))
        kind = task.pop("kind", None)
        if kind not in TASKS:
            raise ValueError(f"the task's kind must be one of {', '.join(TASKS)}; got {kind!r}")
        try:
            spectra = tuple(values.get("spectra_at", ()))
            return cls(**{**values, "task": TASKS[kind](**task), "spectra_at": spectra})
        except TypeError as error:
            raise ValueError(f"these values do not make a Config: {error}") from error


def _check_names(config: Config) -> None:
    for field, choices in CHOICES.items():
        if getattr(config, field) not in choices:
            raise ValueError(
                f"{field} must be one of {', '.join(choices)}; got {getattr(config, field)!r}"
            )


def _check_method(config: Config) -> None:
    if config.rank is not None and config.rank < 1:
        raise ValueError(f"rank must be at least 1, got {config.rank}; the paper uses 10 to 128")
    if config.method in SKETCHES and config.rank is None:
        raise ValueError(
            f"the {config.method} method needs a rank, got None; set one, for example 64"
        )
    if config.method not in SKETCHES and config.rank is not None:
        raise ValueError(
            f"rank belongs to the {' and '.join(SKETCHES)} methods, got rank={config.rank} with "
            f"method {config.method!r}; drop the rank or choose one of them"
        )
    if config.power != 0 and config.floor is not None:
        raise ValueError(
            f"power and floor are two ways to treat the singular values, got power={config.power} "
            f"with floor={config.floor}; choose one"
        )
    options = {"momentum": 0.0, "every": 1, "blend_steps": 0}
    idle = [name for name, off in options.items() if getattr(config, name) != off]
    if config.gradient != "egd" and idle:
        raise ValueError(
            f"{', '.join(idle)} belong to the whitening, got gradient {config.gradient!r}; "
            "choose egd or leave them out"
        )
    if config.gradient == "norm" and config.matrices != "first":
        raise ValueError(
            f"norm scales one matrix, the first, got matrices={config.matrices!r}; choose first"
        )
    if config.method != "svd" and (config.power != 0 or config.floor is not None):
        raise ValueError(
            f"power and floor belong to the svd method, got power={config.power}, "
            f"floor={config.floor} with method {config.method!r}; choose svd"
        )


def _check_numbers(config: Config) -> None:
    for name, (least, most, rule, remedy) in RANGES.items():
        value = getattr(config, name)
        if value is not None and not least <= value < most:
            raise ValueError(f"{name} must {rule}, got {value}; {remedy}")
    for name, smallest in LEAST.items():
        if getattr(config, name) < smallest:
            raise ValueError(f"{name} must be at least {smallest}, got {getattr(config, name)}")
    if config.seed >= 2**32:
        raise ValueError(f"seed must be below 2**32, got {config.seed}; choose a smaller one")
    if config.batch_size > config.task.train_size:
        raise ValueError(
            f"a batch must fit into the training set, got batch_size={config.batch_size} with "
            f"{config.task.train_size} training examples; lower batch_size"
        )


def _check_shares(config: Config) -> None:
    for name in ("target", "switch_off"):
        value = getattr(config, name)
        if value is not None and not 0.0 < value <= 1.0:
            raise ValueError(
                f"{name} is an accuracy and must lie in (0, 1], got {value}; the paper uses 0.95"
            )


def _check_epochs(config: Config) -> None:
    between, phases = config.measure_every, config.phases
    for name, count in {
        "epochs": config.epochs,
        "epochs of a phase": config.epochs // phases,
    }.items():
        if count % between:
            raise ValueError(
                f"{name} must be a multiple of measure_every, got {count} with "
                f"measure_every={between}; change one"
            )
    if config.epochs % phases:
        raise ValueError(
            f"phases must divide the epochs, got {phases} with {config.epochs} epochs; change one"
        )
    if phases > 1 and config.target is not None:
        raise ValueError(
            f"a run with phases has no target to end at, got target={config.target}; set it to None"
        )
    for epoch in config.spectra_at:
        if epoch % between or not 0 <= epoch <= config.epochs:
            raise ValueError(
                f"spectra_at must be multiples of measure_every up to epochs, got {epoch} with "
                f"measure_every={between}, epochs={config.epochs}; change it"
            )
    one_hots = getattr(config.task, "encoding", "one_hots") == "one_hots"
    two_layers = isinstance(config.task, SparseParity | ModularArithmetic) and one_hots
    if (config.spectra_at or config.gradient == "norm") and not two_layers:
        raise ValueError(
            "spectra_at and the gradient norm need the two-layer network's hidden/kernel, and the "
            f"task {config.task.name} brings another network; drop them"
        )
