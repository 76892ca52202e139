"""Shardings in the types of arrays: a decomposition needs whole matrices."""

from typing import Any

import jax


def replicated(leaf: jax.Array) -> jax.Array:
    """Return the leaf on every device where its sharding is part of its type.

    Explicit sharding leaves the choice to the program; automatic sharding, to the compiler.
    """
    sharding = _explicit(leaf)
    if sharding is None:
        return leaf
    whole = jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    return jax.sharding.reshard(leaf, whole)


def sharded_like(value: jax.Array, like: jax.Array) -> jax.Array:
    """Return the value with the sharding of `like` where that is part of its type."""
    sharding = _explicit(like)
    return value if sharding is None else jax.sharding.reshard(value, sharding)


def _explicit(leaf: Any) -> Any:
    """Return the sharding in the leaf's type, None where the compiler decides."""
    sharding = jax.typeof(leaf).sharding
    explicit = jax.sharding.AxisType.Explicit in sharding.mesh.axis_types
    return sharding if explicit else None
