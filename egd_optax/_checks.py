"""Checks of arguments that all parts of the package share."""

import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def as_array(value: Any, needed_by: str) -> jax.Array:
    """Return `value` as one array; a tree of arrays raises."""
    try:
        return jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{needed_by} needs one array, got a {type(value).__name__}; map it over a tree of "
            "arrays by jax.tree.map."
        ) from error


def check_static(name: str, value: Any) -> None:
    """Raise TypeError if `value` is an array: it decides the program, so it is a Python value."""
    if isinstance(value, jax.Array):
        raise TypeError(
            f"{name} must be a Python value, known before tracing, got the array {value}. Pass a "
            f'Python value; under optax.inject_hyperparams add "{name}" to static_args.'
        )


def check_rtol(rtol: float | None) -> None:
    """Raise ValueError unless `rtol` is None or lies in [0, 0.5)."""
    check_static("rtol", rtol)
    number = isinstance(rtol, numbers.Real) and not isinstance(rtol, bool)
    if rtol is not None and not (number and 0.0 <= rtol < 0.5):
        raise ValueError(f"rtol must lie in [0, 0.5), or be None for the default, got {rtol!r}.")


def check_at_least(name: str, value: int, least: int) -> None:
    """Raise unless `value` is an integer (NumPy's count) of at least `least`."""
    check_static(name, value)
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")


def is_number(value: Any) -> bool:
    """Return whether `value` is a real number, or an array that holds one."""
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        real = any(jnp.issubdtype(value.dtype, kind) for kind in (jnp.floating, jnp.integer))
        return real and value.ndim == 0
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_number(name: str, value: Any, below: float = math.inf, instead: str = "") -> None:
    """Raise unless `value` is a number from 0 on and below a bound; of tracers nobody knows."""
    if not is_number(value):
        raise TypeError(f"{name} must be a number{instead}, got {value!r}.")
    if not isinstance(value, jax.core.Tracer) and not 0 <= value < below:
        raise ValueError(f"{name} must lie in [0, {below}), got {value!r}.")


def check_transformation(name: str, value: Any) -> None:
    """Raise TypeError unless `value` has what Optax's transformations have."""
    if not (hasattr(value, "init") and hasattr(value, "update")):
        raise TypeError(f"{name} must be a transformation like optax.adam(1e-3), got {value!r}.")


def check_state(whose: str, init: Callable, updates: Any, state: Any, dtypes: bool = True) -> None:
    """Raise ValueError unless `state` has the leaves that `init` makes for these updates."""
    needed, given = (
        {
            jax.tree_util.keystr(
                path
            ): f"{_kind(leaf) if dtypes else 'shape '}{list(np.shape(leaf))}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (jax.eval_shape(init, updates), state)
    )
    for key in {**needed, **given}:
        if needed.get(key) != given.get(key):
            raise ValueError(
                f"The state of {whose} was made for other leaves or by another method. At {key} it "
                f"has {given.get(key, 'nothing')}, these updates need {needed.get(key, 'nothing')}."
                " Call `init` with the parameters that they belong to."
            )


def _kind(leaf: Any) -> str:
    """Return a leaf's dtype, or the type of one that is no array."""
    return str(getattr(leaf, "dtype", type(leaf).__name__))


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}.")
