"""The first matrix's gradient in the course of a run: spectra, and progress by direction."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from grokking.config import Config
from grokking.tasks import Examples


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """The full-batch gradient of hidden/kernel (m, n) at one epoch, r = min(m, n).

    Args:
        epoch: epochs done; 0 is the start.
        gradient: the r singular values of the loss's gradient, falling.
        decayed: those of gradient + weight_decay * W, which coupled decay whitens.
        progress: u_i^T (W - W_0) v_i for the r singular pairs of the decayed gradient at the
            start: how far the weights went along each direction that was there to be learned.
    """

    epoch: int
    gradient: tuple[float, ...]
    decayed: tuple[float, ...]
    progress: tuple[float, ...]


class Spectra:
    """Measures a Spectrum at each of the run's `spectra_at` epochs and hands it to `emit`."""

    def __init__(
        self,
        config: Config,
        loss: Callable[[Any, Examples], jax.Array],
        params: Any,
        examples: Examples,
        emit: Callable[[Spectrum], None],
    ):
        self._epochs, self._examples, self._emit = config.spectra_at, examples, emit
        self._decay = config.optimizer.settings["weight_decay"]
        self._gradient = jax.jit(jax.grad(loss))
        if not self._epochs:
            return
        self._start = np.asarray(params["hidden"]["kernel"], np.float64)
        self._u, _, self._vh = np.linalg.svd(self._matrices(params)[1], full_matrices=False)
        self.measure(0, params)

    def measure(self, epoch: int, params: Any) -> None:
        """Measure if this epoch is asked for; outside of the run's clock."""
        if epoch not in self._epochs:
            return
        raw, decayed = (np.linalg.svd(m, compute_uv=False) for m in self._matrices(params))
        moved = np.asarray(params["hidden"]["kernel"], np.float64) - self._start
        progress = np.einsum("mi,mn,in->i", self._u, moved, self._vh, optimize=True)
        values = (tuple(map(float, array)) for array in (raw, decayed, progress))
        self._emit(Spectrum(epoch, *values))

    def _matrices(self, params: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the full-batch gradient without and with the decay term, in float64."""
        gradient = self._gradient(params, self._examples)["hidden"]["kernel"]
        raw, weights = (np.asarray(x, np.float64) for x in (gradient, params["hidden"]["kernel"]))
        return raw, raw + self._decay * weights
