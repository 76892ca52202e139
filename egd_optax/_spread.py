"""Stacks on a mesh: every device gets whole matrices, whitens them once, and sends them back."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from egd_optax._mesh import Names, Spread, names_of
from egd_optax.polar._method import PolarMethod, State
from egd_optax.polar._stacks import map_stack, update_one

Arrays: TypeAlias = tuple[jax.Array, ...]
States: TypeAlias = tuple[State, ...]
Whitened: TypeAlias = tuple[Arrays, States]


class Layout(NamedTuple):
    """The mesh axes that cut a stack's batch, rows and columns."""

    batch: Names
    rows: Names
    columns: Names


def whiten(
    method: PolarMethod,
    scale: float,
    stacks: Sequence[jax.Array],
    states: Sequence[State],
    spread: Spread | None,
) -> Whitened:
    """Return scaled factors and next states of stacks `(k_i, m, n)`, states of leaves `(k_i, ...)`.

    A matrix with NaN or Inf keeps them.

    Args:
        method: how polar factors are computed.
        scale: of all of them.
        stacks: equal in m, n and dtype.
        states: one for each stack.
        spread: over which devices; None: as the compiler likes.
    """
    arguments = method, scale, tuple(stacks), tuple(states)
    if spread is None:
        return _together(*arguments)
    count = sum(stack.shape[0] for stack in stacks)
    run = _cut_up if spread.cuts_matrices(count, *stacks[0].shape[1:]) else _whole
    return run(spread.axes, *arguments)


def _together(method: PolarMethod, scale: float, stacks: Arrays, states: States) -> Whitened:
    """Whiten stacks as one, wherever they are."""
    sizes = [stack.shape[0] for stack in stacks]
    factors, after = _scaled(method, scale, _joined(*stacks), jax.tree.map(_joined, *states))
    return _parted(factors, sizes), _parted(after, sizes)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _scaled(
    method: PolarMethod, scale: float, stack: jax.Array, states: State
) -> tuple[jax.Array, State]:
    """Whiten and scale a stack, matrix by matrix: while it is at hand, its NaN and Inf return."""

    def one(matrix: jax.Array, state: State) -> tuple[jax.Array, State]:
        factor, after = update_one(method, matrix, state)
        factor = factor if scale == 1 else scale * factor
        return jnp.where(jnp.isfinite(matrix), factor, matrix), after

    return map_stack(one, stack, states)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _cut_up(
    axes: Names, method: PolarMethod, scale: float, stacks: Arrays, states: States
) -> Whitened:
    """Whiten matrices that are cut along their columns: sums of small products are sent."""
    sizes = [stack.shape[0] for stack in stacks]
    cut = PartitionSpec(None, None, axes)
    stack = jax.lax.with_sharding_constraint(_laid_apart(_joined(*stacks)), cut)
    factors, after = _scaled(method, scale, stack, jax.tree.map(_joined, *states))
    pairs = zip(_parted(factors, sizes), stacks, strict=True)
    return tuple(_laid_like(*pair) for pair in pairs), _parted(after, sizes)


def _laid_apart(value: jax.Array) -> jax.Array:
    """Return the value, whose layout from here on says nothing of the one before."""

    def partition(mesh, arguments, result):
        return mesh, lambda value: value, result.sharding, (result.sharding,)

    same = custom_partitioning(lambda value: value)
    same.def_partition(partition, sharding_rule="a b c -> i j k")
    return same(value)


def _laid_like(value: jax.Array, like: jax.Array) -> jax.Array:
    """Return the value in the layout of another array of its shape."""

    def partition(mesh, arguments, result):
        layout = arguments[1].sharding
        return mesh, lambda value, like: value, layout, (layout, layout)

    first = custom_partitioning(lambda value, like: value)
    first.def_partition(partition, sharding_rule="a b c, i j k -> i j k")
    return first(value, like)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _whole(
    axes: Names, method: PolarMethod, scale: float, stacks: Arrays, states: States
) -> Whitened:
    """Whiten stacks of any layout, which is known where the program is cut up for the devices."""
    whiten = functools.partial(_together, method, scale)

    def partition(mesh, arguments, results):
        layouts = [_layout(stack, mesh) for stack in arguments[0]]
        put = tuple(NamedSharding(mesh, PartitionSpec(*one)) for one in layouts)
        everywhere = NamedSharding(mesh, PartitionSpec())
        same = put, jax.tree.map(lambda _: everywhere, arguments[1])
        kinds = (AxisType.Manual,) * len(mesh.axis_names)
        manual = AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=kinds)

        def each(stacks, states):  # a device's own code: types of arrays name no axis of the mesh
            with jax.sharding.use_abstract_mesh(manual):
                return _share(axes, mesh, layouts, whiten, stacks, states)

        return mesh, each, same, same

    anywhere = custom_partitioning(whiten)
    anywhere.def_partition(partition, sharding_rule=_as_it_comes)
    return anywhere(stacks, states)


def _as_it_comes(mesh: Mesh, arguments: Sequence[Any], results: Sequence[Any]) -> str:
    """Return the rule by which a result lies as its argument does, one apart from the other."""
    sides = [" ".join(f"f{i}d{j}" for j in range(len(x.shape))) for i, x in enumerate(arguments)]
    return f"{', '.join(sides)} -> {', '.join(sides)}"


def _layout(stack: jax.ShapeDtypeStruct, mesh: Mesh) -> Layout:
    """Return the axes that cut each axis of a stack, without those that do not cut it evenly."""
    spec = stack.sharding.spec if isinstance(stack.sharding, NamedSharding) else ()
    entries = [names_of(entry) for entry in (*spec, None, None, None)[:3]]
    even = (
        names if size % _count(mesh, names) == 0 else ()
        for names, size in zip(entries, stack.shape, strict=True)
    )
    return Layout(*even)


def _share(
    axes: Names,
    mesh: Mesh,
    layouts: list[Layout],
    whiten: Callable[[Arrays, States], Whitened],
    stacks: Arrays,
    states: States,
) -> Whitened:
    """Whiten this device's share of the stacks, of which it has a part of each.

    Stacks of one layout travel together. Matrices stay where an axis cuts the stack's batch.
    """
    members: dict[Layout, list[int]] = {}
    for index, layout in enumerate(layouts):
        members.setdefault(layout, []).append(index)
    routes = {layout: _Route(mesh, axes, layout) for layout in members}
    here = [
        (
            routes[layout].whole(_joined(*(stacks[i] for i in one))),
            routes[layout].own_states([states[i] for i in one]),
        )
        for layout, one in members.items()
    ]
    factors, after = whiten(*zip(*here, strict=True))
    found: dict[int, tuple[jax.Array, State]] = {}
    for (layout, one), factor, state in zip(members.items(), factors, after, strict=True):
        sizes, route = [stacks[i].shape[0] for i in one], routes[layout]
        parts = _parted(route.back(factor, sum(sizes)), sizes)
        found |= zip(one, zip(parts, route.all_states(state, sizes), strict=True), strict=True)
    order = range(len(stacks))
    return tuple(found[i][0] for i in order), tuple(found[i][1] for i in order)


class _Route:
    """The way of a stack, `(k, m, n)` cut by a layout, to whole matrices and back."""

    def __init__(self, mesh: Mesh, axes: Names, layout: Layout):
        self._cut = layout.rows + layout.columns
        self._batch = layout.batch
        self._rest = tuple(name for name in axes if name not in layout.batch + self._cut)
        self._all = self._rest + self._cut
        count = functools.partial(_count, mesh)
        self._experts, self._shares, self._parts = map(count, (self._batch, self._rest, self._cut))
        self._grid = count(layout.rows), count(layout.columns)

    def whole(self, stack: jax.Array) -> jax.Array:
        """Return this device's `(share, m, n)` of the matrices, from its part of all `(k, ...)`."""
        _, m, n = stack.shape
        padded = _padded(stack, self._shares * self._parts, "constant")
        parts = _block(padded, self._rest, self._shares).reshape(self._parts, -1, m, n)
        if self._cut:
            parts = _sent(_exchange, parts, self._cut)
        rows, columns = self._grid
        grid = parts.reshape(rows, columns, -1, m, n).transpose(2, 0, 3, 1, 4)
        return grid.reshape(-1, rows * m, columns * n)

    def back(self, matrices: jax.Array, count: int) -> jax.Array:
        """Return this device's part of all `count` matrices, from the `(share, m, n)` it has."""
        share, m, n = matrices.shape
        rows, columns = self._grid
        grid = matrices.reshape(share, rows, m // rows, columns, n // columns)
        parts = grid.transpose(1, 3, 0, 2, 4).reshape(self._parts, share, m // rows, n // columns)
        if self._cut:
            parts = _sent(_exchange, parts, self._cut)
        if self._rest:
            parts = _sent(_gather, parts, self._rest)
        return parts.reshape(-1, m // rows, n // columns)[:count]

    def own_states(self, states: list[State]) -> State:
        """Return the states of this device's matrices, of the states of all."""

        def own(*leaves: jax.Array) -> jax.Array:
            here = _joined(*(_block(leaf, self._batch, self._experts) for leaf in leaves))
            devices = self._shares * self._parts
            return _block(_padded(here, devices, "edge"), self._all, devices)

        return jax.tree.map(own, *states)

    def all_states(self, states: State, sizes: list[int]) -> list[State]:
        """Return the states of all matrices, stack by stack, from those of this device's."""
        gathered = jax.tree.map(lambda leaf: _gathered(leaf, self._all)[: sum(sizes)], states)
        whole = functools.partial(_gathered, names=self._batch)
        return [jax.tree.map(whole, part) for part in _parted(gathered, sizes)]


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


def _joined(*parts: jax.Array) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def _parted(tree: Any, sizes: Sequence[int]) -> tuple[Any, ...]:
    """Return a tree of arrays in parts of these lengths: one tree for each."""
    stops = itertools.accumulate(sizes, initial=0)
    return tuple(
        jax.tree.map(lambda x, a=a, b=b: jax.lax.slice_in_dim(x, a, b), tree)
        for a, b in itertools.pairwise(stops)
    )
