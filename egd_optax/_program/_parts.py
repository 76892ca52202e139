"""Which parts of an axis go different ways: query, key and value, gate and up, heads, experts."""

from collections.abc import Iterable
from typing import NamedTuple

from egd_optax._program._layouts import Cut, Factor

Cuts = frozenset[Cut]
Ranges = set[tuple[int | None, int]]


class Take(NamedTuple):
    """What of a matrix's columns one product uses.

    Attributes:
        cuts: what was taken of them, each entry of a batch by itself among it.
        each: factors of which each entry is used by itself here, but beside no matrix, as heads of
            attention are: what becomes of them later decides.
    """

    cuts: Cuts
    each: frozenset[Factor] = frozenset()


class NotEqual(Exception):
    """Parts go different ways that are not equal, or do not lie side by side."""


def parts_of(axis: int, size: int, takes: Iterable[Take]) -> int:
    """Return into how many equal parts the uses divide an axis; 0 if each entry is apart.

    Raises:
        NotEqual: they divide it in another way.
    """
    cuts_of = [({c for c in take.cuts if c.factor.axis == axis}, take.each) for take in takes]
    cuts = {cut for some, _ in cuts_of for cut in some}
    ranges: dict[Factor, Ranges] = {cut.factor: set() for cut in cuts}
    for cut in cuts:
        ranges[cut.factor].add((cut.start, cut.stop))
    apart = {f for f, found in ranges.items() if len(found) > 1 or not _is_known(found)}
    used = {frozenset(apart & ({cut.factor for cut in some} | each)) for some, each in cuts_of}
    if frozenset() in used:
        return 1
    if len(used) > 1:
        raise NotEqual("in unequal parts")
    parts = 1
    for factor in sorted(apart, key=lambda factor: -(factor.stride or 0)):
        length = _length(factor, ranges[factor])
        if factor.size * (factor.stride or 0) * parts != size:
            raise NotEqual("interleaved")
        parts *= factor.size // length
    return parts if parts < size else 0


def _is_known(ranges: Ranges) -> bool:
    """Return whether it is known before a run which entries are taken."""
    return all(start is not None for start, _ in ranges)


def _length(factor: Factor, ranges: Ranges) -> int:
    """Return the length of each of the equal parts of a factor."""
    lengths = {stop - (start or 0) for start, stop in ranges}
    length = lengths.pop()
    if lengths or factor.size % length or any((start or 0) % length for start, _ in ranges):
        places = sorted((start or 0, stop) for start, stop in ranges)
        raise NotEqual(f"in parts {', '.join(f'{start}:{stop}' for start, stop in places)}")
    return length
