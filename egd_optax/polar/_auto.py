"""The default method: exact everywhere, picked by backend and shape."""

import dataclasses

import jax

from egd_optax.polar._halley import Halley
from egd_optax.polar._method import Stateless, check_rtol
from egd_optax.polar._svd import SVD


@dataclasses.dataclass(frozen=True)
class Auto(Stateless):
    """Exact polar factor by `Halley`, or by `SVD` for small matrices on CPU.

    Accuracy class: exact, whatever is picked. Accelerators never get an SVD; CPUs get one up to
    1024 entries, about where the curves cross (examples/benchmarks/logs/cpu-small.jsonl).

    Args:
        rtol: rank tolerance relative to the largest singular value, in [0, 0.5).
            None: 84 eps of the working dtype, 1e-5 in float32.

    Raises:
        ValueError: `rtol` outside [0, 0.5).
    """

    rtol: float | None = None

    def __post_init__(self) -> None:
        check_rtol(self.rtol)

    def factor(self, matrix: jax.Array) -> jax.Array:
        gram, svd = Halley(self.rtol).factor, SVD(self.rtol).factor
        on_cpu = svd if matrix.size <= _SMALL else gram
        return jax.lax.platform_dependent(matrix, cpu=on_cpu, default=gram)


# Entries, not rows: level at 16x64, an SVD faster below, Gram above. At 32x32 the SVD loses a fifth
# and compiles in a third of the time.
_SMALL = 1024
