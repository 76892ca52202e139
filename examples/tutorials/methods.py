# %% [markdown]
# # Which method?
#
# Whitening a gradient `G = U S Vᵀ` means to compute its polar factor `P = U Vᵀ`. The package has
# several ways to do that, exact and approximate ones. This page looks at what each makes of one
# matrix, direction by direction, and then trains the same small problem with each.
#
# A direction's *gain* is `gᵢ = uᵢᵀ P vᵢ`, with `uᵢ` and `vᵢ` from the singular value decomposition
# of the gradient: 1 is a whitened direction, 0 one that does not learn.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from egd_optax import polar, scale_by_egd

RANK = 12
METHODS = {
    "Auto": polar.Auto(),
    "SVD": polar.SVD(),
    "Halley": polar.Halley(),
    "NewtonSchulz": polar.NewtonSchulz(),
    "NewtonSchulz, standard": polar.NewtonSchulz("standard"),
    "Randomized": polar.Randomized(RANK),
    "Randomized, keep": polar.Randomized(RANK, residual="keep"),
    "SubspaceIteration": polar.SubspaceIteration(RANK),
}
# Any of them is the first argument of scale_by_egd, and of egd(..., method=...).
OPTIMIZERS = {name: scale_by_egd(method) for name, method in METHODS.items()}
UPDATES = {name: jax.jit(optimizer.update) for name, optimizer in OPTIMIZERS.items()}

# %% [markdown]
# ## One matrix
#
# We make a gradient up, to tell the methods apart: twelve large singular values, a gap, and a long
# tail down to the round-off of float32. (`diagnostics.polar_report` gives the extreme gains of any
# gradient and factor.)


# %%
def random_rotation(rng, size):
    return np.linalg.qr(rng.standard_normal((size, size)))[0]


def make_gradient(rng):
    sigma = np.concatenate([np.geomspace(1, 0.2, RANK), np.geomspace(0.03, 1e-7, 48 - RANK)])
    left, right = random_rotation(rng, 48), random_rotation(rng, 64)
    return ((left * sigma) @ right[:48]).astype(np.float32)


gradient = make_gradient(np.random.default_rng(0))
u, s, vt = np.linalg.svd(gradient.astype(np.float64), full_matrices=False)
size = s / s[0]


def gains(name, steps):
    """Return the gains g_i after some updates with the same gradient."""
    state = OPTIMIZERS[name].init(gradient)
    for _ in range(steps):
        factor, state = UPDATES[name](gradient, state)
    return np.einsum("mi,mn,in->i", u, np.asarray(factor, np.float64), vt)


gain = {name: gains(name, steps=5 if name == "SubspaceIteration" else 1) for name in METHODS}

# %%
# alt: Gain against relative singular value in three panels. Exact methods: 1 down to the rank
# tolerance 1e-5, then 0. Polynomials: near 1 down to about 1e-3, then falling in proportion.
# Sketches: 1 for the twelve leading directions, then 0, or falling where the tail is kept.
STYLES = {
    "SVD": (0, "#000000", "o"),
    "Halley": (0, "#0072B2", "."),
    "NewtonSchulz": (1, "#009E73", "o"),
    "NewtonSchulz, standard": (1, "#E69F00", "."),
    "Randomized": (2, "#D55E00", "o"),
    "Randomized, keep": (2, "#CC79A7", "s"),
    "SubspaceIteration": (2, "#56B4E9", "."),
}
figure, panels = plt.subplots(1, 3, figsize=(11, 3.4), sharey=True, layout="constrained")
for name, (panel, color, marker) in STYLES.items():
    fill = "none" if marker == "o" else "full"
    panels[panel].semilogx(size, gain[name], marker, color=color, fillstyle=fill, label=name)
TITLES = {"exact": "center right", "polynomial": "upper left", "sketch of rank 12": "center left"}
for axes, (title, free) in zip(panels, TITLES.items(), strict=True):
    axes.set(title=title, xlabel="$\\sigma_i / \\sigma_1$")
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize="small", loc=free)
_ = panels[0].set_ylabel("gain")

# %% [markdown]
# The classes keep their promises here:
#
# - **Exact**: every direction above the rank tolerance, 1e-5 of the largest singular value in
#   float32, has the gain 1. Below it lies round-off, which must not be whitened: `SVD` cuts at the
#   tolerance, `Halley` rolls off around it. `Auto` takes `Halley`, and `SVD` for small matrices on
#   CPU; here its factor is that of `Halley`.
# - **Polynomial**: the default table of `NewtonSchulz` has the gain 1 down to 1e-3 of the Frobenius
#   norm, five steps of Muon's table ("standard") something between 0.47 and 1.21. Smaller
#   directions stay small, in proportion.
# - **Sketch**: the leading directions have the gain 1, if there is a gap behind them. The rest is
#   dropped, or with `residual="keep"` divided by the last whitened singular value.
#   `SubspaceIteration` follows the directions from step to step, so it may need a few steps to find
#   them; we gave it five.

# %%
above, below = size > 3e-5, size < 1e-6
for name in ("Auto", "SVD", "Halley"):
    assert np.abs(gain[name][above] - 1).max() < 1e-2
    assert np.abs(gain[name][below]).max() < 1e-2
if jax.default_backend() == "cpu":
    np.testing.assert_allclose(gain["Auto"], gain["Halley"], atol=1e-6)

resolved = s > 1e-3 * np.linalg.norm(s)
assert np.abs(gain["NewtonSchulz"][resolved] - 1).max() < 1e-3
assert gain["NewtonSchulz, standard"][resolved].min() > 0.45
assert gain["NewtonSchulz, standard"][resolved].max() < 1.23
assert gain["NewtonSchulz"][size < 1e-5].max() < 0.1

for name in ("Randomized", "Randomized, keep", "SubspaceIteration"):
    assert np.abs(gain[name][:RANK] - 1).max() < 1e-2
for name in ("Randomized", "SubspaceIteration"):
    assert np.abs(gain[name][RANK:]).max() < 1e-2
np.testing.assert_allclose(gain["Randomized, keep"][RANK:], s[RANK:] / s[RANK - 1], atol=1e-2)

# %% [markdown]
# ## The same training with each
#
# A linear map from 48 to 64 features. The inputs' standard deviations fall from 1 to 0.03 along
# skew directions, and all of these matter equally for the outputs. Loss and gradient are those of
# the whole population, so there is no noise. This is where small directions count, and it is hard
# on sketches.
#
# Each method gets three learning rates, a factor of about three apart, and the same cosine
# schedule; plain gradient descent (SGD) gets the same.

# %%
STEPS = 150
RATES = (0.3, 1.0, 3.0)
SHOWN = ("SGD", *METHODS)

rng = np.random.default_rng(1)
mixing = np.geomspace(1, 0.03, 48)[:, None] * random_rotation(rng, 48)
covariance = jnp.asarray(mixing.T @ mixing, jnp.float32)
target = jnp.asarray(np.linalg.inv(mixing) @ rng.standard_normal((48, 64)) / 7, jnp.float32)


@jax.jit
def loss_and_gradient(weights):
    gradient = covariance @ (weights - target)
    return jnp.sum(gradient * (weights - target)) / (48 * 64), gradient


@jax.jit
def apply(weights, update, learning_rate, step):
    return weights - learning_rate * (1 + jnp.cos(jnp.pi * step / STEPS)) / 2 * update


def train(name, learning_rate):
    weights = jnp.zeros((48, 64))
    state = None if name == "SGD" else OPTIMIZERS[name].init(weights)
    losses = []
    for step in range(STEPS):
        loss, update = loss_and_gradient(weights)
        losses.append(loss)
        if name != "SGD":
            update, state = UPDATES[name](update, state)
        weights = apply(weights, update, learning_rate, step)
    return np.array([*losses, loss_and_gradient(weights)[0]])


curves = {}
for name in SHOWN:
    runs = [train(name, rate) for rate in RATES]
    best = int(np.argmin([losses[-1] for losses in runs]))
    assert best == 1  # neither the first nor the last of the three
    curves[name] = runs[best] / runs[best][0]
    print(f"{name:20s} best learning rate {RATES[best]:g}, loss after 100 steps", end=" ")
    print(f"{curves[name][100]:8.4f}, after {STEPS} {curves[name][-1]:8.1e}")

# %%
# alt: Loss against step on a logarithmic axis. The exact and polynomial methods lie together and
# fall below 1e-4, the sketch that keeps its tail ends above them, the dropping sketches higher, SGD
# highest.
LABELS = {
    "SVD": "SVD, Halley, Auto, NewtonSchulz",
    "SubspaceIteration": "SubspaceIteration (dotted)",
}
figure, axes = plt.subplots(figsize=(8, 3.8), layout="constrained")
axes.semilogy(curves["SGD"], color="0.6", label="SGD")
for name in (
    "Randomized",
    "SubspaceIteration",
    "Randomized, keep",
    "NewtonSchulz, standard",
    "SVD",
):
    line = ":" if name == "SubspaceIteration" else "-"
    color = STYLES[name][1]
    axes.semilogy(curves[name], line, color=color, linewidth=1.2, label=LABELS.get(name, name))
axes.set(xlabel="step", ylabel="loss, relative to the start", ylim=(1e-4, 2))
axes.grid(color="0.92")
axes.spines[["top", "right"]].set_visible(False)
_ = axes.legend(frameon=False, fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))

# %% [markdown]
# The teeth are no fault: whitened steps keep their length, so a direction that has arrived goes
# back and forth over its goal until the schedule shortens the steps.
#
# - The exact methods and the default polynomial make the same curve: here no direction is so small
#   that they differ. The rough polynomial ("standard") gets there as well.
# - The sketches leave most of the 48 directions behind at every step, and end far above. Keeping
#   the tail helps. All are ahead of SGD.
#
# With noisy gradients the order can turn round: on sparse parity with small batches a sketch of 40
# directions needs fewer epochs than the exact factor ([parity](../grokking/parity.md)). [How to
# choose](../how-to-choose.md) has what each method costs, and when to take it. If in doubt, choose
# nothing: `Auto` is the default.

# %%
end = {name: losses[-1] for name, losses in curves.items()}
for name in ("Auto", "Halley", "NewtonSchulz"):
    np.testing.assert_allclose(curves[name][:100], curves["SVD"][:100], rtol=0.3)
for name in ("Auto", "SVD", "Halley", "NewtonSchulz", "NewtonSchulz, standard"):
    assert end[name] < 1e-5
for name in ("Randomized", "SubspaceIteration"):
    assert end["Randomized, keep"] < end[name] / 5 < end["SGD"] / 10
assert end["Randomized, keep"] > 1e-3
