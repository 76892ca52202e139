"""The exchange: parts of all matrices on each device <-> a share of the matrices, whole."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from egd_optax._matrix_view import MatrixView
from egd_optax._mesh import Names, names_of
from egd_optax.polar._method import State

Part: TypeAlias = tuple[int, Names]  # of an axis: its size on a device, the mesh axes that cut it


class Layout(NamedTuple):
    """How a leaf lies on a mesh: its axes that make the batch, the rows and the columns."""

    batch: tuple[Part, ...]
    rows: tuple[Part, ...]
    columns: tuple[Part, ...]

    @property
    def uncrossed(self) -> Names:
        """The mesh axes that cut the batch."""
        return tuple(name for _, names in self.batch for name in names)

    @property
    def crossed(self) -> Names:
        """The mesh axes that cut rows or columns."""
        return tuple(name for _, names in self.rows + self.columns for name in names)


def cuts_of(view: MatrixView, leaf: jax.ShapeDtypeStruct, mesh: Mesh) -> tuple[Names, ...]:
    """Return the mesh axes that cut each axis of a leaf, without those that do not cut it evenly.

    Columns of several groups are whole, for a part would have some of one group, some of the next.
    """
    spec = leaf.sharding.spec if isinstance(leaf.sharding, NamedSharding) else ()
    entries = [names_of(entry) for entry in (*spec, *(None,) * leaf.ndim)[: leaf.ndim]]
    whole = view.axes[2] if view.groups > 1 else ()
    return tuple(
        tuple(name for name in names if mesh.shape[name] > 1)
        if size % _count(mesh, names) == 0 and axis not in whole
        else ()
        for axis, (names, size) in enumerate(zip(entries, leaf.shape, strict=True))
    )


def layout_of(
    view: MatrixView, shape: tuple[int, ...], cuts: Sequence[Names], mesh: Mesh
) -> Layout:
    """Return the layout of a leaf of this shape that these mesh axes cut."""
    batch, rows, columns = (
        tuple((shape[axis] // _count(mesh, cuts[axis]), cuts[axis]) for axis in axes)
        for axes in view.axes
    )
    if view.groups > 1:
        batch, columns = (*batch, (view.groups, ())), ((view.n, ()),)
    return Layout(batch, columns, rows) if view.turned else Layout(batch, rows, columns)


class Route:
    """The way of stacks to whole matrices and back.

    A device has as many entries of a matrix however it is cut: they travel as a vector.

    Args:
        mesh: of all devices.
        axes: over which the matrices are spread.
        batch: axes that cut the stacks' batch. They are not crossed.
        cut: axes that cut rows or columns, in the mesh's order.
        stacks: layout of each, equal rows and columns side by side, and the shape `(k, m, n)` of
            its part here.
    """

    def __init__(
        self, mesh: Mesh, axes: Names, batch: Names, cut: Names, stacks: list[tuple[Layout, Any]]
    ):
        self._layouts = [layout for layout, _ in stacks]
        alone = batch + cut
        self._rest = tuple(name for name in axes if name not in alone and mesh.shape[name] > 1)
        self._mesh, self._batch, self._cut, self._all = mesh, batch, cut, self._rest + cut
        count = functools.partial(_count, mesh)
        self._experts, self._shares, self._parts = map(count, (batch, self._rest, cut))
        self._shapes = [shape for _, shape in stacks]
        self._sizes = [k for k, _, _ in self._shapes]
        self._share = -(-sum(self._sizes) // count(self._all))
        # By rows and columns: the number of the first matrix after them.
        ends = itertools.accumulate(self._sizes)
        self._kinds = dict(zip((layout[1:] for layout in self._layouts), ends, strict=True))

    def whole(self, stacks: list[jax.Array]) -> jax.Array:
        """Return this device's `(share, m, n)` of the matrices, from its part of all."""
        flat = joined(*(stack.reshape(stack.shape[0], -1) for stack in stacks))
        padded = _padded(flat, self._shares * self._parts, "constant")
        parts = _block(padded, self._rest, self._shares).reshape(self._parts, self._share, -1)
        if self._cut:
            parts = _sent(_exchange, parts, self._cut)
        return self._by_layout(self._put_together, parts.swapaxes(0, 1))

    def back(self, matrices: jax.Array) -> list[jax.Array]:
        """Return this device's part of all matrices, from the `(share, m, n)` it has."""
        parts = self._by_layout(self._taken_apart, matrices).swapaxes(0, 1)
        if self._cut:
            parts = _sent(_exchange, parts, self._cut)
        flat = parts.reshape(self._parts * self._share, -1)
        if self._rest:
            flat = _sent(_gather, flat, self._rest)
        each = zip(parted(flat[: sum(self._sizes)], self._sizes), self._shapes, strict=True)
        return [part.reshape(shape) for part, shape in each]

    def own_states(self, states: list[State]) -> State:
        """Return the states of this device's matrices, of the states of all."""
        states = [
            jax.tree.map(functools.partial(self._by_device, layout.batch), state)
            for layout, state in zip(self._layouts, states, strict=True)
        ]

        def own(*leaves: jax.Array) -> jax.Array:
            here = joined(*(_block(leaf, self._batch, self._experts) for leaf in leaves))
            devices = self._shares * self._parts
            return _block(_padded(here, devices, "edge"), self._all, devices)

        return jax.tree.map(own, *states)

    def all_states(self, states: State) -> list[State]:
        """Return the states of all matrices, stack by stack, from those of this device's."""
        count = sum(self._sizes)
        gathered = jax.tree.map(lambda leaf: _gathered(leaf, self._all)[:count], states)
        parts = parted(gathered, self._sizes)

        def whole(batch: tuple[Part, ...], leaf: jax.Array) -> jax.Array:
            return self._by_device(batch, _gathered(leaf, self._batch), back=True)

        return [
            jax.tree.map(functools.partial(whole, layout.batch), part)
            for layout, part in zip(self._layouts, parts, strict=True)
        ]

    def _by_device(
        self, batch: tuple[Part, ...], array: jax.Array, back: bool = False
    ) -> jax.Array:
        """Return the entries of a whole batch with those of each device together, or go back."""
        counts = [_count(self._mesh, names) for _, names in batch]
        sizes = [size for size, _ in batch]
        places = np.arange(2 * len(batch)).reshape(-1, 2).T.ravel()  # counts, then sizes
        order = [*places, *range(len(places), len(places) + array.ndim - 1)]
        pairs = [x for pair in zip(counts, sizes, strict=True) for x in pair]
        rest = array.shape[1:]
        if back:
            grid = array.reshape(*counts, *sizes, *rest).transpose(np.argsort(order))
        else:
            grid = array.reshape(*pairs, *rest).transpose(order)
        return grid.reshape(array.shape)

    def _by_layout(self, function: Callable, array: jax.Array) -> jax.Array:
        """Return a function of the device's matrices, along the first axis, and their layouts.

        A device learns which of the matrices are its own when it runs.
        """
        *others, (last, _) = self._kinds.items()
        result = function(array, *last)
        if others:
            device = jax.lax.axis_index(self._all) if self._all else 0
            numbers = (device * self._share + jnp.arange(self._share))[:, None, None]
            for layout, end in reversed(others):
                result = jnp.where(numbers < end, function(array, *layout), result)
        return result

    def _put_together(
        self, parts: jax.Array, rows: tuple[Part, ...], columns: tuple[Part, ...]
    ) -> jax.Array:
        """Return `(share, rows, columns)` from `(share, parts, entries)`."""
        cut = (self._mesh.shape[name] for name in self._cut)
        sizes = (size for size, _ in rows + columns)
        grid = parts.reshape(self._share, *cut, *sizes).transpose(self._order(rows + columns))
        m, n = (_whole_size(self._mesh, side) for side in (rows, columns))
        return grid.reshape(self._share, m, n)

    def _taken_apart(
        self, matrices: jax.Array, rows: tuple[Part, ...], columns: tuple[Part, ...]
    ) -> jax.Array:
        """Return `(share, parts, entries)` from `(share, rows, columns)`."""
        sizes = (
            each
            for size, names in rows + columns
            for each in (*(self._mesh.shape[name] for name in names), size)
        )
        grid = matrices.reshape(self._share, *sizes)
        grid = grid.transpose(np.argsort(self._order(rows + columns)))
        return grid.reshape(self._share, self._parts, -1)

    def _order(self, parts: tuple[Part, ...]) -> list[int]:
        """Return share, mesh axes that cut, axes of a part, in the order of a whole matrix."""
        first = 1 + len(self._cut)
        order = [0]
        for axis, (_, names) in enumerate(parts, first):
            order += [*(1 + self._cut.index(name) for name in names), axis]
        return order


_gather = functools.partial(jax.lax.all_gather, tiled=True)
_exchange = functools.partial(jax.lax.all_to_all, split_axis=0, concat_axis=0, tiled=True)


def _sent(send: Callable, array: jax.Array, names: Names) -> jax.Array:
    """Send an array; its bits, where it is short: CPUs would send bfloat16 as float32."""
    if array.dtype.itemsize != 2:
        return send(array, names)
    sent = send(jax.lax.bitcast_convert_type(array, jnp.uint16), names)
    return jax.lax.bitcast_convert_type(sent, array.dtype)


def _gathered(array: jax.Array, names: Names) -> jax.Array:
    return _gather(array, names) if names else array


def _block(array: jax.Array, names: Names, count: int) -> jax.Array:
    """Return this device's part, one of `count` equal ones, of an array that these axes cut."""
    parts = array.reshape(count, -1, *array.shape[1:])
    return parts[jax.lax.axis_index(names) if names else 0]


def _whole_size(mesh: Mesh, parts: Sequence[Part]) -> int:
    return math.prod(size * _count(mesh, names) for size, names in parts)


def _count(mesh: Mesh, names: Names) -> int:
    return math.prod(mesh.shape[name] for name in names)


def _padded(array: jax.Array, multiple: int, mode: str) -> jax.Array:
    """Return the array with its first axis prolonged to a multiple."""
    missing = -array.shape[0] % multiple
    widths = ((0, missing), *((0, 0),) * (array.ndim - 1))
    return jnp.pad(array, widths, mode=mode) if missing else array


def joined(*parts: jax.Array) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def parted(tree: Any, sizes: Sequence[int], starts: Sequence[Any] | None = None) -> tuple[Any, ...]:
    """Return a tree of arrays in parts of these lengths: one tree for each."""
    if starts is None:
        starts = [*itertools.accumulate(sizes[:-1], initial=0)]
    return tuple(
        jax.tree.map(lambda x, a=a, k=k: jax.lax.dynamic_slice_in_dim(x, a, k), tree)
        for a, k in zip(starts, sizes, strict=True)
    )
