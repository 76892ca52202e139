"""The exchange: parts of all matrices on each device <-> a share of the matrices, whole."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from egd_optax._mesh import Names, names_of
from egd_optax.polar._method import State


class Layout(NamedTuple):
    """The mesh axes that cut a stack's batch, rows and columns."""

    batch: Names
    rows: Names
    columns: Names


def layout_of(stack: jax.ShapeDtypeStruct, mesh: Mesh) -> Layout:
    """Return the axes that cut each axis of a stack, without those that do not cut it evenly."""
    spec = stack.sharding.spec if isinstance(stack.sharding, NamedSharding) else ()
    entries = [names_of(entry) for entry in (*spec, None, None, None)[:3]]
    even = (
        tuple(name for name in names if mesh.shape[name] > 1)
        if size % _count(mesh, names) == 0
        else ()
        for names, size in zip(entries, stack.shape, strict=True)
    )
    return Layout(*even)


class Route:
    """The way of stacks to whole matrices and back.

    A device has as many entries of a matrix however it is cut: they travel as a vector.

    Args:
        mesh: of all devices.
        axes: over which the matrices are spread.
        batch: axes that cut the stacks' batch. They are not crossed.
        cut: axes that cut rows or columns, in the mesh's order.
        stacks: layout of each, equal ones side by side, and the shape `(k, m, n)` of its part here.
    """

    def __init__(
        self, mesh: Mesh, axes: Names, batch: Names, cut: Names, stacks: list[tuple[Layout, Any]]
    ):
        alone = batch + cut
        self._rest = tuple(name for name in axes if name not in alone and mesh.shape[name] > 1)
        self._mesh, self._batch, self._cut, self._all = mesh, batch, cut, self._rest + cut
        count = functools.partial(_count, mesh)
        self._experts, self._shares, self._parts = map(count, (batch, self._rest, cut))
        self._shapes = [shape for _, shape in stacks]
        self._sizes = [k for k, _, _ in self._shapes]
        self._share = -(-sum(self._sizes) // count(self._all))
        # By layout: the part's rows and columns, and the number of the first matrix after it.
        self._kinds: dict[Layout, tuple[int, int, int]] = {}
        for (layout, (_, m, n)), end in zip(stacks, itertools.accumulate(self._sizes), strict=True):
            self._kinds[layout] = m, n, end

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

        def own(*leaves: jax.Array) -> jax.Array:
            here = joined(*(_block(leaf, self._batch, self._experts) for leaf in leaves))
            devices = self._shares * self._parts
            return _block(_padded(here, devices, "edge"), self._all, devices)

        return jax.tree.map(own, *states)

    def all_states(self, states: State) -> list[State]:
        """Return the states of all matrices, stack by stack, from those of this device's."""
        count = sum(self._sizes)
        gathered = jax.tree.map(lambda leaf: _gathered(leaf, self._all)[:count], states)
        whole = functools.partial(_gathered, names=self._batch)
        return [jax.tree.map(whole, part) for part in parted(gathered, self._sizes)]

    def _by_layout(self, function: Callable, array: jax.Array) -> jax.Array:
        """Return a function of the device's matrices, along the first axis, and their layouts.

        A device learns which of the matrices are its own when it runs.
        """
        *others, (last, (m, n, _)) = self._kinds.items()
        result = function(array, last, m, n)
        if others:
            device = jax.lax.axis_index(self._all) if self._all else 0
            numbers = (device * self._share + jnp.arange(self._share))[:, None, None]
            for layout, (m, n, end) in reversed(others):
                result = jnp.where(numbers < end, function(array, layout, m, n), result)
        return result

    def _put_together(self, parts: jax.Array, layout: Layout, m: int, n: int) -> jax.Array:
        """Return `(share, rows, columns)` from `(share, parts, m * n)`."""
        grid = parts.reshape(self._share, *(self._mesh.shape[name] for name in self._cut), m, n)
        rows, columns = (_count(self._mesh, names) for names in layout[1:])
        return grid.transpose(self._order(layout)).reshape(-1, rows * m, columns * n)

    def _taken_apart(self, matrices: jax.Array, layout: Layout, m: int, n: int) -> jax.Array:
        """Return `(share, parts, m * n)` from `(share, rows, columns)`."""
        rows, columns = ([self._mesh.shape[name] for name in names] for names in layout[1:])
        grid = matrices.reshape(self._share, *rows, m, *columns, n)
        return grid.transpose(np.argsort(self._order(layout))).reshape(self._share, self._parts, -1)

    def _order(self, layout: Layout) -> list[int]:
        """Return the axes share, the mesh's that cut, m and n, as they follow in a matrix."""
        rows, columns = ([1 + self._cut.index(name) for name in names] for names in layout[1:])
        m = 1 + len(self._cut)
        return [0, *rows, m, *columns, m + 1]


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
