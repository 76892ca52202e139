# %% [markdown]
# # Diagnosing a run
#
# A whitened step hides what was whitened: it has the same length in every direction, whatever the
# gradient looked like. Two tools look behind it:
#
# - `diagnostics.spectrum_monitor` stands in a chain, leaves the updates alone, and keeps figures
#   of each matrix in the optimizer's state. `diagnostics.read_spectra` gets them out.
# - `diagnostics.polar_report` compares one gradient with what a method made of it, direction by
#   direction.
#
# The page ends with a table: symptom, reading, remedy. Every claim has an `assert` beside it.

# %%
import functools

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

from egd_optax import diagnostics, polar, scale_by_egd
from egd_optax.models import TwoLayerMLP

# %% [markdown]
# ## A run to look at
#
# A network of one hidden layer, 64 x 16 and 16 x 10, learns 480 of scikit-learn's digits, all at
# once. The chain has one monitor before the whitening and one after it. `every=1` measures at each
# step; the default is every tenth. Readings are arrays, so `scan` can collect them.

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
#   the classes. But towards the end it has 10, and that is worth a look.

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
# ## The learning rate is a length
#
# A step moves a matrix by `rate` in each direction, whatever the gradient. Nothing slows down near
# a minimum but the schedule. The smallest example is a matrix `W` that has to become a given one;
# the gradient is the difference of the two.

# %%
# alt: Norm of the gradient against the step: at a constant rate of 0.3 it stops near 0.5, at 0.03
# near 0.05 and later, with a falling rate it goes on falling. The whitened norm is flat.
GOAL = jnp.asarray(0.3 * np.random.default_rng(0).normal(size=(16, 10)), jnp.float32)


@compiled
def approach(rates):
    chain = watched()

    def step(carry, rate):
        weights, state = carry
        update, state = chain.update({"w": weights - GOAL}, state, {"w": weights})
        return (weights - rate * update["w"], state), diagnostics.read_spectra(state)

    weights = jnp.zeros((16, 10))
    return jax.lax.scan(step, (weights, chain.init({"w": weights})), rates)[1]


RATES = {
    "constant 0.3": np.full(100, 0.3),
    "constant 0.03": np.full(100, 0.03),
    "0.3, falling to 0": np.linspace(0.3, 0, 100),
}
approaches = {name: approach(rates) for name, rates in RATES.items()}


def draw_approaches():
    _, axes = plt.subplots(figsize=(6, 3.5), layout="constrained")
    for (name, (gradient, _)), color in zip(
        approaches.items(), ("#D55E00", "#0072B2", "#009E73"), strict=True
    ):
        axes.plot(gradient["w"].norm, color=color, label=name)
    axes.plot(
        approaches["constant 0.3"][1]["w"].norm, color="0.4", linestyle="--", label="whitened"
    )
    axes.set(yscale="log", xlabel="step", ylabel="Frobenius norm")
    axes.set_title("norm of the gradient, which is the distance")
    axes.legend(frameon=False)
    tidy(axes)


draw_approaches()

# %% [markdown]
# With a constant rate the distance stops falling once it is a step's length: the reading is a norm
# *before* that no longer falls, beside a norm *after* that never did. The lower rate stops lower
# and takes longer. The remedy is a rate that falls.

# %%
ends = {name: float(gradient["w"].norm[-10:].mean()) for name, (gradient, _) in approaches.items()}
print("distance over the last ten steps:", {name: f"{end:.2g}" for name, end in ends.items()})
assert ends["constant 0.3"] > 5 * ends["constant 0.03"] > 5 * ends["0.3, falling to 0"]
for _, whitened in approaches.values():
    assert np.all(np.abs(whitened["w"].norm - 10**0.5) < 1e-2)

# %% [markdown]
# ## Noise is equalised with the signal
#
# In a small batch the weak directions are noise, and whitening gives them full length. How much is
# noise? Put an average between two monitors. Where gradients agree from step to step, the average
# is as long as they are: a ratio near 1. Where they are independent noise, it is shorter: for a
# decay rate of 0.9 by √(0.1 / 1.9) = 0.23. (Late in a run a low ratio may also mean that steps are
# too long and gradients point to and fro.)


# %%
# alt: Left, norm of the average over norm of the gradient against the step: near 1 with all 480
# images, falling to 0.4 with batches of 8. Right, loss: 8 images with the average come close to
# 480, without it they are far slower.
@compiled
def noisy_run(decay, chosen):
    chain = optax.chain(MONITOR, optax.ema(decay), MONITOR, scale_by_egd())
    return train(chain, jnp.full(STEPS, 0.01), chosen)[1:]


def batches(size):
    return np.random.default_rng(0).integers(0, 480, (STEPS, size))


noisy = {
    "480 images": ("#009E73", "-", noisy_run(0.9, batches(480))),
    "8 images": ("#0072B2", "-", noisy_run(0.9, batches(8))),
    "8 images, no average": ("#0072B2", "--", noisy_run(0.0, batches(8))),
}


def agreement(readings, leaf="hidden/kernel"):
    single, average = readings
    return average[leaf].norm[:, 0] / single[leaf].norm[:, 0]


def draw_noise():
    _, (left, right) = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
    for name, (color, line, (losses, readings)) in noisy.items():
        right.plot(losses, line, color=color, label=name)
        if line == "-":
            left.plot(agreement(readings), line, color=color, linewidth=1, label=name)
    left.axhline((0.1 / 1.9) ** 0.5, color="0.5", linestyle=":", label="noise alone")
    left.set(xlabel="step", ylim=(0, 1.8), title="norm of the average over norm of the gradient")
    right.set(yscale="log", xlabel="step", title="loss on all 480, rate 0.01")
    left.legend(frameon=False, title="batch", ncols=3, loc="upper center")
    right.legend(frameon=False, title="batch")
    tidy(left, right)


draw_noise()

# %% [markdown]
# The remedy is momentum before the whitening or a larger batch. At this rate, with batches of 8,
# the average ends at less than half the loss; `egd(rate, momentum=0.9)` has it built in.

# %%
ratio = {name: float(np.median(agreement(noisy[name][2][1]))) for name in list(noisy)[:2]}
final = {name: float(np.mean(losses[-20:])) for name, (_, _, (losses, _)) in noisy.items()}
print("ratio, median of all steps:", {name: round(value, 2) for name, value in ratio.items()})
print("loss, last 20 steps:", {name: round(value, 2) for name, value in final.items()})
assert ratio["480 images"] > 0.8
assert ratio["8 images"] < 0.55
assert final["8 images"] < 0.5 * final["8 images, no average"]

# %% [markdown]
# ## One gradient, several methods
#
# `polar_report` takes an SVD, so it is not for every step; but it sees everything. Here is a
# gradient of 24 x 16 with twelve directions, from 1 down to 0.00004, and four without any
# gradient. *No cut-off* is what an SVD gives when you take all of `U Vᵀ`.


# %%
def decade_gradient():
    random = np.random.default_rng(0)
    u, _ = np.linalg.qr(random.normal(size=(24, 16)))
    v, _ = np.linalg.qr(random.normal(size=(16, 16)))
    return u, np.concatenate([np.logspace(0, -4.4, 12), np.zeros(4)]), v.T


def no_cutoff(matrix):
    u, _, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return u @ vt


U, S, VT = decade_gradient()
GRADIENT = jnp.asarray(U * S @ VT, jnp.float32)
METHODS = {
    "Auto, exact": (polar.Auto(), "#0072B2", "o"),
    "NewtonSchulz()": (polar.NewtonSchulz(), "#009E73", "^"),
    'NewtonSchulz("jordan")': (polar.NewtonSchulz("jordan"), "#E69F00", "v"),
    "Randomized(6)": (polar.Randomized(6), "#CC79A7", "s"),
    "no cut-off": (no_cutoff, "#000000", "x"),
}
report = compiled(diagnostics.polar_report)
factors = {
    name: compiled(functools.partial(polar.polar_factor, method=method))(GRADIENT)
    for name, (method, *_) in METHODS.items()
}
reports = {name: report(GRADIENT, factor) for name, factor in factors.items()}
FIELDS = "rank", "gain_min", "gain_max", "null_gain", "dropped_energy"
print(f"{'':24}", *(f"{field:>14}" for field in FIELDS))
for name, figures in reports.items():
    print(f"{name:24}", *(f"{float(getattr(figures, field)):14.2g}" for field in FIELDS))


# %%
# alt: Gain against singular value: the exact method and the SVD without cut-off stay at 1,
# NewtonSchulz falls below 0.001, its five-step form scatters and falls below 0.003, the sketch
# drops to 0 after six.
def draw_gains():
    _, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, (_, color, marker) in METHODS.items():
        gains = np.diag(U.T @ np.asarray(factors[name]) @ VT.T)[:12]
        line = "none" if name == "no cut-off" else "-"
        axes.plot(S[:12], gains, marker=marker, linestyle=line, color=color, label=name)
    axes.set(xscale="log", xlabel="singular value", ylabel="gain; 1 is whitened")
    axes.invert_xaxis()
    axes.legend(frameon=False)
    tidy(axes)


draw_gains()

# %% [markdown]
# - **Exact**: gains of 1 over the numerical range, and nothing outside it (`null_gain` 0).
# - **Polynomials** leave small directions small: `gain_min` is far below 1. Five steps
#   (`"jordan"`) also scatter the gains of the large ones.
# - **A sketch** of rank 6 drops the other six: `gain_min` 0. `dropped_energy` tells how much of the
#   gradient's squared norm goes with them: next to nothing. That is no proof that they do not
#   matter: the decay-only direction above was as small.
# - **No cut-off** looks perfect over the range, and has `null_gain` 1: the four directions without
#   gradient are moved at full length, anywhere.

# %%
exact, newton, jordan, sketch, without = reports.values()
assert int(exact.rank) == 12
assert max(abs(exact.gain_min - 1), abs(exact.gain_max - 1), exact.null_gain) < 1e-2
assert 0.1 < newton.gain_min < 0.5
assert jordan.gain_min < 0.05
assert jordan.gain_max > 1.1
assert abs(sketch.gain_min) < 1e-2
assert 0 < sketch.dropped_energy < 1e-3
assert abs(without.gain_min - 1) < 1e-2
assert without.null_gain > 0.99

# %% [markdown]
# ## A leaf with a NaN
#
# A single NaN makes its own matrix NaN and no other. The monitors show NaN for this leaf.
# `optax.apply_if_finite` around the chain skips such steps: updates are zero, the state stays, and
# so the readings are those of the last good step. Count the skipped ones: after
# `max_consecutive_errors` in a row it lets the next one through.

# %%
good = compiled(jax.grad(loss))(START)
bad = jax.tree.map(lambda leaf: leaf, good)
bad["hidden"]["kernel"][...] = bad["hidden"]["kernel"][...].at[0, 0].set(jnp.nan)
LAYERS = ("hidden", "readout")


def finite(updates):
    return {name: bool(np.all(np.isfinite(updates[name]["kernel"][...]))) for name in LAYERS}


plain, safe = watched(), optax.apply_if_finite(watched(), max_consecutive_errors=2)
updates, state = compiled(plain.update)(bad, plain.init(START), START)
alone = finite(updates), float(diagnostics.read_spectra(state)[0]["hidden/kernel"].norm[0])
print("alone:  ", *alone)

update, state, guarded = compiled(safe.update), safe.init(START), []
for gradients in (good, bad, bad, bad):
    updates, state = update(gradients, state, START)
    norm = float(diagnostics.read_spectra(state)[0]["hidden/kernel"].norm[0])
    guarded.append((finite(updates), norm))
    print("guarded:", *guarded[-1], "not finite so far:", state.total_notfinite)

assert alone[0] == {"hidden": False, "readout": True}
assert np.isnan(alone[1])
assert all(all(which.values()) and np.isfinite(norm) for which, norm in guarded[:3])
assert not guarded[3][0]["hidden"]

# %% [markdown]
# A gradient of zeros (a frozen or dead layer) is another case: its norm reads 0 and the other
# figures NaN.

# %%
_, state = compiled(plain.update)(jax.tree.map(jnp.zeros_like, good), plain.init(START), START)
nothing = diagnostics.read_spectra(state)[0]["hidden/kernel"]
assert nothing.norm[0] == 0
assert np.isnan(nothing.condition[0])

# %% [markdown]
# ## Symptom, reading, remedy
#
# | symptom | reading | remedy |
# |---|---|---|
# | EGD has no effect | condition after is not 1 | select the leaf: `matching`, `axes` |
# | loss hovers | norm before stops falling | a rate that falls, or a lower one: it is a length |
# | slow with small batches | norm of average / of gradient near 0.23 | momentum, larger batch |
# | unused weights shrink | rank after counts decay-only directions | decay after the whitening |
# | weights drift at a loss near 0 | rank after is above the possible | a higher `rtol`, or stop |
# | rank after is below the width | dead units, tied outputs | expected; else a lower rate |
# | condition before near 700 | the monitor sees no further | `polar_report` |
# | small directions stay put | `gain_min` far below 1 | an exact method, or a larger rank |
# | null directions move | `null_gain` near 1 | a method with a cut-off, as all of `polar` |
# | loss is NaN | NaN in the leaf where it began | `optax.apply_if_finite`; look at that leaf |
# | a layer does not learn | norm 0, the rest NaN | it gets no gradient: frozen or dead |
