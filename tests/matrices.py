"""The zoo: named float32 matrices with tags, few shapes because each one compiles."""

import dataclasses

import numpy as np

SHAPES = {"square": (64, 64), "wide": (48, 160), "tall": (160, 48)}


@dataclasses.dataclass(frozen=True)
class Case:
    """A matrix, its rank where that is below min(m, n) by construction, and whether it is resolved.

    Unresolved: full rank, with directions below the 2e-5 sigma_1 that float32 methods promise.
    """

    name: str
    matrix: np.ndarray
    rank: int | None = None
    resolved: bool = True

    def __repr__(self):
        return self.name


def with_spectrum(shape, spectrum, seed=0):
    """A float32 matrix with these singular values and random directions."""
    rng = np.random.default_rng(seed)
    k = min(shape)
    u = np.linalg.qr(rng.standard_normal((shape[0], k)))[0]
    v = np.linalg.qr(rng.standard_normal((shape[1], k)))[0]
    return ((u * np.asarray(spectrum)) @ v.T).astype(np.float32)


def product(shape, rank, seed=0, decades=1.0):
    """A rank-`rank` product formed in float32, round-off included."""
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((shape[0], rank)) * np.logspace(0, -decades, rank)
    right = rng.standard_normal((rank, shape[1]))
    return left.astype(np.float32) @ right.astype(np.float32)


def spectra(k):
    """Full-rank spectra of length k, each above 2e-5 of its largest."""
    rng = np.random.default_rng(7)
    gamma = np.sort(rng.gamma(0.5, size=k))[::-1]
    return {
        "flat": np.ones(k),
        "condition 10": np.logspace(0, -1, k),
        "condition 1e3": np.logspace(0, -3, k),
        "condition 3e4": np.logspace(0, -4.5, k),
        "clusters": np.repeat([1.0, 1e-2, 1e-4], [k // 4, k // 4, k - 2 * (k // 4)]),
        "one large": np.r_[1.0, np.full(k - 1, 3e-5)],
        "one small": np.r_[np.ones(k - 1), 3e-5],
        "gamma": np.maximum(gamma / gamma[0], 3e-5),
        "one slightly larger": np.r_[1.0, np.full(k - 1, 0.95)],
        "repeated pairs": np.repeat(np.logspace(0, -3, k // 2), 2),
        "rank plus noise tail": np.r_[np.ones(k // 4), np.geomspace(1e-3, 3e-5, k - k // 4)],
        "low rank plus decay": np.r_[np.logspace(0, -1, 8), np.full(k - 8, 1e-4)],
    }


def _special():
    eye = np.eye(64, dtype=np.float32)
    half = with_spectrum((64, 64), np.r_[np.logspace(0, -2, 32), np.zeros(32)])
    repeated = np.tile(with_spectrum((24, 160), np.logspace(0, -2, 24)), (2, 1))
    sparse = np.zeros((48, 160), np.float32)
    sparse[3, 5] = -2.0
    return [
        Case("identity", eye),
        Case("diagonal", eye * np.logspace(0, -4, 64).astype(np.float32)),
        Case("blocks", np.kron(np.eye(8), np.ones((8, 8))).astype(np.float32), rank=8),
        Case("row", with_spectrum((1, 40), [3.0])),
        Case("column", with_spectrum((40, 1), [3.0])),
        Case("one by one", np.float32([[-2.0]])),
        Case("half zeros", half, rank=32),
        Case("repeated rows", repeated, rank=24),
        Case("single entry", sparse, rank=1),
    ]


def _unresolved():
    """Condition up to 1/eps: below 2e-5 sigma_1 the exact class promises gains in [0, 1] only."""
    return [
        Case(f"condition {condition:g} {kind}", with_spectrum(shape, spectrum), resolved=False)
        for kind, shape in SHAPES.items()
        for condition in (1e6, 8e6)
        for spectrum in [np.geomspace(1, 1 / condition, min(shape))]
    ]


def zoo():
    """All cases."""
    full_rank = [
        Case(f"{name} {kind}", with_spectrum(shape, spectrum))
        for kind, shape in SHAPES.items()
        for name, spectrum in spectra(min(shape)).items()
    ]
    deficient = [
        Case(f"rank {rank} {kind} times {scale:g}", scale * product(shape, rank), rank)
        for kind, shape in SHAPES.items()
        for rank in (1, 12)
        for scale in (np.float32(1e-30), np.float32(1), np.float32(1e30))
    ]
    return full_rank + deficient + _special() + _unresolved()
