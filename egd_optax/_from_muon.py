"""Optax's Muon goes on as egd. States are found by the names of their fields, in leaves' paths."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from egd_optax._selection import leaves_by_path, listed

Leaves = dict[str, Any]  # by path
_MATRICES, _OTHERS = "inner_states/matrices/", "inner_states/others/"  # of egd's partition


def from_muon(muon_state: Any, egd_state: Any) -> Any:
    """Return the state with which `egd` goes on where `optax.contrib.muon` stopped.

    Both keep the average biased and debias it in a step, by the same powers: `mu` and `count` are
    taken as they are. So is Adam's state, for `others`. Schedules go on at Muon's count.

    Args:
        muon_state: tree with one `MuonState` in it: the state of `optax.contrib.muon`, or of a
            chain or wrapper around it, also from a checkpoint that was restored to dictionaries.
        egd_state: `egd(...).init(params)` of the same parameters, without wrappers. Its structure,
            dtypes, shardings (of committed arrays), and the states of sketches stay.

    Returns:
        State for the next step of `egd`.

    Raises:
        ValueError: no Muon in `muon_state`, or several; counts that are not one number of steps;
            `egd_state` without arrays; other leaves or shapes, or other leaves whitened; `egd`
            without a momentum, with average="after", or with `others` whose state is not Adam's.

    Examples:
        >>> import jax.numpy as jnp, optax
        >>> from egd_optax import egd, from_muon
        >>> params, muon = {"kernel": jnp.eye(2)}, optax.contrib.muon(0.02)
        >>> _, state = muon.update(params, muon.init(params), params)
        >>> optimizer = egd(0.02, momentum=0.95, nesterov=True, others=optax.adamw(0.02))
        >>> state = from_muon(state, optimizer.init(params))

    References:
        `scale_by_muon` and `scale_by_adam` of Optax 0.2.5 to 0.2.8.
    """
    theirs, ours = leaves_by_path(muon_state), leaves_by_path(egd_state)
    if abstract := [path for path, x in ours.items() if isinstance(x, jax.ShapeDtypeStruct)]:
        raise ValueError(
            f"egd_state must hold arrays, got a shape at {abstract[0]!r}. Pass "
            "egd(...).init(params), not what jax.eval_shape makes of it."
        )
    if strange := [path for path in ours if not path.startswith((_MATRICES, _OTHERS))]:
        raise ValueError(
            f"egd_state must be what egd(...).init(params) returns, got {listed(strange, 3)}. "
            "Of a chain or a wrapper pass egd's part, and put the result in its place."
        )
    muon = _only(theirs, "ns_coeffs", "muon_state must hold one state of optax.contrib.muon")
    group = muon.rpartition("inner_states/")[0]  # Muon's partition: Adam's state is in it, too
    theirs = {path: leaf for path, leaf in theirs.items() if path.startswith(group)}
    average = _only(ours, "ema", "egd needs a momentum, such as Muon's momentum=0.95", _MATRICES)
    if not average.endswith("/1/"):  # the second part of the chain: after decay, before whitening
        raise ValueError(
            "Muon averages gradients, and this egd averages whitened ones, which Muon's state does "
            'not know. Build it with average="before".'
        )
    sources = {f"{average}ema": f"{muon}mu"}
    for our, their in zip(_states(ours, "nu", _OTHERS), _states(theirs, "nu"), strict=False):
        sources |= {f"{our}{name}": f"{their}{name}" for name in ("mu", "nu")}
    moved: Leaves = {}
    for target, source in sources.items():
        moved |= _renamed(target, _below(ours, target), _below(theirs, source))
        theirs = {path: leaf for path, leaf in theirs.items() if not path.startswith(source)}
    own = [p for p in ours if "/method_states/" not in p]
    moved = dict.fromkeys((p for p in own if p.endswith("/count")), _count(theirs)) | moved
    if rest := [p for p in own if p not in moved]:
        raise ValueError(
            f"egd's state holds {rest[0]!r}, for which Muon's has nothing. Build egd with Adam, "
            "such as others=optax.adamw(rate, weight_decay=0.0, nesterov=True)."
        )
    leaves = [_like(leaf, moved[path]) if path in moved else leaf for path, leaf in ours.items()]
    return jax.tree.unflatten(jax.tree.structure(egd_state), leaves)


def _states(leaves: Leaves, field: str, start: str = "") -> list[str]:
    """Return where the states with a count and this field are, outermost ones, with a slash."""
    counts = [path for path in leaves if f"/{path}".endswith("/count") and path.startswith(start)]
    found = [where for c in counts if _below(leaves, (where := c.removesuffix("count")) + field)]
    return [w for w in found if not any(w != o and w.startswith(o) for o in found)]


def _only(leaves: Leaves, field: str, what: str, start: str = "") -> str:
    """Return where the one state with this field is."""
    if len(found := _states(leaves, field, start)) != 1:
        among = f" of {listed(list(leaves), 5)}" if leaves else ""
        raise ValueError(f"{what}, got {listed(found)}{among}.")
    return found[0]


def _below(leaves: Leaves, field: str) -> Leaves:
    """Return the leaves of a field; the rest of a path is empty or begins with a slash."""
    return {p[len(field) :]: x for p, x in leaves.items() if f"{p}/".startswith(f"{field}/")}


def _renamed(target: str, needed: Leaves, given: Leaves) -> Leaves:
    """Return the given leaves with the paths that they have in egd's state."""
    for rest in {**needed, **given}:
        has = [f"shape {np.shape(x[rest])}" if rest in x else "nothing" for x in (given, needed)]
        if has[0] != has[1]:
            raise ValueError(
                f"Leaf {rest[1:]!r} has {has[0]} in Muon's state and {has[1]} in egd's {target!r}. "
                "Both must whiten the same leaves; in axes MatrixAxes(0, 1) adds one, None omits."
            )
    return {target + rest: leaf for rest, leaf in given.items()}


def _count(leaves: Leaves) -> int:
    """Return the number of steps, which all states beside Muon's count alike."""
    counts = {path: np.asarray(x) for path, x in leaves.items() if f"/{path}".endswith("/count")}
    steps = {c.item() if c.shape == () and c.dtype.kind in "iu" else -1 for c in counts.values()}
    if len(steps) > 1 or min(steps) < 0:
        shown = ", ".join(f"{count} at {path!r}" for path, count in counts.items())
        raise ValueError(
            f"muon_state must count one number of steps, from 0 on, got {shown}: pass one run's."
        )
    return steps.pop()


def _like(leaf: Any, value: Any) -> jax.Array:
    """Return the value in a leaf's dtype, and in its layout where the leaf is bound to one."""
    value = jnp.asarray(value, leaf.dtype)
    return jax.device_put(value, leaf.sharding) if getattr(leaf, "committed", False) else value
