"""The states of every transformation after some steps, one file a version, so that layouts stay.

`python tests/checkpoints/states.py` writes the file of the present version, which must not exist:
once a version is out, its states are never written again.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

import egd_optax
from egd_optax import MatrixAxes, egd, polar, scale_by_egd, switch_off
from egd_optax.diagnostics import spectrum_monitor

FOLDER = pathlib.Path(__file__).parent
STACKED = MatrixAxes(rows=-2, columns=-1)
SUBSPACE = scale_by_egd(polar.SubspaceIteration(2), axes=STACKED)
RANDOMIZED = scale_by_egd(polar.Randomized(2), axes=STACKED)
TRANSFORMATIONS = {
    "scale_by_egd": scale_by_egd(axes=STACKED),
    "subspace": SUBSPACE,
    "randomized": RANDOMIZED,
    "egd": egd(0.1, method=polar.SubspaceIteration(2), axes=STACKED, momentum=0.9, nesterov=True),
    "switch_off": switch_off(RANDOMIZED, optax.trace(0.9), threshold=0.5),
    "spectrum_monitor": optax.chain(spectrum_monitor(2, axes=STACKED), optax.trace(0.9)),
}
PARAMS = {
    "dense": {"kernel": jnp.ones((6, 4)), "bias": jnp.zeros(4)},
    "layers": [jnp.ones((2, 3, 5))],
}
STEPS = 3


def step(name, state, gradients):
    update = jax.jit(optax.with_extra_args_support(TRANSFORMATIONS[name]).update)
    return update(gradients, state, PARAMS, metric=0.4)


def draw(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype("f4"), PARAMS)


def template(name):
    """Return a tree of the structure, shapes and dtypes of `content`."""
    return {"state": TRANSFORMATIONS[name].init(PARAMS), "gradients": PARAMS, "updates": PARAMS}


def content(name):
    """Return the state after some steps, the next gradients, and the updates they give."""
    state = TRANSFORMATIONS[name].init(PARAMS)
    for seed in range(STEPS):
        _, state = step(name, state, draw(seed))
    gradients = draw(STEPS)
    return {"state": state, "gradients": gradients, "updates": step(name, state, gradients)[0]}


def by_name(trees):
    """Return the leaves by the names that a checkpoint finds them by."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(trees)
    }


def write(file):
    if file.exists():
        raise SystemExit(f"{file} exists: the states of a version are written once.")
    np.savez_compressed(file, **by_name({name: content(name) for name in TRANSFORMATIONS}))


if __name__ == "__main__":
    write(FOLDER / f"{egd_optax.__version__}.npz")
