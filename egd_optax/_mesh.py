"""Over which devices of a mesh matrices are spread, and what the mesh cuts."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.sharding import AxisType, NamedSharding

from egd_optax._checks import check_choice

Names: TypeAlias = tuple[str, ...]  # of mesh axes


class Spread(NamedTuple):
    """Where stacks are whitened: the mesh axes, the number of their devices, what they cut."""

    axes: Names
    devices: int
    cut: str | None

    def cuts_matrices(self, count: int, m: int, n: int) -> bool:
        """Return whether each of `count` wide matrices is cut up, in place of their stack.

        By the rule: where a device then has less to do, or a matrix is too large for one. Of the
        work, in columns, n are shared and about 2 m are repeated by every device.
        """
        if self.cut is not None:
            return self.cut == "matrix"
        whole = -(-count // self.devices) * (n + 2 * m)
        shared = count * (n / self.devices + 2 * m)
        return n % self.devices == 0 and (shared < whole or m * n > _LARGEST)


# Entries of a matrix, 4 GiB in float32: a device needs room for it several times.
_LARGEST = 2**30


def check_spread(mesh_axes: Any, mesh_cut: Any) -> None:
    """Raise TypeError or ValueError unless these are names of axes, and what the mesh cuts."""
    listed = mesh_axes is None or isinstance(mesh_axes, str | tuple | list)
    names = names_of(mesh_axes) if listed else ()
    if not (listed and all(isinstance(name, str) for name in names)):
        raise TypeError(
            f"mesh_axes must name axes of a mesh, such as 'data' or ('data', 'model'), or be None, "
            f"got {mesh_axes!r}."
        )
    if len({*names}) != len(names):
        raise ValueError(f"mesh_axes must name no axis twice, got {mesh_axes!r}.")
    if mesh_cut is not None:
        check_choice("mesh_cut", mesh_cut, ("stack", "matrix"))


def spread_of(leaves: Mapping[str, Any], mesh_axes: Any, mesh_cut: str | None) -> Spread | None:
    """Return over which devices the leaves' matrices are spread; None: as the compiler likes.

    Args:
        leaves: by path.
        mesh_axes: see `scale_by_egd`.
        mesh_cut: see `scale_by_egd`.

    Raises:
        ValueError: no mesh, or axes that it does not have or that `shard_map` has taken.
    """
    mesh, names = jax.sharding.get_abstract_mesh(), names_of(mesh_axes)
    if not leaves or (mesh_axes is not None and not names):
        return None
    if mesh_axes is None:
        mesh, names = _cutting(leaves.values())
    else:
        path, leaf = next(iter(leaves.items()))
        _check_mesh(mesh, names, f"mesh_axes={mesh_axes!r}", f"{path!r}, {told(leaf)}")
    devices = math.prod(mesh.shape[name] for name in names)
    return Spread(names, devices, mesh_cut) if names else None


def _check_mesh(mesh: Any, names: Names, given: str, leaf: str) -> None:
    if not mesh.axis_names:
        raise ValueError(
            f"{given} needs a mesh to spread leaf {leaf} over: update under jax.set_mesh(mesh)."
        )
    if not {*names} <= {*mesh.axis_names}:
        raise ValueError(
            f"{given} must name axes of the mesh, which has {mesh.axis_names}, to spread leaf "
            f"{leaf} over. Name some of those, or set a mesh that has the axes."
        )
    if AxisType.Manual in mesh.axis_types:
        raise ValueError(
            f"{given} cannot spread leaf {leaf} inside shard_map, where each device runs code of "
            "its own. Update outside of it, or give mesh_axes=None, by which each device whitens "
            "what it has."
        )


def _cutting(leaves: Iterable[Any]) -> tuple[Any, Names]:
    """Return the mesh of the leaves' types, and its axes that cut one of them."""
    shardings = [jax.typeof(leaf).sharding for leaf in leaves]
    cut = {name for one in shardings for entry in one.spec for name in names_of(entry)}
    mesh = next((one.mesh for one in shardings if one.mesh.axis_names), shardings[0].mesh)
    manual = AxisType.Manual in mesh.axis_types
    return mesh, () if manual else tuple(name for name in mesh.axis_names if name in cut)


def told(leaf: Any) -> str:
    """Return a leaf's type, and its layout where that is known: that of no tracer."""
    sharding = None if isinstance(leaf, jax.core.Tracer) else getattr(leaf, "sharding", None)
    kind = str(jax.typeof(leaf))
    return f"{kind} in {sharding.spec}" if isinstance(sharding, NamedSharding) else kind


def names_of(entry: Any) -> Names:
    return () if entry is None else (entry,) if isinstance(entry, str) else tuple(entry)
