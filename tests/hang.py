"""Everything that decomposes stacked leaves, on as many CPU devices as there are.

`python tests/hang.py` prints seconds, `tests/test_hang.py` gives it as long as it may take: two
LAPACK calls on batches at once, on the threads of XLA's CPU backend, wait for each other for ever.
"""

import sys
import time

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from egd_optax import MatrixAxes, diagnostics, egd, polar, scale_by_egd

STACKS = [(3, 64, 192), (3, 64, 64), (3, 64, 256), (3, 256, 64)]
LAST = MatrixAxes(-2, -1)
METHODS = [
    polar.SVD(),
    polar.Halley(),
    polar.Randomized(8),
    polar.SubspaceIteration(8),
]
monitor = diagnostics.spectrum_monitor(axes=LAST)
# An optimizer and the number of its updates; a monitor measures at every tenth.
UPDATES = {
    "monitor": (monitor, 60),
    "around egd": (optax.chain(monitor, egd(0.1, axes=LAST), monitor), 60),
    **{type(method).__name__: (scale_by_egd(method, axes=LAST), 5) for method in METHODS},
    "spread": (scale_by_egd(polar.Halley(), axes=LAST, mesh_axes="x"), 5),
}


def draw(leading=(), stacks=STACKS[:2]):
    """Stacks of N(0, 1) entries, whole on every device."""
    everywhere = NamedSharding(jax.sharding.get_mesh(), PartitionSpec())
    keys = jax.random.split(jax.random.key(0), len(stacks))
    grads = [
        jax.random.normal(key, leading + shape) for key, shape in zip(keys, stacks, strict=True)
    ]
    return jax.device_put(grads, everywhere)


def after_a_first(function, steps=1):
    """Seconds of the calls after the first one, which compiles."""
    carry = jax.block_until_ready(function(None))
    start = time.perf_counter()
    for _ in range(steps):
        carry = jax.block_until_ready(function(carry))
    return time.perf_counter() - start


def updates(name):
    optimizer, steps = UPDATES[name]
    grads = draw(stacks=STACKS if steps == 60 else STACKS[:2])
    update = jax.jit(optimizer.update)
    start = jax.device_put(optimizer.init(grads), grads[0].sharding)
    return after_a_first(lambda carry: update(grads, carry[1] if carry else start, grads), steps)


def seeds():
    """Two trainings at once, each with a monitor."""
    grads = draw((2,))
    both = jax.jit(jax.vmap(lambda grads: monitor.update(grads, monitor.init(grads))))
    return after_a_first(lambda _: both(grads))


def reports():
    """All factors of all stacks against their matrices."""
    grads = draw()
    report = jax.jit(lambda grads: jax.tree.map(jax.vmap(diagnostics.polar_report), grads, grads))
    return after_a_first(lambda _: report(grads))


def check():
    grads = draw()
    return after_a_first(lambda _: diagnostics.check_whitening(egd(0.1, axes=LAST), grads).failed)


OTHERS = {"seeds": seeds, "reports": reports, "check": check}


if __name__ == "__main__":
    kinds = (jax.sharding.AxisType.Auto,)
    jax.set_mesh(jax.make_mesh((jax.device_count(),), ("x",), axis_types=kinds))
    for name in sys.argv[1:] or (*UPDATES, *OTHERS):
        seconds = OTHERS[name]() if name in OTHERS else updates(name)
        sys.stdout.write(f"{name}: {seconds:.2f}\n")
        sys.stdout.flush()
