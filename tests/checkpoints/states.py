"""Checkpoints of every transformation's state, one folder a version, so that layouts stay.

`python tests/checkpoints/states.py` writes the folder of the present version, which must not exist:
once a version is out, its checkpoint is never written again.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import egd_optax
from egd_optax import MatrixAxes, blend_in, egd, grokfast_ema, grokfast_ma, polar, scale_by_egd
from egd_optax import switch_off as switch
from egd_optax.diagnostics import spectrum_monitor

FOLDER = pathlib.Path(__file__).parent
STACKED = MatrixAxes(rows=-2, columns=-1)
STREAMING = scale_by_egd(polar.SubspaceIteration(2), axes=STACKED)
RANDOMIZED = scale_by_egd(polar.Randomized(2), axes=STACKED)

TRANSFORMATIONS = {
    "scale_by_egd": scale_by_egd(axes=STACKED),
    "streaming": STREAMING,
    "randomized": RANDOMIZED,
    "egd": egd(0.1, method=polar.SubspaceIteration(2), axes=STACKED, momentum=0.9),
    "switch_off": switch(RANDOMIZED, optax.trace(0.9), threshold=0.5),
    "blend_in": blend_in(STREAMING, optax.linear_schedule(0.0, 1.0, 8)),
    "grokfast_ema": grokfast_ema(),
    "grokfast_ma": grokfast_ma(window=3),
    "spectrum_monitor": optax.chain(spectrum_monitor(2, axes=STACKED), optax.trace(0.9)),
}
PARAMS = {
    "dense": {"kernel": jnp.ones((6, 4)), "bias": jnp.zeros(4)},
    "layers": [jnp.ones((2, 3, 5))],
}
STEPS = 3


def step(name, state, gradients):
    update = optax.with_extra_args_support(TRANSFORMATIONS[name]).update
    return update(gradients, state, PARAMS, metric=0.4)


def draw(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype("f4"), PARAMS)


def template(name):
    """Return a tree of the structure, shapes and dtypes of `content`."""
    return {
        "state": TRANSFORMATIONS[name].init(PARAMS),
        "gradients": PARAMS,
        "updates": PARAMS,
    }


def content(name):
    """Return the state after some steps, the next gradients, and the updates they give."""
    state = TRANSFORMATIONS[name].init(PARAMS)
    for seed in range(STEPS):
        _, state = step(name, state, draw(seed))
    gradients = draw(STEPS)
    return {"state": state, "gradients": gradients, "updates": step(name, state, gradients)[0]}


def write(folder):
    if folder.exists():
        raise SystemExit(f"{folder} exists: the checkpoint of a version is written once.")
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(folder.resolve(), {name: content(name) for name in TRANSFORMATIONS})
    (folder / "commit_success.txt").write_text("")  # Orbax writes the folder's whole path


if __name__ == "__main__":
    write(FOLDER / egd_optax.__version__)
