# %% [markdown]
# # Quickstart
#
# Egalitarian gradient descent (EGD) replaces the gradient `G = U S Vᵀ` of a weight matrix by its
# polar factor `U Vᵀ`: the directions stay, their sizes `S` all become 1. A step then goes equally
# far along every direction of the matrix, also along those with a tiny gradient.
#
# In JAX it is an Optax transformation. This page trains a plain dictionary of arrays with it, takes
# the optimizer apart, and compares it with SGD and Adam where it should win and where not.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from egd_optax import diagnostics, egd, infer_axes, matching, scale_by_egd

# %% [markdown]
# ## The smallest complete training
#
# The task: 16 inputs, 4 smooth outputs, a network with one hidden layer. The outputs depend on 16
# hidden factors, all equally important, but of sizes from 1 to 1/100. Each input is a mixture of
# all factors, so the inputs are correlated, as measured ones often are.


# %%
def make_data(seed, mixed=True):
    """Return 512 training and 512 test examples; unmixed, each input is one factor."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((1024, 16), np.float32)
    targets = np.tanh(factors @ rng.standard_normal((16, 4), np.float32) / 4)
    rotation = np.linalg.qr(rng.standard_normal((16, 16), np.float32))[0]
    scaled = factors * np.geomspace(1, 0.01, 16, dtype=np.float32)
    inputs = scaled @ rotation if mixed else scaled
    return (inputs[:512], targets[:512]), (inputs[512:], targets[512:])


def init_params(key):
    key_hidden, key_out = jax.random.split(key)
    return {
        "hidden": {"kernel": jax.random.normal(key_hidden, (16, 64)) / 4, "bias": jnp.zeros(64)},
        "out": {"kernel": jax.random.normal(key_out, (64, 4)) / 8, "bias": jnp.zeros(4)},
    }


def loss(params, examples):
    inputs, targets = examples
    hidden = jax.nn.relu(inputs @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    outputs = hidden @ params["out"]["kernel"] + params["out"]["bias"]
    return jnp.mean((outputs - targets) ** 2)


# %% [markdown]
# Nothing in the training loop knows about EGD. Only the learning rate means something else: a
# whitened step does not shrink with the gradient, so the learning rate is a *length*, and something
# has to make it small toward the end. A cosine schedule does.

# %%
STEPS = 200


def train(optimizer, params, examples):
    """Return the parameters after STEPS full-batch steps, and the loss before each."""

    def step(carry, _):
        params, state = carry
        value, gradients = jax.value_and_grad(loss)(params, examples)
        updates, state = optimizer.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=STEPS)
    return params, losses


train_set, test_set = make_data(seed=0)
params = init_params(jax.random.key(0))
optimizer = egd(optax.cosine_decay_schedule(0.3, STEPS))
trained, losses = jax.jit(lambda params: train(optimizer, params, train_set))(params)

print(f"training loss {losses[0]:.3f} -> {loss(trained, train_set):.4f}")
print(f"test loss     {loss(params, test_set):.3f} -> {loss(trained, test_set):.4f}")
assert loss(trained, test_set) < 0.2 * loss(params, test_set)

# %% [markdown]
# ## Which leaves are whitened?
#
# `egd` goes by names and shapes, which do for a stack of dense layers. `infer_axes` shows it before
# the training, and `check_whitening` looks inside one more update. With the loss and a batch,
# `infer_axes` reads it off the model's program, whatever the names. For models with other layers
# that is the first choice: `egd(0.3, axes=infer_axes(params, loss, examples))`.

# %%
print(infer_axes(params))
read = infer_axes(params, loss, train_set)
print(read)
assert read["hidden/kernel"] == infer_axes(params)["hidden/kernel"]

# %% [markdown]
# They differ in one leaf: `out` is an output head, which its name does not tell. Muon's habit is to
# leave heads to another optimizer. That is no law, and this page whitens the head.

# %%
optimizer = egd(0.3)
gradients = jax.grad(loss)(params, train_set)
check = diagnostics.check_whitening(optimizer, params, gradients)
print(check)
assert not check.failed

# %% [markdown]
# Biases get plain SGD with the same learning rate. The singular values of a whitened update are all
# equal to the learning rate, whatever those of the gradient are:

# %%
updates, _ = optimizer.update(gradients, optimizer.init(params), params)
before, after = (np.linalg.svd(tree["hidden"]["kernel"])[1] for tree in (gradients, updates))
print(f"singular values {before.max():.3f} ... {before.min():.5f}", end=" ")
print(f"became {after.max():.3f} ... {after.min():.3f}")
assert np.allclose(after, 0.3, rtol=1e-3)
assert np.allclose(updates["hidden"]["bias"], -0.3 * gradients["hidden"]["bias"])

# %% [markdown]
# Embeddings would be left to SGD too. To change that, or to choose leaves: [which
# layers](../guides/which-layers.md). Another optimizer for the rest:
# `egd(0.3, others=optax.adam(1e-3))`. Convolutions and attention keep their matrices in more than
# two axes: see the tutorials on a [convolutional network](digits_cnn.py) and
# on a [transformer](linen_transformer.py).
#
# ## The same, spelled out
#
# `egd` is a short form. `scale_by_egd` does the work and goes anywhere into a chain. The
# paper (arXiv 2510.04930) adds weight decay *before* the whitening, so that the sum of gradient and
# decay is whitened:

# %%
spelled_out = optax.chain(
    optax.add_decayed_weights(1e-4),
    optax.masked(scale_by_egd(), matching("kernel")),
    optax.sgd(0.3),
)
by_parts, _ = spelled_out.update(gradients, spelled_out.init(params), params)

short = egd(0.3, weight_decay=1e-4)
in_one, _ = short.update(gradients, short.init(params), params)
jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), by_parts, in_one)
print("egd(0.3, weight_decay=1e-4) makes the same update as the chain.")

# %% [markdown]
# ## Against SGD and Adam
#
# A comparison is fair only with equal tuning. Each method gets six learning rates, a factor of
# about three apart, with the same schedule, number of steps, initial values and data, each for
# three seeds. We show the learning rate with the lowest mean training loss at the end, and check
# that it is not the first or the last of its six.
#
# There are two problems: the mixed inputs from above, and the same without the mixing, so that each
# input is one factor.

# %%
GRIDS = {
    "SGD": (optax.sgd, [0.1, 0.3, 1.0, 3.0, 10.0, 30.0]),
    "Adam": (optax.adam, [0.003, 0.01, 0.03, 0.1, 0.3, 1.0]),
    "EGD": (egd, [0.01, 0.03, 0.1, 0.3, 1.0, 3.0]),
}
PROBLEMS = {"mixed inputs": True, "unmixed inputs": False}
SEEDS = 3


def compile_run(make_optimizer):
    """Return a function from a learning rate and a problem to training losses and test loss."""

    @jax.jit
    def run(rate, params, train_set, test_set):
        optimizer = make_optimizer(optax.cosine_decay_schedule(rate, STEPS))
        trained, losses = train(optimizer, params, train_set)
        return jnp.append(losses, loss(trained, train_set)), loss(trained, test_set)

    return run


def sweep(run, rates, mixed):
    """Return training losses (rates, steps + 1) and test losses (rates,), means of the seeds."""
    seeds = [(starts[seed], *make_data(seed, mixed)) for seed in range(SEEDS)]
    runs = [[run(rate, *seed) for seed in seeds] for rate in rates]
    train_losses = np.array([[one[0] for one in row] for row in runs])
    test_losses = np.array([[one[1] for one in row] for row in runs])
    return train_losses.mean(axis=1), test_losses.mean(axis=1)


starts = [init_params(jax.random.key(seed)) for seed in range(SEEDS)]
curves, final = {}, {}
for method, (make_optimizer, rates) in GRIDS.items():
    run = compile_run(make_optimizer)
    for problem, mixed in PROBLEMS.items():
        train_losses, test_losses = sweep(run, rates, mixed)
        best = int(np.nanargmin(train_losses[:, -1]))  # too large a learning rate ends in NaN
        assert 0 < best < len(rates) - 1
        curves[problem, method] = train_losses[best]
        final[problem, method] = train_losses[best, -1], test_losses[best]

print(f"{'':22s}{'training loss':>13s}{'test loss':>12s}")
for (problem, method), (train_loss, test_loss) in sorted(final.items()):
    print(f"{problem:20s} {method:5s} {train_loss:8.4f} {test_loss:11.4f}")

# %%
# alt: Training loss against step on a logarithmic axis for SGD, Adam and EGD. With mixed inputs,
# left, EGD ends lowest; with unmixed inputs, right, Adam does. SGD stays far above on both.
COLORS = {"SGD": "#000000", "Adam": "#D55E00", "EGD": "#0072B2"}
figure, panels = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True, layout="constrained")
for axes, problem in zip(panels, PROBLEMS, strict=True):
    for method, color in COLORS.items():
        axes.semilogy(curves[problem, method], color=color, label=method)
    axes.set(title=problem, xlabel="step")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
panels[0].set_ylabel("training loss, mean of 3 seeds")
_ = panels[0].legend(frameon=False)

# %% [markdown]
# **SGD** needs a learning rate that suits the strongest factor, and the weak ones wait: EGD's loss
# ends more than five times lower in both problems.
#
# **Adam** wins where each input is one factor: it rescales every weight by itself, and there the
# weak factors have weights of their own. Mixed, they have none. Adam's loss is more than doubled,
# and EGD's is the lowest, on the training and on the test set. The mixing is a rotation, to which
# EGD is blind but for rounding and random draws.
#
# So do not expect EGD to win everywhere. Expect it to help where directions of a matrix learn at
# very different speeds, and where these directions are not single weights.

# %%
for part in (0, 1):  # training and test loss
    assert final["mixed inputs", "EGD"][part] < 0.8 * final["mixed inputs", "Adam"][part]
assert final["unmixed inputs", "Adam"][0] < 0.85 * final["unmixed inputs", "EGD"][0]
assert final["mixed inputs", "Adam"][0] > 2 * final["unmixed inputs", "Adam"][0]
for problem in PROBLEMS:
    assert final[problem, "EGD"][0] < final[problem, "SGD"][0] / 5
for method in ("SGD", "EGD"):
    assert 0.7 < final["mixed inputs", method][0] / final["unmixed inputs", method][0] < 1.4

# %% [markdown]
# ## Next
#
# - [How to choose](../how-to-choose.md) between the ways to compute the polar factor, and the
#   [tutorial](methods.py) that compares them.
# - [Which layers](../guides/which-layers.md) to whiten.
# - [What holds and what does not](../grokking/index.md) of the paper's experiments.
