"""The default method: exact everywhere, picked by backend and shape."""

import dataclasses
from typing import ClassVar

import jax

from egd_optax.polar._halley import Halley
from egd_optax.polar._method import Exact
from egd_optax.polar._svd import SVD


@dataclasses.dataclass(frozen=True)
class Auto(Exact):
    """Exact polar factor by `Halley`, or by `SVD` for small matrices on CPU.

    Accuracy class: exact. Accelerators never get an SVD; CPUs get one up to 1024 entries, about
    where the curves cross (docs/benchmarks.md).

    Args:
        rtol: rank tolerance; see `Halley`.

    Raises:
        ValueError: `rtol` outside [0, 0.5).
    """

    batches: ClassVar[bool] = True

    def factor(self, matrix: jax.Array) -> jax.Array:
        halley, svd = Halley(self.rtol).factor, SVD(self.rtol).factor
        on_cpu = svd if matrix.size <= _SMALL else halley
        return jax.lax.platform_dependent(matrix, cpu=on_cpu, default=halley)


_SMALL = 1024  # entries: about equal at 16x64, an SVD is faster below, `Halley` above
