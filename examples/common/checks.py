"""Checks of options: each error has rule, value and remedy."""

import difflib
from collections.abc import Iterable
from typing import Any


def check_choice(name: str, value: Any, choices: Any) -> None:
    if value not in tuple(choices):
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {value!r}")


def check_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}; raise it")


def check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must lie in [0, 1], got {value}; 95 % is 0.95")


def check_decay_rate(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ValueError(f"{name} is a decay rate and must lie in [0, 1), got {value}; try 0.98")


def difference(name: str, old: Any, new: Any) -> str:
    """Return the parts of a value that are not as they were, nested ones by their own names.

    Examples:
        >>> difference("model", {"width": 64, "layers": 2}, {"width": 32, "layers": 2})
        'model.width=64, not 32'
        >>> difference("steps", 100, None)
        'steps=100, not None'
    """
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return f"{name}={old}, not {new}"
    names = [one for one in {**old, **new} if old.get(one, ...) != new.get(one, ...)]
    return "; ".join(difference(f"{name}.{one}", old.get(one), new.get(one)) for one in names)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the question whether the most similar name was meant; nothing without one.

    Examples:
        >>> nearest("epoch", ["width", "epochs"])
        'did you mean epochs? '
        >>> nearest("learning_rate", ["epochs", "optimizer.learning_rate"])
        'did you mean optimizer.learning_rate? '
        >>> nearest("x", ["epochs"])
        ''
    """
    known = list(known)
    ends = [one for one in known if one.endswith(f".{name}")]
    found = ends or difflib.get_close_matches(name, known, n=1)
    return f"did you mean {found[0]}? " if found else ""
