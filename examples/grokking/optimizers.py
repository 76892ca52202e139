"""Optimizers of the experiments: factories of Optax chains, and a value that names one."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax.numpy as jnp
import optax
from common.checks import check_choice, check_decay_rate, check_least, check_share

import egd_optax
from egd_optax import matching, polar, scale_by_egd
from grokking import controls

Chain: TypeAlias = optax.GradientTransformationExtraArgs
REQUIRED = inspect.Parameter.empty
DECAYS = ("coupled", "between", "decoupled")
BASES: dict[str, Callable[[float], optax.GradientTransformation]] = {
    "sgd": lambda b2: optax.identity(),
    "adam": lambda b2: optax.scale_by_adam(b2=b2),
    "radam": lambda b2: optax.scale_by_radam(b2=b2),
    "rmsprop": lambda b2: optax.scale_by_rms(decay=0.99),
    "muon": lambda b2: optax.chain(optax.contrib.muon(1.0), optax.scale(-1.0)),
}
MATRICES = {
    "first": r"^hidden/kernel$",
    "all": r"/kernel$",
    "feed_forward": r"/mlp/(expand|contract)/kernel$",
}
METHODS: dict[str, Callable] = {
    "auto": polar.Auto,
    "svd": polar.SVD,
    "halley": polar.Halley,
    "newton_schulz": polar.NewtonSchulz,
    "randomized": polar.Randomized,
    "subspace_iteration": polar.SubspaceIteration,
    "fractional": controls.fractional,
    "floored": controls.floored,
}


def plain(
    learning_rate: float,
    *,
    change: optax.GradientTransformation | None = None,
    base: str = "sgd",
    b2: float = 0.999,
    weight_decay: float = 0.0,
    decay: str = "coupled",
    warmup_steps: int = 0,
) -> Chain:
    """Change the gradient (None: not at all), then take the step of the `base`.

    Args:
        learning_rate: step size of every leaf.
        change: the transformation that comes first.
        base: sgd (the change itself), adam, radam, rmsprop or muon.
        b2: decay rate of the squared gradients of adam and radam.
        weight_decay: coefficient of the decay, on every leaf.
        decay: where the decay joins: `coupled` before the change, as in the paper; `between` after
            it and before the base, as in torch's Adam; `decoupled` after the base.
        warmup_steps: steps of a linear warm-up of the learning rate.
    """
    check_choice("base", base, BASES)
    check_choice("decay", decay, DECAYS)
    check_decay_rate("b2", b2)
    check_least("warmup_steps", warmup_steps, 0)
    if not (learning_rate > 0 and weight_decay >= 0):
        raise ValueError(
            "learning_rate must be positive and weight_decay not negative, got "
            f"{learning_rate} and {weight_decay}; the paper uses 0.7 and 1e-4"
        )
    joins = {decay: optax.add_decayed_weights(weight_decay)}
    rate: optax.ScalarOrSchedule = learning_rate
    if warmup_steps:
        first = learning_rate / warmup_steps
        rate = optax.linear_schedule(first, learning_rate, warmup_steps - 1)
    return optax.with_extra_args_support(
        optax.chain(
            joins.get("coupled", optax.identity()),
            change or optax.identity(),
            joins.get("between", optax.identity()),
            BASES[base](b2),
            joins.get("decoupled", optax.identity()),
            optax.scale_by_learning_rate(rate),
        )
    )


def egd(
    learning_rate: float,
    *,
    method: str = "svd",
    rank: int | None = None,
    exponent: float | None = None,
    floor: float | None = None,
    matrices: str = "first",
    switch_off: float | None = None,
    latched: bool = False,
    average: float | None = None,
    every: int = 1,
    blend_steps: int = 0,
    **rest: Any,
) -> Chain:
    """Whiten the gradients of some matrices.

    Args:
        learning_rate: see `plain`.
        method: a name in METHODS.
        rank: directions that the methods randomized and subspace_iteration keep.
        exponent: of the method fractional.
        floor: of the method floored.
        matrices: `first` is hidden/kernel, as in the paper; `all` every kernel; `feed_forward` the
            transformer's four.
        switch_off: test accuracy above which the gradient stays as it is; None never switches.
        latched: whether the switch is for good, or is looked at anew at each step (the paper).
        average: decay rate of a moving average of the gradient, which is whitened in its place.
        every: whitens at each k-th step only.
        blend_steps: steps over which the gradient goes over into the whitened one.
        **rest: see `plain`.
    """
    check_least("every", every, 1)
    check_least("blend_steps", blend_steps, 0)
    whiten = _method(method, {"rank": rank, "exponent": exponent, "floor": floor})
    change = optax.with_extra_args_support(scale_by_egd(whiten))
    if average is not None:
        check_decay_rate("average", average)
        change = optax.chain(optax.ema(average, debias=False), change)
    if every > 1:
        change = optax.conditionally_transform(change, lambda step: step % every == 0)
    if blend_steps:
        change = controls.blend_in(change, blend_steps)
    change = _until(switch_off, _only(matrices, change), latched)
    return plain(learning_rate, change=change, **rest)


def column_norm(learning_rate: float, *, switch_off: float | None = None, **rest: Any) -> Chain:
    """Divide the columns of the first matrix's gradient by their norms."""
    change = _until(switch_off, _only("first", controls.normalize_columns()))
    return plain(learning_rate, change=change, **rest)


def scaled(
    learning_rate: float, *, rank: int, switch_off: float | None = None, **rest: Any
) -> Chain:
    """Scale the first matrix's gradient to the length of a whitened one of this rank."""
    check_least("rank", rank, 1)
    change = _until(switch_off, _only("first", optax.normalize_by_update_norm(rank**0.5)))
    return plain(learning_rate, change=change, **rest)


def grokfast_ema(
    learning_rate: float, *, slow: float = 0.98, strength: float = 2.0, **rest: Any
) -> Chain:
    """Amplify slow gradients by a moving average, of decay rate `slow`, times `strength`."""
    check_decay_rate("slow", slow)
    return plain(learning_rate, change=controls.grokfast_ema(slow, strength), **rest)


def grokfast_ma(learning_rate: float, **rest: Any) -> Chain:
    """Amplify slow gradients by a window."""
    return plain(learning_rate, change=controls.grokfast_ma(), **rest)


def _method(name: str, options: dict[str, Any]) -> Any:
    """Return the method with those options that are given: no more and no less than it needs."""
    check_choice("method", name, METHODS)
    parameters = inspect.signature(METHODS[name]).parameters
    given = {option: value for option, value in options.items() if value is not None}
    needed = [option for option in options if option in parameters]
    if list(given) != needed:
        wanted, got = (", ".join(names) or "none" for names in (needed, given))
        raise ValueError(
            f"the method {name} needs exactly these of {', '.join(options)}: {wanted}; got {got}; "
            "null leaves one out"
        )
    return METHODS[name](**given)


def _only(matrices: str, change: optax.GradientTransformation) -> optax.GradientTransformation:
    check_choice("matrices", matrices, MATRICES)
    return optax.masked(change, matching(MATRICES[matrices]))


def _until(
    threshold: float | None, change: optax.GradientTransformation, latched: bool = False
) -> optax.GradientTransformation:
    """Change the gradient until the metric exceeds the threshold, for good if latched."""
    if threshold is None:
        return change
    check_share("switch_off", threshold)
    if latched:
        return egd_optax.switch_off(change, optax.identity(), threshold=threshold)
    return optax.conditionally_transform(
        change,
        lambda step, metric, **_: jnp.logical_not(metric > threshold),
        forward_extra_args=True,
    )


FACTORIES: dict[str, Callable[..., Chain]] = {
    factory.__name__: factory
    for factory in (plain, egd, column_norm, scaled, grokfast_ema, grokfast_ma)
}


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """A factory by its name, with its keyword arguments; the others have their defaults.

    Args:
        name: plain, egd, column_norm, scaled, grokfast_ema or grokfast_ma.
        settings: the factory's keyword arguments, those of `plain` among them.

    Raises:
        ValueError: an unknown name or setting, or a value that the factory refuses.

    Examples:
        >>> Optimizer("egd", {"learning_rate": 0.7, "method": "auto"}).settings["decay"]
        'coupled'
    """

    name: str
    settings: Mapping[str, Any]

    def __post_init__(self) -> None:
        check_choice("optimizer", self.name, FACTORIES)
        taken = settings_of(self.name)
        if unknown := set(self.settings) - set(taken):
            raise ValueError(f"{self.name} takes {', '.join(taken)}; got {', '.join(unknown)}")
        settings = {name: one.default for name, one in taken.items()} | dict(self.settings)
        if missing := [name for name, value in settings.items() if value is REQUIRED]:
            raise ValueError(f"{self.name} needs {', '.join(missing)}, got none; add it")
        object.__setattr__(self, "settings", settings)
        self.build()

    def build(self) -> Chain:
        """Return the transformation; its `update` takes the last test accuracy as `metric`."""
        return FACTORIES[self.name](**self.settings)

    def changed(self, name: str | None = None, **settings: Any) -> "Optimizer":
        """Return it with other settings, or another factory with those of them that it takes."""
        name = name or self.name
        check_choice("optimizer", name, FACTORIES)
        taken = settings_of(name)
        kept = {key: self.settings[key] for key in taken if self.settings.get(key) is not None}
        return Optimizer(name, kept | settings)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"name": self.name, **self.settings}


def settings_of(name: str) -> dict[str, inspect.Parameter]:
    """Return the keyword arguments of a factory, those of `plain` last."""
    return {
        parameter.name: parameter
        for function in (FACTORIES[name], plain)
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in ("change", "rest")
    }
