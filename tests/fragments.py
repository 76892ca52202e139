"""Small losses, each with what is to be read off it: axes, or how the reason begins.

Here: columns that go different ways, and axes of batch. The others are in `more_fragments.py`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from egd_optax import MatrixAxes

IN_OUT, EACH, HEAD, UNKNOWN = MatrixAxes(0, 1), MatrixAxes(1, 2), "output head", "unknown"
TOGETHER = MatrixAxes((0, 1), 2)
TWO, THREE, FOUR = (MatrixAxes(0, 1, groups=groups) for groups in (2, 3, 4))


class Fragment(NamedTuple):
    """A loss of parameters of some shapes and examples of others, and what is expected."""

    loss: Callable
    shapes: dict[str, tuple[int, ...]]
    examples: tuple[Any, ...]
    table: dict[str, MatrixAxes | str]


FRAGMENTS: dict[str, Fragment] = {}


def real(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def integers(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def reads(*examples, **leaves):
    """Register a fragment: for each parameter its shape and what is expected; `h` is a head."""

    def register(loss):
        shapes = {name: shape for name, (shape, _) in leaves.items()} | {"h": (8, 3)}
        table = {name: row for name, (_, row) in leaves.items() if row is not None} | {"h": HEAD}
        given = examples or (real(4, 8),)
        FRAGMENTS[loss.__name__] = Fragment(loss, shapes, given, table)
        return loss

    return register


def end(p, x):
    return (jnp.tanh(x) @ p["h"]).mean()


def attend(q, k, v):
    heads = (t.reshape(len(t), 2, 4) for t in (q, k, v))
    q, k, v = heads
    weights = jax.nn.softmax(jnp.einsum("thk,shk->hts", q, k) / math.sqrt(4))
    return jnp.einsum("hts,shk->thk", weights, v).reshape(len(v), 8)


# Columns that go different ways.


@reads(w=((8, 24), THREE))
def split_after(p, x):
    return end(p, x + attend(*jnp.split(x @ p["w"], 3, axis=1)))


@reads(w=((8, 24), THREE))
def sliced_before(p, x):
    return end(p, x + attend(*(x @ p["w"][:, i : i + 8] for i in (0, 8, 16))))


@reads(w=((8, 24), THREE))
def an_axis_of_three(p, x):
    return end(p, x + attend(*jnp.unstack((x @ p["w"]).reshape(4, 3, 2, 4), axis=1)))


@reads(w=((8, 3, 8), MatrixAxes(0, 2)))
def an_axis_of_three_in_the_leaf(p, x):
    y = jnp.einsum("td,dpk->tpk", x, p["w"])
    return end(p, x + attend(y[:, 0], y[:, 1], y[:, 2]))


@reads(w=((8, 2, 12), MatrixAxes(0, (2, 1), groups=3)))
def parts_of_every_head(p, x):
    return end(p, x + attend(*jnp.split(jnp.einsum("td,dhk->thk", x, p["w"]), 3, axis=-1)))


@reads(w=((8, 24), THREE))
def a_kernel_of_ones_own(p, x):
    """Nothing is known of what a callback, or a kernel in another language, does."""
    q, k, v = jnp.split(x @ p["w"], 3, axis=1)
    return end(p, x + jax.pure_callback(attend, real(4, 8), q, k, v))


@reads(w=((8, 24), UNKNOWN))
def parts_of_every_head_in_one_axis(p, x):
    return end(p, x + attend(*jnp.split((x @ p["w"]).reshape(4, 2, 12), 3, axis=-1)))


@reads(w=((8, 16), UNKNOWN))
def unequal_parts(p, x):
    y = x @ p["w"]
    return end(p, x + attend(y[:, :8], *(jnp.tile(t, (1, 2)) for t in (y[:, 8:12], y[:, 12:]))))


@reads(w=((8, 16), UNKNOWN))
def a_part_of_a_part(p, x):
    first, second = jnp.split(x @ p["w"], 2, axis=1)
    a, b = jnp.split(first, 2, axis=1)
    return end(p, a @ b.T @ second)


@reads(w=((8, 8), IN_OUT))
def one_part_alone(p, x):
    return end(p, (x @ p["w"])[:, :4] @ x[:4])


@reads(w=((8, 16), TWO), down=((8, 8), IN_OUT))
def gated(p, x):
    gate, up = jnp.split(x @ p["w"], 2, axis=1)
    return end(p, (jax.nn.silu(gate) * up) @ p["down"])


@reads(inputs=((8, 32), FOUR), state=((8, 32), FOUR))
def gates(p, x):
    """A recurrent cell: one matrix for each gate, and not one for each step."""

    def step(carry, x):
        h, c = carry
        i, f, g, o = jnp.split(x @ p["inputs"] + h @ p["state"], 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    return end(p, lax.scan(step, (jnp.zeros(8), jnp.zeros(8)), x)[0][0])


def halves(x):
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([0.6 * a - 0.8 * b, 0.8 * a + 0.6 * b], axis=-1)


def pairs(x):
    a, b = x[..., ::2], x[..., 1::2]
    return jnp.stack([0.6 * a - 0.8 * b, 0.8 * a + 0.6 * b], axis=-1).reshape(x.shape)


def complex_pairs(x):
    y = x.reshape(*x.shape[:-1], -1, 2)
    y = lax.complex(y[..., 0], y[..., 1]) * jnp.exp(1j)
    return jnp.stack([y.real, y.imag], axis=-1).reshape(x.shape)


def some(x):
    return jnp.concatenate([halves(x[..., :4]), x[..., 4:]], axis=-1)


def rotary(rotate):
    def loss(p, x):
        q, k, v = jnp.split(x @ p["w"], 3, axis=1)
        return end(p, x + attend(rotate(q), rotate(k), v))

    loss.__name__ = f"rotary_{rotate.__name__}"
    reads(w=((8, 24), THREE))(loss)


for rotation in (halves, pairs, complex_pairs, some):
    rotary(rotation)

# Batch.


@reads(w=((5, 8, 8), EACH))
def layers_by_a_counter(p, x):
    return end(p, lax.fori_loop(0, 5, lambda i, x: jnp.tanh(x @ p["w"][i]), x))


@reads(w=((6, 8, 8), EACH))
def scans_in_scans(p, x):
    def layer(x, w):
        return jnp.tanh(x @ w), None

    def block(x, w):
        return lax.scan(layer, x, w)

    return end(p, lax.scan(block, x, p["w"].reshape(2, 3, 8, 8))[0])


@reads(w=((8, 8), IN_OUT))
def carried_through_a_loop(p, x):
    return end(p, lax.while_loop(lambda c: c[1].sum() > 0, step_of_w, (p["w"], x))[1])


def step_of_w(carry):
    w, x = carry
    return w, jnp.tanh(x @ w)


@reads(real(4, 8), integers(4), w=((5, 8, 8), EACH))
def experts_picked(p, x, chosen):
    return end(p, jnp.einsum("td,tdf->tf", x, p["w"][chosen]))


@reads(real(4, 8), integers(5), up=((5, 8, 6), EACH), down=((5, 6, 8), EACH))
def experts_ragged(p, x, sizes):
    return end(p, lax.ragged_dot(jax.nn.relu(lax.ragged_dot(x, p["up"], sizes)), p["down"], sizes))


@reads(q=((2, 8, 4), EACH), k=((2, 8, 4), EACH), v=((2, 8, 4), EACH), o=((2, 4, 8), EACH))
def heads_mapped(p, x):
    def head(q, k, v, o):
        return jax.nn.softmax((x @ q) @ (x @ k).T) @ (x @ v) @ o

    return end(p, x + jax.vmap(head)(p["q"], p["k"], p["v"], p["o"]).sum(0))


@reads(**{name: ((2, 8, 4), MatrixAxes(1, (0, 2))) for name in "qkv"}, o=((2, 4, 8), TOGETHER))
def heads_together(p, x):
    q, k, v = (jnp.einsum("td,hdk->thk", x, p[name]) for name in "qkv")
    weights = jax.nn.softmax(jnp.einsum("thk,shk->hts", q, k))
    return end(p, x + jnp.einsum("hts,shk,hkd->td", weights, v, p["o"]))


STACKED = MatrixAxes((1, 2, 3), 4)


@reads(real(4, 6, 6, 3), first=((4, 3, 3, 3, 8), STACKED), second=((4, 3, 3, 8, 8), STACKED))
def convolutions_mapped(p, x):
    """Of which a map makes one convolution with groups."""

    def member(first, second):
        kinds = ("NHWC", "HWIO", "NHWC")
        y = jnp.tanh(lax.conv_general_dilated(x, first, (1, 1), "SAME", dimension_numbers=kinds))
        return lax.conv_general_dilated(y, second, (1, 1), "SAME", dimension_numbers=kinds)

    return end(p, jax.vmap(member)(p["first"], p["second"]).mean((0, 2, 3)))


@reads(a=((8, 8), IN_OUT), b=((8, 8), IN_OUT))
def stacked_inside(p, x):
    return end(p, lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, jnp.stack([p["a"], p["b"]]))[0])


@reads(w=((8, 2), UNKNOWN))
def rows_in_groups(p, x):
    y = jnp.einsum("tgk,gkf->tgf", x.reshape(4, 4, 2), p["w"].reshape(4, 2, 2))
    return end(p, y.reshape(4, 8))
