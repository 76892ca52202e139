"""Let `diagnostics` look on while a whitening is planned or runs; without one, nothing happens."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Protocol

import jax

from egd_optax._axes import InferredAxes
from egd_optax._matrix_view import MatrixView


class Witness(Protocol):
    """Who looks on, while an optimizer's `init` and `update` are traced."""

    def planned(self, decided: InferredAxes) -> None:
        """Take note of the decisions at an `init`."""

    def whitened(self, view: MatrixView, matrices: jax.Array, factors: jax.Array) -> None:
        """Take note of a leaf's `(batch, m, n)` matrices and their polar factors."""


_WITNESS: contextvars.ContextVar[Witness | None] = contextvars.ContextVar("witness", default=None)


@contextlib.contextmanager
def witnessed(witness: Witness) -> Iterator[None]:
    """Let `witness` look on within the `with` block."""
    token = _WITNESS.set(witness)
    try:
        yield
    finally:
        _WITNESS.reset(token)


def current() -> Witness | None:
    """Return who looks on now."""
    return _WITNESS.get()
