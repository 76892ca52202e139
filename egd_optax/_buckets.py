"""Leaves of equal (m, n, dtype, sharding) -> stacks of bounded size, and back."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from egd_optax._matrix_view import MatrixView
from egd_optax._mesh import Spread, told
from egd_optax._spread import whiten
from egd_optax.polar._method import PolarMethod, State
from egd_optax.polar._stacks import explicit_sharding


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Views that are whitened as one `(k, m, n)` stack; k sums their batches."""

    views: tuple[MatrixView, ...]

    def whiten(
        self,
        method: PolarMethod,
        rule: Callable[[int, int], float],
        leaves: Sequence[jax.Array],
        states: Sequence[State],
        spread: Spread | None,
    ) -> tuple[Sequence[jax.Array], Sequence[State]]:
        """Return updates in the shapes of this bucket's leaves, and the next states."""
        scales = [rule(view.m, view.n) for view in self.views]
        alike = all(isinstance(x, int | float) and x == scales[0] for x in scales)

        def run(leaves, states):
            factor = scales[0] if alike else 1
            updates, after = whiten(method, factor, self.views, leaves, states, spread)
            if not alike:
                pairs = zip(updates, scales, strict=True)
                updates = tuple(one * jnp.asarray(scale, one.dtype) for one, scale in pairs)
            return updates, after

        arguments = tuple(leaves[view.index] for view in self.views), tuple(states)
        known = (explicit_sharding(leaf) for leaf in arguments[0])
        explicit = next((one for one in known if one is not None), None)
        if not explicit and AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types:
            spread = None  # leaves off the mesh: each device has them whole
        if spread:
            self._check_cut(spread, *arguments[0])
        if not explicit:
            return run(*arguments)
        whole = jax.sharding.NamedSharding(explicit.mesh, jax.sharding.PartitionSpec())
        same = jax.tree.map(lambda x: explicit_sharding(x) or whole, arguments)
        return jax.sharding.auto_axes(run, out_sharding=same)(*arguments)

    def _check_cut(self, spread: Spread, leaf: jax.Array, *_: jax.Array) -> None:
        """Raise ValueError where matrices are to be cut, by hand, into parts that are not equal."""
        long = max(self.views[0].shape)
        if spread.cut == "matrix" and long % spread.devices:
            raise ValueError(
                f"mesh_cut='matrix' cuts the longer side of each matrix into equal parts, but leaf "
                f"{self.views[0].path!r} of shape {leaf.shape} and type {told(leaf)} has "
                f"{long} for {spread.devices} devices. Give mesh_cut='stack' or None, or fewer "
                "axes in mesh_axes."
            )


def plan_buckets(
    views: list[MatrixView], leaves: list[Any], max_stack_size: int, spread: Spread | None = None
) -> list[Bucket]:
    """Group views of equal shape, dtype and sharding; a leaf is never divided.

    Over a mesh leaves of several shardings join, and a stack has a matrix for each device.
    """
    buckets: dict[tuple, list[list[MatrixView]]] = {}
    room: dict[tuple, int] = {}
    for view in views:
        leaf, (m, n) = leaves[view.index], view.shape
        size = view.batch * m * n
        group = m, n, leaf.dtype, None if spread else _layout(leaf, view)
        if size > room.get(group, 0):
            buckets.setdefault(group, []).append([])
            room[group] = max(max_stack_size, spread.devices * m * n if spread else 0)
        buckets[group][-1].append(view)
        room[group] -= size
    return [Bucket(tuple(bucket)) for group in buckets.values() for bucket in group]


def tied(update: jax.Array, leaf: jax.Array) -> jax.Array:
    """Return `update`, tied to its leaf, so that the partitioner lays both out alike.

    A decomposition in between makes it forget the layout; `shard_alike` merges those of one shape.
    """
    if jax.device_count() == 1:
        return update
    return jnp.where(jnp.isfinite(leaf), update, leaf)


def _layout(leaf: Any, view: MatrixView) -> Any:
    """Return what has to agree for leaves to be stacked: their sharding, seen as matrices."""
    traced = isinstance(leaf, jax.core.Tracer)
    sharding = jax.typeof(leaf).sharding if traced else getattr(leaf, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return sharding
    spec = dict(enumerate(sharding.spec))
    batch, rows, columns = view.axes
    order = batch + columns + rows if view.turned else view.order
    along = [spec.get(axis) for axis in order]
    return sharding.mesh, tuple(itertools.dropwhile(lambda name: name is None, along))
