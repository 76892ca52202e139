"""Where a leaf's axes are in a value made from it: factors of axes, and how operations move them.

A value's axis is a product of factors, the slowest first. A factor is a part of one axis of the
leaf, or nothing of it (an axis of data). What was sliced away is kept as cuts.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

Shape = tuple[int, ...]


class Factor(NamedTuple):
    """A number of entries along an axis of a value.

    Attributes:
        size: how many.
        axis: the leaf's axis that they lie on; None: none of them, it is an axis of data.
        stride: how far apart they are on it; None: their places are not known.
    """

    size: int
    axis: int | None = None
    stride: int | None = None


class Cut(NamedTuple):
    """Entries of a factor that were taken: from `start` to `stop`.

    Where `start` is None, they are `stop` entries that only a run knows: of a loop, or a batch.
    """

    factor: Factor
    start: int | None
    stop: int


Axis = tuple[Factor, ...]


@dataclasses.dataclass(frozen=True)
class Layout:
    """How the axes of a value are made of a leaf's.

    Attributes:
        axes: the factors of each axis of the value.
        extent: sizes of the leaf's axes, or of a shard's.
        cuts: what was taken of factors. Several of one factor: entries of all of them are mixed.
    """

    axes: tuple[Axis, ...]
    extent: Shape
    cuts: frozenset[Cut] = frozenset()

    @property
    def factors(self) -> list[Factor]:
        """The factors that are the leaf's."""
        return [factor for axis in self.axes for factor in axis if factor.axis is not None]

    def at(self, axes: Iterable[int]) -> tuple[Factor, ...]:
        """Return the leaf's factors in these axes of the value."""
        return tuple(f for axis in axes for f in self.axes[axis] if f.axis is not None)

    def leaf_axes(self, axes: Iterable[int]) -> frozenset[int]:
        """Return the leaf's axes that these axes of the value are made of."""
        return frozenset(factor.axis or 0 for factor in self.at(axes))

    @property
    def wide_axes(self) -> set[int | None]:
        """The leaf's axes of which there is more than one entry."""
        return {factor.axis for factor in self.factors if factor.size > 1}

    def is_thin(self) -> bool:
        """Return whether the leaf's entries lie along one of its axes alone."""
        return len(self.wide_axes) < 2

    def is_spread(self, axes: Iterable[int] | None = None) -> bool:
        """Return whether the leaf's entries were repeated along one of these axes, or of all."""
        chosen = self.axes if axes is None else [self.axes[axis] for axis in axes]
        return any(f.axis is None and f.size > 1 for axis in chosen for f in axis)


def whole(shape: Shape) -> Layout:
    """Return the layout of the leaf itself."""
    return Layout(tuple((Factor(n, axis, 1),) for axis, n in enumerate(shape)), shape)


def arranged(layout: Layout, sources: Sequence[int | None], shape: Shape) -> Layout:
    """Return the layout of a value whose axes are these of the old one; None: an axis of data."""
    before = [() if source is None else layout.axes[source] for source in sources]
    axes = (old if _size(old) == n else _data(n) for old, n in zip(before, shape, strict=True))
    return dataclasses.replace(layout, axes=tuple(axes))


def without(layout: Layout, axes: Iterable[int]) -> Layout:
    """Return the layout after a reduction, or squeezing, of these axes."""
    gone = {*axes}
    kept = (axis for i, axis in enumerate(layout.axes) if i not in gone)
    return dataclasses.replace(layout, axes=tuple(kept))


def reshaped(layout: Layout, shape: Shape) -> Layout | None:
    """Return the layout after a reshape; None where its axes mix factors."""
    if 0 in shape:
        return None
    queue = [f for axis in reversed(layout.axes) for f in reversed(axis) if f.size != 1]
    axes = []
    for room in shape:
        axis = []
        while room > 1 and queue:
            factor = queue.pop()
            if factor.size > room:
                if factor.size % room:
                    return None
                factor, inner = _split(factor, room)
                queue.append(inner)
            if room % factor.size:
                return None
            axis.append(factor)
            room //= factor.size
        axes.append(_merged(axis))
    return dataclasses.replace(layout, axes=tuple(axes))


def broadcast(layout: Layout, shape: Shape) -> Layout:
    """Return the layout in a shape of as many axes, where those of size 1 may grow, or a scalar."""
    return arranged(layout, range(len(shape)) if layout.axes else [None] * len(shape), shape)


def sliced(layout: Layout, axis: int, start: int | None, stop: int, step: int = 1) -> Layout:
    """Return the layout after a slice along an axis; `start` is None where a run decides it."""
    factors, count = layout.axes[axis], -(-(stop - (start or 0)) // step)
    size, known = _size(factors), [f for f in factors if f.axis is not None]
    if count == size:
        return layout
    if not known or not count:
        return _with_axis(layout, axis, _data(count))
    if step > 1 and len(factors) == 1 and size % step == 0 and count == size // step:
        outer, inner = _split(factors[0], count)
        return _with_axis(layout, axis, (outer,), _cut(inner, start, (start or 0) + 1))
    (major, *minor), inside = factors, size // factors[0].size
    if step > 1 or (start or 0) % inside or count % inside:
        mixed = Factor(size, known[0].axis)
        return _with_axis(layout, axis, (mixed._replace(size=count),), {Cut(mixed, start, stop)})
    kept = major._replace(size=count // inside)
    begin = None if start is None else start // inside
    return _with_axis(layout, axis, (kept, *minor), _cut(major, begin, stop // inside))


def in_turn(layout: Layout, axes: Iterable[int]) -> Layout:
    """Return the layout where each entry along these axes is used by itself."""
    new = {Cut(factor, None, 1) for factor in layout.at(axes)}
    return dataclasses.replace(layout, cuts=layout.cuts | new)


def in_parts(layout: Layout, axis: int, parts: int, whole_axes: bool = False) -> Layout:
    """Return the layout of equal parts of an axis, each used apart; or of whole axes alone."""
    alone = dataclasses.replace(layout, axes=(layout.axes[axis],))
    split = reshaped(alone, (parts, _size(layout.axes[axis]) // parts))
    if split is None or (
        whole_axes and any(f.size < layout.extent[f.axis or 0] for f in split.at([0]))
    ):
        return layout
    return dataclasses.replace(layout, cuts=in_turn(split, [0]).cuts)


def stacked(layout: Layout, length: int, walks: frozenset[Cut]) -> Layout:
    """Return the layout of what a scan stacks, some of it walked over before."""
    again = sorted(layout.cuts & walks, key=lambda cut: -(cut.factor.stride or 0))
    walked = tuple(cut.factor for cut in again)
    first = walked if again and _size(walked) == length else _data(length)
    cuts = layout.cuts - walks if first != _data(length) else layout.cuts
    return dataclasses.replace(layout, axes=(_merged(first), *layout.axes), cuts=cuts)


def together(layouts: Sequence[Layout]) -> Layout:
    """Return one layout for values of one shape that are mixed entry by entry.

    A matrix and its transpose, as in a symmetric sum, count as the first one.
    """
    first, cuts = layouts[0], frozenset().union(*(layout.cuts for layout in layouts))
    both = {first.axes, (*first.axes[:-2], *first.axes[:-3:-1])}
    turned = {layout.axes for layout in layouts} == both and not first.is_spread()
    agreed = map(_agreed, zip(*(layout.axes for layout in layouts), strict=True))
    return dataclasses.replace(first, axes=first.axes if turned else tuple(agreed), cuts=cuts)


def joined(parts: Sequence[Layout | None], axis: int, sizes: Sequence[int]) -> Layout:
    """Return the layout after a concatenation along an axis; None for a part without the leaf.

    Parts that together are all of a factor are put back in its place.
    """
    present = [part for part in parts if part is not None]
    cuts = frozenset().union(*(part.cuts for part in present))
    along = [part.axes[axis] for part in present]
    common = together([_with_axis(part, axis, ()) for part in present])
    total, everything = sum(sizes), tuple(factor for factors in along for factor in factors)
    if len(present) < len(parts):
        return _with_axis(common, axis, _somewhere(everything, total))
    back = [factor for factor in {cut.factor for cut in cuts} if _covers(cuts, factor)]
    inside = {factors[1:] for factors in along}
    rest = inside.pop() if len(inside) == 1 else None
    restored = [(f, *rest) for f in back if rest is not None and f.size * _size(rest) == total]
    axes = _merged(restored[0]) if restored else _somewhere(everything, total)
    cuts = frozenset(cut for cut in cuts if cut.factor not in back)
    return dataclasses.replace(_with_axis(common, axis, axes), cuts=cuts)


def resized(layout: Layout, shape: Shape) -> Layout:
    """Return the layout of a shard, or of the whole that shards make."""
    axes, extent = list(layout.axes), list(layout.extent)
    for place, n in enumerate(shape):
        before = _size(axes[place])
        if before in (0, n):
            continue
        factors = axes[place]
        major = factors[0] if factors else Factor(1)
        kept = major._replace(size=n * major.size // before)
        if major.axis is not None and major.size * (major.stride or 0) == extent[major.axis]:
            extent[major.axis] = kept.size * (major.stride or 0)
        axes[place] = (kept, *factors[1:])
    return dataclasses.replace(layout, axes=tuple(axes), extent=tuple(extent))


def padded(layout: Layout, shape: Shape) -> Layout:
    """Return the layout in a shape of as many axes, where other sizes leave places unknown."""
    pairs = zip(layout.axes, shape, strict=True)
    axes = (factors if _size(factors) == n else _somewhere(factors, n) for factors, n in pairs)
    return dataclasses.replace(layout, axes=tuple(axes))


def tiled(layout: Layout, repeats: Sequence[int]) -> Layout:
    """Return the layout after repeats along each axis."""
    axes = (_data(n) + axis for n, axis in zip(repeats, layout.axes, strict=True))
    return dataclasses.replace(layout, axes=tuple(axes))


def _size(factors: Axis) -> int:
    return math.prod(factor.size for factor in factors)


def _data(n: int) -> Axis:
    return () if n == 1 else (Factor(n),)


def _somewhere(factors: Iterable[Factor], n: int) -> Axis:
    """Return an axis on which factors lie in places that are not known."""
    known = [factor.axis for factor in factors if factor.axis is not None]
    return (Factor(n, known[0]),) if known else _data(n)


def _split(factor: Factor, outer: int) -> tuple[Factor, Factor]:
    """Return a factor as two, the slower of size `outer`."""
    inner = factor.size // outer
    stride = None if factor.stride is None else factor.stride * inner
    return factor._replace(size=outer, stride=stride), factor._replace(size=inner)


def _merged(factors: Iterable[Factor]) -> Axis:
    """Return an axis with neighbors that are one stretch of the leaf's axis made one factor."""
    done: list[Factor] = []
    for factor in factors:
        before = done[-1] if done else None
        stretch = None if factor.stride is None else factor.stride * factor.size
        if before and before.axis == factor.axis and before.stride == stretch:
            done[-1] = factor._replace(size=before.size * factor.size)
        else:
            done.append(factor)
    return tuple(done)


def _with_axis(
    layout: Layout, axis: int, factors: Axis, cuts: Iterable[Cut] = frozenset()
) -> Layout:
    axes = (*layout.axes[:axis], factors, *layout.axes[axis + 1 :])
    return dataclasses.replace(layout, axes=axes, cuts=layout.cuts | {*cuts})


def _cut(factor: Factor, start: int | None, stop: int) -> set[Cut]:
    """Return the cut of a factor, none where it is no leaf's or its places are not known."""
    return {Cut(factor, start, stop)} if factor.stride is not None else set()


def _covers(cuts: Iterable[Cut], factor: Factor) -> bool:
    """Return whether the cuts of a factor leave out none of its entries."""
    end = 0
    for start, stop in sorted((c.start or 0, c.stop) for c in cuts if c.factor == factor):
        end = max(end, stop) if start <= end else end
    return end >= factor.size


def _agreed(axes: Sequence[Axis]) -> Axis:
    """Return the factors of an axis that several values share, as far as they agree."""
    known = {axis for axis in axes if any(factor.axis is not None for factor in axis)}
    if len(known) < 2:
        return known.pop() if known else axes[0]
    leaf_axes = {factor.axis for axis in known for factor in axis}
    return (Factor(_size(axes[0]), leaf_axes.pop() if len(leaf_axes) == 1 else None),)
