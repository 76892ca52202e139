"""Small losses, as in `fragments.py`: parameters alone, gradients inside, no matrices, two uses."""

import jax
import jax.numpy as jnp
from fragments import FRAGMENTS, IN_OUT, UNKNOWN, end, integers, reads, real
from jax import lax

__all__ = ["FRAGMENTS"]

# What is made of parameters before data come in.


@reads(w=((8, 8), IN_OUT))
def normalized_row_by_row(p, x):
    return end(p, x @ lax.map(lambda row: row / jnp.linalg.norm(row), p["w"]))


@reads(w=((8, 8), IN_OUT), g=((1, 8), "scale"), temperature=((), None))
def weight_normalized(p, x):
    w = p["g"] * p["w"] / jnp.linalg.norm(p["w"], axis=0, keepdims=True)
    return end(p, jnp.exp(p["temperature"]) * (x @ w))


@reads(a=((8, 4), "vector"), w=((8, 8), IN_OUT))
def a_filter_for_each_channel(p, x):
    decays = jnp.exp(-jnp.arange(4.0)[:, None, None] * jnp.ones((8, 4)))
    return end(p, (jnp.einsum("dn,tdn->td", p["a"], decays) * x) @ p["w"])


@reads(real(4, 8), real(8, 8), w=((8, 8), IN_OUT))
def masked(p, x, mask):
    return end(p, x @ jnp.where(mask > 0, p["w"], 0))


@reads(a=((8, 4), IN_OUT), b=((8, 4), IN_OUT))
def side_by_side(p, x):
    return end(p, x @ jnp.concatenate([p["a"], p["b"]], axis=1))


@reads(real(4, 8), real(8, 8), mean=((8, 8), IN_OUT), spread=((8, 8), IN_OUT))
def drawn(p, x, noise):
    return end(p, x @ (p["mean"] + jnp.exp(p["spread"]) * noise))


@reads(real(4, 8), real(8), w=((8, 8), IN_OUT))
def spectrally_normalized(p, x, u):
    v = lax.stop_gradient(u @ p["w"].T)
    u = lax.stop_gradient(v @ p["w"])
    return end(p, x @ (p["w"] / (v @ p["w"] @ u)))


@reads(a=((8, 2), IN_OUT), b=((2, 8), IN_OUT))
def low_rank(p, x):
    return end(p, x @ (p["a"] @ p["b"]))


@reads(w=((8, 8), IN_OUT), base=((8, 8), "unused"), never=((2, 2), "unused"))
def stopped(p, x):
    return end(p, x @ (p["w"] + lax.stop_gradient(p["base"])))


@reads(w=((8, 8), IN_OUT), v=((8, 8), IN_OUT), turned=((8, 8), UNKNOWN))
def branches(p, x):
    def this(x):
        return jnp.tanh(x @ p["w"]) @ p["turned"]

    def that(x):
        return jnp.tanh(jnp.einsum("td,de->te", x, p["v"])) * p["turned"][0]

    return end(p, lax.cond(x.sum() > 0, this, that, x))


@reads(w=((8, 8), IN_OUT))
def regularized(p, x):
    gram = p["w"].T @ p["w"]
    return end(p, x @ p["w"]) + 1e-4 * (jnp.sum(p["w"] ** 2) + jnp.sum(gram**2))


@reads(real(4, 8), real(8, 8), w=((8, 8), IN_OUT), alone=((8, 8), "numbers"))
def kept_small_and_near(p, x, start):
    near = jnp.sum((p["w"] - start) ** 2) + jnp.sum(jnp.abs(p["alone"]))
    return end(p, x @ p["w"]) + 1e-4 * (near + jnp.vdot(p["w"], p["w"]))


@reads(w=((8, 8), IN_OUT), v=((8, 8), IN_OUT))
def symmetric_and_antisymmetric(p, x):
    antisymmetric = p["v"] - p["v"].T

    def step(h, x):
        return jnp.tanh(h @ antisymmetric + x), None

    return end(p, lax.scan(step, jnp.zeros(8), x @ (p["w"] + p["w"].T))[0])


@reads(w=((8, 8), IN_OUT), v=((8, 8), IN_OUT))
def tied_and_turned(p, x):
    """An autoencoder, whose way back is no gradient."""
    code = jnp.tanh(jnp.tanh(x @ p["w"]) @ p["v"])
    return jnp.mean((jnp.tanh(code @ p["v"].T) @ p["w"].T - x) ** 2) + end(p, x)


@reads(w=((8, 8), IN_OUT), v=((8, 8), IN_OUT))
def waiting(p, x):
    """A loop that hands a value on twelve times before it is used."""

    def step(kept, x):
        return (jnp.tanh(x @ p["w"]), *kept[:-1]), jnp.tanh(kept[-1] @ p["v"])

    return end(p, lax.scan(step, (jnp.zeros(8),) * 12, x)[1])


@reads(u=((8,), None), w=((8, 8), IN_OUT), v=((8,), None))
def product_to_a_number(p, x):
    """A number made of parameters alone, which scales data, is no penalty."""
    return end(p, x * (p["u"] @ p["w"] @ p["v"]))


@reads(real(2, 8, 8, 3), w=((3, 8), IN_OUT), filters=((5, 2), "depthwise"))
def light(p, x):
    """One filter for several channels."""
    kernel = jnp.repeat(p["filters"], 4, axis=-1)[:, None, None, :]
    numbers = ("NHWC", "HWIO", "NHWC")
    y = lax.conv_general_dilated(
        x @ p["w"], kernel, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=8
    )
    return end(p, y)


@reads(real(4, 8), real(4, 4), w=((8, 8), IN_OUT))
def graph(p, x, neighbors):
    """Neighbors are averaged after the head, along no axis of it."""
    return (neighbors @ (jnp.tanh(neighbors @ x @ p["w"]) @ p["h"])).mean()


# Gradients inside.


@reads(w=((8, 8), IN_OUT))
def gradient_of_inputs(p, x):
    return end(p, x @ p["w"]) + jnp.sum(jax.grad(lambda x: end(p, x @ p["w"]))(x) ** 2)


@reads(w=((8, 8), IN_OUT))
def one_step_ahead(p, x):
    step = jax.grad(lambda w: end(p, x @ w))(p["w"])
    return end(p, x @ (p["w"] - 0.1 * step))


@reads(w=((8, 8), IN_OUT), bias=((8,), None))
def all_one_step_ahead(p, x):
    """Sharpness-aware: each gradient is divided by the length of all."""

    def loss(p):
        return end(p, x @ p["w"] + p["bias"]) ** 2

    step = jax.grad(loss)(p)
    length = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(step)))
    return loss(jax.tree.map(lambda p, g: p + 0.1 * g / length, p, step))


@reads(a=((8, 8), IN_OUT), w=((8, 8), IN_OUT), bias=((8,), None))
def all_two_steps_ahead(p, x):
    def loss(p):
        return end(p, jnp.tanh(x @ p["a"] + p["bias"]) @ p["w"]) ** 2

    ahead = p
    for _ in range(2):
        ahead = jax.tree.map(lambda p, g: p - 0.1 * g, ahead, jax.grad(loss)(ahead))
    return loss(ahead)


@reads(a=((8, 8), IN_OUT), w=((8, 8), IN_OUT), bias=((8,), None), scale=((8,), None))
def gradient_before_the_model(p, x):
    """As of adversarial examples: the network comes after it and hands data on."""
    x = x + 0.1 * jax.grad(lambda x: jnp.sum(jnp.sin(x) ** 2))(x)
    return end(p, jnp.tanh(p["scale"] * (x @ p["a"]) + p["bias"]) @ p["w"])


@reads(w=((8, 8), IN_OUT), v=((8, 8), IN_OUT), bias=((8,), None))
def gradient_of_inputs_alone(p, x):
    """As in a network of energies that is trained on forces: the head is nowhere used forward."""

    def energy(x):
        return jnp.sum(jnp.tanh(jnp.tanh(x @ p["w"] + p["bias"]) @ p["v"]) @ p["h"])

    return jnp.mean((jax.grad(energy)(x) - 1) ** 2)


@reads(w=((8, 8), IN_OUT))
def own_gradient(p, x):
    @jax.custom_vjp
    def product(w, x):
        return x @ w

    product.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, t: (kept[1].T @ t, t @ kept[0].T))
    return end(p, product(p["w"], x))


@jax.custom_vjp
def spike(x):
    return jnp.where(x > 0, 1.0, 0.0)


spike.defvjp(lambda x: (spike(x), x), lambda x, t: (t / (1 + x**2),))


@reads(w=((8, 8), IN_OUT), binary=((8, 8), UNKNOWN))
def gradient_around_a_step(p, x):
    return end(p, spike(x @ p["w"]) @ spike(p["binary"]))


# No matrices.


@reads(places=((4, 8), "bias"), w=((8, 8), IN_OUT))
def places_without_a_batch(p, x):
    return end(p, (x + p["places"]) @ p["w"])


@reads(places=((4, 8), "bias"), a=((8, 8), IN_OUT), w=((8, 8), IN_OUT))
def places_behind_a_layer(p, x):
    return end(p, (jnp.tanh(x @ p["a"]) + p["places"]) @ p["w"])


@reads(places=((4, 8), "bias"), a=((8, 8), IN_OUT))
def places_that_attend(p, x):
    y = jnp.tanh(x @ p["a"]) + p["places"]
    return end(p, jax.nn.softmax(y @ y.T) @ x)


@reads(scales=((4, 8), "scale"), a=((8, 8), IN_OUT), w=((8, 8), IN_OUT))
def scales_without_a_batch(p, x):
    return end(p, (jnp.tanh(x @ p["a"]) * p["scales"]) @ p["w"])


@reads(integers(4), table=((9, 8), "embedding"), w=((8, 8), IN_OUT))
def padding_set_to_zero(p, tokens):
    return end(p, p["table"].at[0].set(0.0)[tokens] @ p["w"])


@reads(integers(4), table=((9, 4), "embedding"), up=((4, 8), IN_OUT), w=((8, 8), IN_OUT))
def widened_before_the_lookup(p, tokens):
    return end(p, (p["table"] @ p["up"])[tokens] @ p["w"])


@reads(w=((8, 8), IN_OUT), scales=((8, 8), "scale"))
def each_feature_by_itself(p, x):
    return end(p, jnp.einsum("td,dk->tdk", jnp.tanh(x @ p["w"]), p["scales"]))


@reads(integers(), table=((9, 8), "embedding"), w=((8, 8), IN_OUT))
def one_token(p, token):
    return end(p, p["table"][token] @ p["w"])


@reads(queries=((5, 8), "token"), w=((8, 8), IN_OUT))
def learned_queries(p, x):
    queries = jnp.broadcast_to(p["queries"], (2, 5, 8)) @ p["w"]
    return end(p, jax.nn.softmax(queries @ x.T) @ x)


# Used in two ways, or in one that is not understood.


@reads(w=((8, 8), UNKNOWN))
def product_and_bias(p, x):
    return end(p, x @ p["w"] + p["w"][0])


@reads(w=((8, 8, 8), UNKNOWN))
def two_products(p, x):
    return end(p, jnp.einsum("td,def->tf", x, p["w"]) + jnp.einsum("te,def->tf", x, p["w"]))


def shuffled_sum(w):
    return w.reshape(8, 8) + w.swapaxes(0, 1).reshape(8, 8)


@reads(w=((8, 8, 8), UNKNOWN))
def layers_mixed_with_rows(p, x):
    return end(p, lax.scan(lambda x, w: (x @ w, None), x, p["w"] + p["w"].swapaxes(0, 1))[0])


@reads(w=((4, 2, 8), UNKNOWN))
def summed_in_two_orders(p, x):
    return end(p, x @ shuffled_sum(p["w"]))


@reads(w=((4, 2, 8), UNKNOWN))
def matrix_and_summed_in_two_orders(p, x):
    return end(p, x @ p["w"].reshape(8, 8) + x @ shuffled_sum(p["w"]))


@reads(w=((8, 8), UNKNOWN))
def sorted_entries(p, x):
    return end(p, x @ jnp.sort(p["w"], axis=0))
