"""Stacks on a mesh: every device gets whole matrices, whitens them once, and sends them back."""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from egd_optax._exchange import Layout, Route, joined, layout_of, parted
from egd_optax._mesh import Names, Spread
from egd_optax.polar._method import PolarMethod, State
from egd_optax.polar._stacks import map_stack, update_one

Arrays: TypeAlias = tuple[jax.Array, ...]
States: TypeAlias = tuple[State, ...]
Whitened: TypeAlias = tuple[Arrays, States]


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
    sizes = [stack.shape[0] for stack in stacks]
    # The mesh may cut a batch axis, experts say, which is not known here: they stay where they are.
    whole = spread.cut is None and max(sizes) > 1
    run = _whole if whole or not spread.cuts_matrices(sum(sizes), *stacks[0].shape[1:]) else _cut_up
    return run(spread.axes, *arguments)


def _together(method: PolarMethod, scale: float, stacks: Arrays, states: States) -> Whitened:
    """Whiten stacks as one, wherever they are."""
    sizes = [stack.shape[0] for stack in stacks]
    factors, after = _scaled(method, scale, joined(*stacks), jax.tree.map(joined, *states))
    starts = _starts(factors, sizes) if len(sizes) > 1 and jax.device_count() == 1 else None
    return parted(factors, sizes, starts), parted(after, sizes, starts)


def _starts(stack: jax.Array, sizes: Sequence[int]) -> list[jax.Array]:
    """Return where each part of a stack begins; CPUs do not know it when they compile.

    They compile equal kernels once, but a slice's constant start makes it one of a kind: 192 leaves
    take .2 s in place of 1.9. The branch, which is the same either way, hides the constants.
    """

    def known(*_: jax.Array) -> list[jax.Array]:
        return [jnp.int32(start) for start in itertools.accumulate(sizes[:-1], initial=0)]

    def hidden(odd: jax.Array) -> list[jax.Array]:
        return jax.lax.cond(odd, known, known)

    found = jax.custom_batching.custom_vmap(
        lambda odd: jax.lax.platform_dependent(odd, cpu=hidden, default=known)
    )
    found.def_vmap(lambda _, batched, odd: (found(odd[0]), [False] * len(sizes)))
    return found(jnp.isnan(jax.lax.stop_gradient(stack[0, 0, 0])))


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
    stack = jax.lax.with_sharding_constraint(joined(*map(_laid_apart, stacks)), cut)
    factors, after = _scaled(method, scale, stack, jax.tree.map(joined, *states))
    pairs = zip(parted(factors, sizes), stacks, strict=True)
    return tuple(_laid_like(*pair) for pair in pairs), parted(after, sizes)


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
        if not {*axes} <= {*mesh.axis_names}:  # no array lies on the mesh: one device has it all
            same = jax.tree.map(lambda x: x.sharding, tuple(arguments))
            return mesh, whiten, same, same
        layouts = [layout_of(stack, mesh) for stack in arguments[0]]
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


def _share(
    axes: Names,
    mesh: Mesh,
    layouts: list[Layout],
    whiten: Callable[[Arrays, States], Whitened],
    stacks: Arrays,
    states: States,
) -> Whitened:
    """Whiten this device's share of the stacks, of which it has a part of each.

    Stacks that are cut by the same axes travel together.
    """
    members: dict[tuple[Names, Names], list[int]] = {}
    for index in sorted(range(len(stacks)), key=lambda index: layouts[index]):
        batch, rows, columns = layouts[index]
        cut = tuple(name for name in mesh.axis_names if name in rows + columns)
        members.setdefault((batch, cut), []).append(index)
    routes = [
        Route(mesh, axes, *key, [(layouts[i], stacks[i].shape) for i in one])
        for key, one in members.items()
    ]
    here = [
        (route.whole([stacks[i] for i in one]), route.own_states([states[i] for i in one]))
        for route, one in zip(routes, members.values(), strict=True)
    ]
    factors, after = whiten(*zip(*here, strict=True))
    found: dict[int, tuple[jax.Array, State]] = {}
    for route, one, factor, state in zip(routes, members.values(), factors, after, strict=True):
        parts = zip(route.back(factor), route.all_states(state), strict=True)
        found |= zip(one, parts, strict=True)
    order = range(len(stacks))
    return tuple(found[i][0] for i in order), tuple(found[i][1] for i in order)
