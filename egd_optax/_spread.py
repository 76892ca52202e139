"""Leaves on a mesh: every device gets whole matrices, whitens them once, and sends them back."""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from egd_optax._exchange import Layout, Route, cuts_of, joined, layout_of, parted
from egd_optax._matrix_view import MatrixView
from egd_optax._mesh import Names, Spread
from egd_optax.polar._method import PolarMethod, State
from egd_optax.polar._stacks import map_stack, update_one

Arrays: TypeAlias = tuple[jax.Array, ...]
States: TypeAlias = tuple[State, ...]
Whitened: TypeAlias = tuple[Arrays, States]


def whiten(
    method: PolarMethod,
    scale: float,
    views: Sequence[MatrixView],
    leaves: Sequence[jax.Array],
    states: Sequence[State],
    spread: Spread | None,
) -> Whitened:
    """Return scaled factors of leaves whose matrices are one stack, and the next states.

    A matrix with NaN or Inf keeps them.

    Args:
        method: how polar factors are computed.
        scale: of all of them.
        views: of the leaves, equal in rows, columns and dtype.
        leaves: in any layout.
        states: one for each leaf, of its matrices `(k, ...)`.
        spread: over which devices; None: as the compiler likes.
    """
    views = tuple(dataclasses.replace(view, index=0, path="") for view in views)  # equal ones hash
    arguments = tuple(leaves), tuple(states)
    if spread is None:
        return _by_stacks(functools.partial(_together, method, scale), views, *arguments)
    # The mesh may cut a batch axis, experts say, which is not known here: they stay where they are.
    batches = [view.batch for view in views]
    whole = spread.cut is None and max(batches) > 1
    if whole or not spread.cuts_matrices(sum(batches), *sorted(views[0].shape)):
        run = functools.partial(_whole, spread.axes, method, scale, views)
    else:
        cut_up = functools.partial(_cut_up, spread.axes, method, scale)
        run = functools.partial(_by_stacks, cut_up, views)
    return _refusing_transforms(run)(*arguments)


def _refusing_transforms(
    run: Callable[[Arrays, States], Whitened],
) -> Callable[[Arrays, States], Whitened]:
    """Return the function, which says how to go on where it is mapped or differentiated."""

    def refuse(*_: Any) -> Any:
        raise NotImplementedError(
            "an update that is spread over a mesh cannot be mapped by vmap or differentiated, as "
            "JAX has no rule for custom partitioning. Give mesh_axes=(): then the compiler decides."
        )

    unmapped = jax.custom_batching.custom_vmap(run)
    unmapped.def_vmap(refuse)
    fixed = jax.custom_jvp(unmapped)
    fixed.defjvp(refuse)
    return fixed


def _by_stacks(
    run: Callable[[Arrays, States], Whitened],
    views: Sequence[MatrixView],
    leaves: Arrays,
    states: States,
) -> Whitened:
    """Run a function of stacks `(k, m, n)` on leaves, or on a device's parts of them."""
    views = [view.part(leaf.shape) for view, leaf in zip(views, leaves, strict=True)]
    stacks = tuple(view.to_stack(leaf) for view, leaf in zip(views, leaves, strict=True))
    factors, after = run(stacks, states)
    each = zip(views, factors, leaves, strict=True)
    return tuple(view.to_leaf(factor, leaf) for view, factor, leaf in each), after


def _together(method: PolarMethod, scale: float, stacks: Arrays, states: States) -> Whitened:
    """Whiten stacks as one, wherever they are."""
    sizes = [stack.shape[0] for stack in stacks]
    factors, after = _scaled(method, scale, joined(*stacks), jax.tree.map(joined, *states))
    starts = _starts(factors, tuple(sizes)) if len(sizes) > 1 and jax.device_count() == 1 else None
    return parted(factors, sizes, starts), parted(after, sizes, starts)


@functools.partial(jax.jit, static_argnums=1)  # a branch compiles at every call outside of jit
def _starts(stack: jax.Array, sizes: tuple[int, ...]) -> list[jax.Array]:
    """Return where each part of a stack begins; CPUs do not know it when they compile.

    They compile equal kernels once, but a slice's constant start makes it one of a kind: 192 leaves
    take .2 s in place of 1.9. The branch, which is the same either way, hides the constants.
    XLA sees through `optimization_barrier`.
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

    return map_stack(one, stack, states, batches=method.batches)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _cut_up(
    axes: Names, method: PolarMethod, scale: float, stacks: Arrays, states: States
) -> Whitened:
    """Whiten matrices that are cut along their longer side: sums of small products are sent."""
    sizes = [stack.shape[0] for stack in stacks]
    _, m, n = stacks[0].shape
    cut = PartitionSpec(None, None, axes) if m <= n else PartitionSpec(None, axes)
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


@functools.partial(jax.jit, static_argnums=(0, 1, 2, 3))
def _whole(
    axes: Names,
    method: PolarMethod,
    scale: float,
    views: tuple[MatrixView, ...],
    leaves: Arrays,
    states: States,
) -> Whitened:
    """Whiten leaves of any layout, which is known where the program is cut up for the devices."""
    together = functools.partial(_together, method, scale)

    def partition(mesh, arguments, results):
        # Leaves may lie on a mesh of their own, or on none: those of its axes that cut are crossed.
        names = tuple(name for name in axes if name in mesh.axis_names)
        cuts = [cuts_of(*pair, mesh) for pair in zip(views, arguments[0], strict=True)]
        put = tuple(NamedSharding(mesh, PartitionSpec(*one)) for one in cuts)
        everywhere = NamedSharding(mesh, PartitionSpec())
        same = put, jax.tree.map(lambda _: everywhere, arguments[1])
        layouts = [
            layout_of(view, leaf.shape, one, mesh)
            for view, leaf, one in zip(views, arguments[0], cuts, strict=True)
        ]
        share = functools.partial(_share, names, mesh, layouts, together)
        kinds = (AxisType.Manual,) * len(mesh.axis_names)
        manual = AbstractMesh(mesh.axis_sizes, mesh.axis_names, axis_types=kinds)

        def each(leaves, states):  # a device's own code: types of arrays name no axis of the mesh
            with jax.sharding.use_abstract_mesh(manual):
                return _by_stacks(share, views, leaves, states)

        return mesh, each, same, same

    anywhere = custom_partitioning(functools.partial(_by_stacks, together, views))
    anywhere.def_partition(partition, sharding_rule=_as_it_comes)
    return anywhere(leaves, states)


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
    """Whiten this device's share of the stacks, of each of which it has a part.

    Stacks that are cut by the same axes travel together.
    """
    members: dict[tuple[Names, Names], list[int]] = {}
    for index in sorted(range(len(stacks)), key=lambda index: layouts[index][1:]):
        batch, crossed = layouts[index].uncrossed, layouts[index].crossed
        cut = tuple(name for name in mesh.axis_names if name in crossed)
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
