# %% [markdown]
# # Diagnosing a run
#
# A whitened step hides the gradient behind it: it has the same length in every direction. Three
# tools look behind it:
#
# - `diagnostics.whitening_plan` says what an optimizer will whiten, before any training.
# - `diagnostics.check_whitening` says whether it did, leaf by leaf.
# - `diagnostics.spectrum_monitor` stands in a chain, leaves the updates alone, and keeps figures of
#   each matrix in the optimizer's state. `diagnostics.read_spectra` gets them out.
#
# Every claim has an `assert` beside it. [A checklist](../guides/diagnosing.md) has symptoms and
# remedies.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from egd_optax import diagnostics, egd, polar, scale_by_egd
from egd_optax.models import TwoLayerMLP

# %% [markdown]
# ## Before: the plan
#
# A network of one hidden layer, 64 x 16 and 16 x 10, learns 480 of scikit-learn's digits, all at
# once.

# %%
STEPS = 200
PIXELS, LABELS = load_digits(return_X_y=True)
IMAGES = jnp.asarray(PIXELS[:480] / 16, jnp.float32)
TARGETS = jax.nn.one_hot(LABELS[:480], 10)
GRAPH, START = nnx.split(TwoLayerMLP(64, 16, 10, rngs=nnx.Rngs(0)), nnx.Param)
EVERY = jnp.broadcast_to(jnp.arange(480), (STEPS, 480))  # full batches
QUICK = {"xla_backend_optimization_level": 1}  # the runs are short, so spend less on compiling


def loss(params, images=IMAGES, targets=TARGETS):
    return optax.softmax_cross_entropy(nnx.merge(GRAPH, params)(images), targets).mean()


plan = diagnostics.whitening_plan(egd(0.1), START)
print(plan)
assert plan["readout/kernel"] is None
assert [leaf.path for leaf in plan.leaves if leaf.axes] == ["hidden/kernel"]

# %% [markdown]
# `egd` leaves the head to SGD. `scale_by_egd` whitens every leaf of two axes, and this page does
# so, because there is more to see.
#
# ## A run to look at
#
# The chain has one monitor before the whitening and one after it. `every=1` measures at each step;
# the default is every tenth. Readings are arrays, so `scan` can collect them.

# %%
MONITOR = diagnostics.spectrum_monitor(every=1)


def watched(coupled=0.0, decoupled=0.0, method=None):
    """Whiten between two monitors; decay before the first or after the last."""
    before, after = optax.add_decayed_weights(coupled), optax.add_decayed_weights(decoupled)
    return optax.chain(before, MONITOR, scale_by_egd(method), MONITOR, after)


def train(chain, rates, chosen):
    """Return the last parameters, and loss and readings of every step."""

    def step(carry, inputs):
        params, state = carry
        rate, batch = inputs
        gradients = jax.grad(loss)(params, IMAGES[batch], TARGETS[batch])
        updates, state = chain.update(gradients, state, params)
        params = jax.tree.map(lambda param, update: param - rate * update, params, updates)
        return (params, state), (loss(params), diagnostics.read_spectra(state))

    (params, _), history = jax.lax.scan(step, (START, chain.init(START)), (rates, chosen))
    return params, *history


def compiled(function):
    return jax.jit(function, compiler_options=QUICK)


@compiled
def run(rates, coupled, decoupled):
    return train(watched(coupled, decoupled), rates, EVERY)


FALLING = jnp.linspace(0.1, 0, STEPS)
params, losses, (before, after) = run(FALLING, 0.0, 0.0)
print("leaves:", *before)
print("figures:", *before["hidden/kernel"]._fields)

# %%
# alt: Norm, condition, stable rank and numerical rank of two matrices against the step. Before
# the whitening the norm falls by four decades, the condition rises to 700 and the stable rank is
# near 1. After it the norm and the condition are flat, and the rank is 14 and 9, which becomes 10
# near step 150.
LEAVES = {"hidden/kernel": "#0072B2", "readout/kernel": "#D55E00"}
FIGURES = {
    "norm": "Frobenius norm",
    "condition": "condition",
    "stable_rank": "stable rank",
    "rank": "numerical rank",
}


def tidy(*panels):
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)


def draw_readings():
    _, panels = plt.subplots(1, 4, figsize=(13, 3.3), layout="constrained")
    for axes, (figure, title) in zip(panels, FIGURES.items(), strict=True):
        for leaf, color in LEAVES.items():
            axes.plot(getattr(before[leaf], figure), color=color, linewidth=1, label=leaf)
            axes.plot(getattr(after[leaf], figure), color=color, linestyle="--", linewidth=2)
        axes.set(title=title, xlabel="step", yscale="log" if "rank" not in figure else "linear")
    panels[0].plot([], color="0.4", linestyle="--", label="after the whitening")
    panels[0].legend(frameon=False, fontsize="small", loc="upper right", bbox_to_anchor=(1, 0.9))
    tidy(*panels)


draw_readings()

# %% [markdown]
# Thin lines are the gradient, dashed ones what comes out of the whitening.
#
# - **condition** is the ratio of the largest singular value to the smallest that counts. After the
#   whitening it is 1: this is how you see that it ran at all.
# - **stable rank** tells how many directions carry the gradient. Here it soon is little more than
#   one: SGD would move along one direction and hardly along the others. After the whitening it is
#   the rank.
# - **norm** after the whitening is √rank at every step, however small the gradient has become.
# - **rank** before the whitening counts singular values above 0.0014 of the largest, because the
#   monitor is cheap and cannot see below that. After the whitening all directions have one size
#   and none is missed, so believe the dashed line. `hidden/kernel` has 14 of 16: two hidden units
#   are dead. `readout/kernel` has 9 of 10, as it must: the errors of a softmax add up to zero over
#   the classes. But toward the end it has 10, and that is worth a look.

# %%
for leaf in LEAVES:
    assert np.all(np.abs(after[leaf].condition - 1) < 1e-2)
    assert np.all(np.abs(after[leaf].stable_rank - after[leaf].rank) < 0.1)
    assert np.all(np.abs(after[leaf].norm - np.sqrt(after[leaf].rank)) < 1e-2)
    assert np.all(after[leaf].rank >= before[leaf].rank)
    assert np.median(before[leaf].stable_rank[60:]) < 1.5
units = jax.nn.relu(nnx.merge(GRAPH, params).hidden(IMAGES))
dead = int(np.sum(units.max(0) == 0))
print("dead hidden units:", dead)
assert dead == 2
assert np.all(after["hidden/kernel"].rank[-50:] == 16 - dead)

# %% [markdown]
# ## A direction that is only round-off
#
# When the loss is nearly zero, the errors of the softmax are small differences of numbers near 1,
# and their sum over the classes is not zero but round-off. Once that is more than `rtol`, 1e-5 of
# the largest singular value in float32, the whitening takes it for a direction and moves it as far
# as all others. The reading that tells is a rank *after* that is higher than the gradient can
# have. The remedy is a higher `rtol`, or to stop: the loss is below 0.001 by then.


# %%
@compiled
def run_tolerant(rates):
    return train(watched(method=polar.Auto(rtol=1e-3)), rates, EVERY)


def sideways(params):
    """Length of the readout along the direction in which the gradient must vanish."""
    return float(np.linalg.norm(params["readout"]["kernel"][...] @ np.ones(10) / 10**0.5))


tolerant, _, (_, after_tolerant) = run_tolerant(FALLING)
surplus = np.flatnonzero(after["readout/kernel"].rank > 9)
print(f"rank 10 in {len(surplus)} of {STEPS} steps, first at loss {losses[surplus[0]]:.1e}")
drifts = [abs(sideways(end) - sideways(START)) for end in (params, tolerant)]
print(f"moved sideways by {drifts[0]:.1e}, with rtol=1e-3 by {drifts[1]:.1e}")
assert drifts[0] > 5 * drifts[1]
assert len(surplus) > 20
assert losses[surplus[0]] < 1e-3
assert np.all(after_tolerant["readout/kernel"].rank <= 9)

# %% [markdown]
# ## The decay is whitened
#
# The same direction shows what coupled decay does. The loss does not care about it, so only the
# decay moves it: the rank is 10 from the first step on. Added *before* the whitening, a decay of
# 0.0001 moves it as far in each step as the gradient moves the others, and it is gone in the end.
# Added *after*, the same 0.0001 does next to nothing. In grokking the first is what you want. If
# not, decay after the whitening: `egd(..., decay="decoupled")`.

# %%
decays = {"none": (0.0, 0.0), "coupled": (1e-4, 0.0), "decoupled": (0.0, 1e-4)}
decayed = {name: run(FALLING, *amounts) for name, amounts in decays.items()}
print(
    f"{'decay':10} {'length at the start':>20} {'at the end':>12} {'rank after, first steps':>25}"
)
for name, (last, _, (_, seen)) in decayed.items():
    ranks = np.unique(seen["readout/kernel"].rank[:50]).astype(int).tolist()
    print(f"{name:10} {sideways(START):20.3f} {sideways(last):12.3f} {ranks!s:>25}")

assert sideways(decayed["coupled"][0]) < 0.1 * sideways(START)
assert sideways(decayed["decoupled"][0]) > 0.9 * sideways(START)
assert np.all(decayed["coupled"][2][1]["readout/kernel"].rank[:50] == 10)
assert np.all(decayed["decoupled"][2][1]["readout/kernel"].rank[:50] == 9)

# %% [markdown]
# ## After: the check, and a leaf with a NaN
#
# `check_whitening` runs one more update beside the training and looks at the factors inside, before
# learning rate and decay. Here it gets a good gradient, and one with a NaN in the first matrix: a
# NaN makes its own matrix NaN and no other.


# %%
good = compiled(jax.grad(loss))(params)
bad = jax.tree.map(lambda leaf: leaf, good)
bad["hidden"]["kernel"][...] = bad["hidden"]["kernel"][...].at[0, 0].set(jnp.nan)

checks = [diagnostics.check_whitening(egd(0.1), params, gradients) for gradients in (good, bad)]
print(*checks, sep="\n\n")
assert checks[0].failed == []
assert checks[0]["hidden/kernel"].directions == 16 - dead
assert checks[1].failed == ["hidden/kernel"]

# %% [markdown]
# The dead units show in the number of directions. `optax.apply_if_finite` around an optimizer skips
# a step with a NaN; after `max_consecutive_errors` in a row it lets the next one through.

# %%
safe = optax.apply_if_finite(egd(0.1), max_consecutive_errors=2)
updates, _ = compiled(safe.update)(bad, safe.init(params), params)
assert not any(np.any(leaf) for leaf in jax.tree.leaves(updates))
