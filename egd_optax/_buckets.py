"""Leaves of equal (m, n, dtype, sharding) -> stacks of bounded size, and back."""

import dataclasses
import itertools
from typing import Any

import jax
import jax.numpy as jnp

from egd_optax._matrix_view import MatrixView
from egd_optax.polar._stacks import replicated, sharded_like


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Views that are whitened as one `(k, m, n)` stack; k sums their batches."""

    views: tuple[MatrixView, ...]

    def gather(self, leaves: list[jax.Array]) -> jax.Array:
        """Return the stack of this bucket's leaves."""
        return _concatenate([view.to_stack(replicated(leaves[view.index])) for view in self.views])

    def gather_states(self, states: dict[str, Any]) -> Any:
        """Return the states of this bucket's leaves, each array with leading axis k."""
        trees = [states[view.path] for view in self.views]
        return jax.tree.map(lambda *parts: _concatenate(list(parts)), *trees)

    def split(self, tree: Any) -> list[Any]:
        """Return `tree`, arrays with leading axis k, in parts: one tree for each view."""
        stops = itertools.accumulate((view.batch for view in self.views), initial=0)
        return [
            jax.tree.map(lambda x, a=a, b=b: x[a:b], tree) for a, b in itertools.pairwise(stops)
        ]


def plan_buckets(views: list[MatrixView], leaves: list[Any], max_stack_size: int) -> list[Bucket]:
    """Group views of equal shape, dtype and sharding; a leaf is never divided."""
    buckets: dict[tuple, list[list[MatrixView]]] = {}
    room: dict[tuple, int] = {}
    for view in views:
        leaf, size = leaves[view.index], view.batch * view.m * view.n
        group = view.m, view.n, leaf.dtype, _layout(leaf, view)
        if size > room.get(group, 0):
            buckets.setdefault(group, []).append([])
            room[group] = max_stack_size
        buckets[group][-1].append(view)
        room[group] -= size
    return [Bucket(tuple(bucket)) for group in buckets.values() for bucket in group]


def restore(update: jax.Array, like: jax.Array) -> jax.Array:
    """Return `update` with the dtype and the sharding of the leaf `like`, and its NaN and Inf.

    The entry-wise choice tells the partitioner to lay the update out like the leaf, which a
    decomposition in between makes it forget; `shard_alike` merges the layouts of equal shapes.
    """
    update = sharded_like(update, like).astype(like.dtype)
    return jnp.where(jnp.isfinite(like), update, like)


def _layout(leaf: Any, view: MatrixView) -> Any:
    """Return what has to agree for leaves to be stacked: their sharding, seen as matrices."""
    traced = isinstance(leaf, jax.core.Tracer)
    sharding = jax.typeof(leaf).sharding if traced else getattr(leaf, "sharding", None)
    if not isinstance(sharding, jax.sharding.NamedSharding):
        return sharding
    spec = dict(enumerate(sharding.spec))
    along = [spec.get(axis) for axis in view.order]
    return sharding.mesh, tuple(itertools.dropwhile(lambda name: name is None, along))


def _concatenate(parts: list[jax.Array]) -> jax.Array:
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)
