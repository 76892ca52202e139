"""The zoo: named float32 matrices with tags, few shapes because each one compiles."""

import dataclasses

import jax.numpy as jnp
import numpy as np

SHAPES = {"square": (64, 64), "wide": (48, 160), "tall": (160, 48)}
SCALES = {1e-30: {"tiny"}, 1.0: set(), 1e30: {"huge"}}
RESOLVED = 2e-5  # the exact class promises directions from here on, relative to sigma_1
# Decades of the random matrices' spectra and scales: what the dtype's promise and range allow.
DECADES = {
    np.float32: (4.5, 28),
    np.float64: (12.5, 280),
    np.complex64: (4.5, 28),
    np.float16: (4.5, 3),
    jnp.bfloat16: (4.5, 28),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A matrix, or a stack with its `parts`, and what is stated of it before it is measured.

    `condition` is sigma_1 / sigma_rank, None where chance decides. `tags` are those of `TAGS`.
    """

    name: str
    matrix: np.ndarray
    tags: set[str]
    rank: int = 0
    condition: float | None = None
    parts: tuple["Case", ...] = ()

    def __repr__(self):
        return self.name

    def slices(self, factors):
        """Pairs of a case that is one matrix, and its part of `factors`."""
        return zip(self.parts, factors, strict=True) if self.parts else [(self, factors)]


def relative_spectrum(matrix):
    """Singular values over the largest, by float64; zeros for zero."""
    s = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
    return s / s[0] if s[0] > 0 else s


def _any_resolved_gap_closes(s):
    return bool(np.any(s[:-1] - s[1:] <= 1e-7, where=s[1:] >= RESOLVED))


# Every tag and its truth, measured on the matrix itself; those of the spectrum take that.
SHAPE_TAGS = {
    "batched": lambda x: x.ndim == 3,
    "square": lambda x: x.shape[-2] == x.shape[-1],
    "wide": lambda x: x.shape[-2] < x.shape[-1],
    "tall": lambda x: x.shape[-2] > x.shape[-1],
    "row": lambda x: x.shape[-2] == 1,
    "column": lambda x: x.shape[-1] == 1,
}
TAGS = {
    "zero": lambda x: not x.any(),
    "tiny": lambda x: 0 < np.abs(x).max() < 1e-25,
    "huge": lambda x: np.abs(x).max() > 1e25,
    "deficient": lambda x: relative_spectrum(x)[-1] <= 1e-7,
    "unresolved": lambda x: 1e-7 < relative_spectrum(x)[-1] < RESOLVED,
    "repeated": lambda x: _any_resolved_gap_closes(relative_spectrum(x)),
}


def _normal(rng, shape, dtype):
    real = rng.standard_normal(shape)
    complex_valued = np.issubdtype(dtype, np.complexfloating)
    return real + 1j * rng.standard_normal(shape) if complex_valued else real


def with_spectrum(shape, spectrum, seed=0, dtype=np.float32):
    """A matrix with these singular values and random directions, formed in double precision."""
    rng = np.random.default_rng(seed)
    k = min(shape)
    u, v = (np.linalg.qr(_normal(rng, (size, k), dtype))[0] for size in shape)
    return ((u * np.asarray(spectrum)) @ v.conj().T).astype(dtype)


def at_random(rng, shape, dtype):
    """A matrix with spectrum, scale and, for every third, rank at random, rounded to `dtype`."""
    depth, scales = DECADES[dtype]
    spectrum = 10.0 ** rng.uniform(-rng.uniform(0, depth), 0, min(shape))
    if rng.random() < 1 / 3:
        spectrum[rng.integers(1, min(shape) + 1) :] = 0
    spectrum *= 10.0 ** rng.uniform(-scales, scales) / spectrum.max()
    return with_spectrum(shape, spectrum, rng, dtype)


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
        "gap after six": np.r_[np.logspace(0, -1, 6), np.logspace(-2.5, -3, k - 6)],
    }


def _stated(name, matrix, spectrum, *tags):
    """A case whose rank, condition and tags follow from the spectrum that it was built with."""
    kept = np.asarray(spectrum)[np.asarray(spectrum) > 0]
    condition = kept[0] / kept[-1]
    said = {
        "deficient": len(kept) < min(matrix.shape),
        "unresolved": len(kept) == min(matrix.shape) and condition > 1 / RESOLVED,
        "repeated": bool(np.any(np.diff(kept) == 0)),
    }
    tags = {*tags, *(tag for tag, holds in said.items() if holds)}
    return Case(name, matrix, tags, len(kept), condition)


def _full_rank():
    """Every spectrum in every shape, and conditions up to 1 / eps."""
    for kind, shape in SHAPES.items():
        steep = {f"condition {c:g}": np.geomspace(1, 1 / c, min(shape)) for c in (1e6, 8e6)}
        for name, spectrum in (spectra(min(shape)) | steep).items():
            yield _stated(f"{name} {kind}", with_spectrum(shape, spectrum), spectrum, kind)


def _deficient():
    """Products of low rank at every scale; nothing repeats in them but the zeros."""
    for kind, shape in SHAPES.items():
        for rank in (1, 12):
            for scale, tags in SCALES.items():
                name = f"rank {rank} {kind} times {scale:g}"
                matrix = np.float32(scale) * product(shape, rank)
                yield Case(name, matrix, {kind, "deficient", *tags}, rank)


def _special():
    eye, zeros = np.eye(64, dtype=np.float32), np.zeros((48, 160), np.float32)
    decay, half = np.logspace(0, -4, 64), np.r_[np.logspace(0, -2, 32), np.zeros(32)]
    blocks = np.kron(np.eye(8), np.ones((8, 8))).astype(np.float32)
    repeated = np.tile(with_spectrum((24, 160), np.logspace(0, -2, 24)), (2, 1))
    sparse = zeros.copy()
    sparse[3, 5] = -2.0
    yield _stated("identity", eye, np.ones(64), "square")
    yield _stated("diagonal", eye * decay.astype(np.float32), decay, "square")
    yield _stated("blocks", blocks, np.full(8, 8.0), "square")
    yield _stated("row", with_spectrum((1, 40), [3.0]), [3.0], "wide", "row")
    yield _stated("column", with_spectrum((40, 1), [3.0]), [3.0], "tall", "column")
    yield _stated("one by one", np.float32([[-2.0]]), [2.0], "square", "row", "column")
    yield _stated("half zeros", with_spectrum((64, 64), half), half, "square")
    yield _stated("repeated rows", repeated, 2**0.5 * np.logspace(0, -2, 24), "wide")
    yield _stated("single entry", sparse, [2.0], "wide")
    yield Case("zero", zeros, {"wide", "deficient", "zero"})


def zoo():
    """All cases; the last is a stack of all those of one shape, whatever their scales."""
    cases = [*_full_rank(), *_deficient(), *_special()]
    parts = tuple(case for case in cases if case.matrix.shape == SHAPES["wide"])
    stack = np.stack([case.matrix for case in parts])
    return [*cases, Case("stack of all the wide", stack, {"wide", "batched"}, parts=parts)]
