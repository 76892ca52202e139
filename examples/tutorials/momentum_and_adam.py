# %% [markdown]
# # Momentum and Adam
#
# EGD replaces each matrix gradient `G = U S Vᵀ` by `U Vᵀ`. It is a transformation of the gradient
# like any other in Optax, so you choose where in the chain it stands. Three places are common:
#
# | chain | what is whitened | what comes out |
# |---|---|---|
# | momentum → EGD | the average of the gradients | a step with equal singular values, as in Muon |
# | EGD → momentum | each gradient | an average of such steps |
# | EGD → Adam | each gradient | Adam's step, from whitened gradients |
#
# This page first looks at single steps, and then at three small tasks on which the answer differs.
# On two of them EGD loses. Every claim about a result has an `assert` beside it.

# %%
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from egd_optax import egd, scale_by_egd
from egd_optax.polar import polar_factor

# %% [markdown]
# ## What each order does to a step
#
# Take a gradient of 24 x 16 whose singular values fall from 1 to 0.01, give it to a chain sixty
# times, and look at the last step. Then do the same with noise of standard deviation 0.02 on every
# entry, drawn anew each time.

# %%
QUICK = {"xla_backend_optimization_level": 1}  # the runs are short, so spend less on compiling


def steep_gradient():
    random = np.random.default_rng(0)
    u, _ = np.linalg.qr(random.normal(size=(24, 16)))
    v, _ = np.linalg.qr(random.normal(size=(16, 16)))
    return u, np.logspace(0, -2, 16), v.T


@functools.partial(jax.jit, static_argnums=0, compiler_options=QUICK)
def last_step(chain, gradients):
    def one(state, gradient):
        step, state = chain.update(gradient, state)
        return state, step

    return jax.lax.scan(one, chain.init(gradients[0]), gradients)[1][-1]


U, S, VT = steep_gradient()
NOISE = 0.02 * np.random.default_rng(1).normal(size=(60, 24, 16))
CHAINS = {
    "Adam": optax.scale_by_adam(),
    "EGD": scale_by_egd(),
    "momentum → EGD": optax.chain(optax.trace(0.95), scale_by_egd()),
    "EGD → momentum": optax.chain(scale_by_egd(), optax.ema(0.95)),
    "EGD → Adam": optax.chain(scale_by_egd(), optax.scale_by_adam()),
}


def last_steps(noise):
    gradients = jnp.asarray(U * S @ VT + noise, jnp.float32)
    return {name: np.asarray(last_step(chain, gradients)) for name, chain in CHAINS.items()}


def spectrum(step):
    values = np.linalg.svd(step, compute_uv=False)
    return values / values[0]


def progress(step):
    """Progress along the true gradient's directions, for a step of the polar factor's size."""
    return np.diag(U.T @ step @ VT.T) * 4 / np.linalg.norm(step)


spectra = {name: spectrum(step) for name, step in last_steps(0 * NOISE).items()}
found = {name: progress(step) for name, step in last_steps(NOISE).items()}
print(f"{'':16}{'least of the step':>20}{'directions found':>20}")
for name, values in found.items():
    print(f"{name:16}{spectra[name][-1]:20.2f}{np.sum(values > 0.5):17} of 16")

# %% [markdown]
# First column: the least singular value of the step without noise, relative to the largest. Adam's
# step is the sign of its input, entry by entry. From the gradient it makes a step whose singular
# values still differ more than tenfold; from a whitened gradient, by a factor of two to five. So
# **Adam undoes a part of the whitening**, and most of it survives.
#
# Second column: the directions with a progress above one half, with noise. Where the gradient is
# weaker than the noise, a whitened gradient is mostly noise of full length. Momentum *before* the
# whitening removes noise first, and the weak directions are found. Momentum *after* it averages
# steps that are noise already: the weak directions stay slow.

# %%
assert min(spectra["EGD"][-1], spectra["momentum → EGD"][-1]) > 0.999
assert 1 / 5 < spectra["EGD → Adam"][-1] < 1 / 2
assert spectra["Adam"][-1] < 1 / 10
reached = {name: int(np.sum(values > 0.5)) for name, values in found.items()}
assert reached["momentum → EGD"] >= reached["EGD"] + 3
assert reached["momentum → EGD"] >= reached["EGD → momentum"] + 3

# %% [markdown]
# ## Six optimizers, one budget
#
# Every run has 200 steps and a rate that falls linearly to zero. Each optimizer gets seven learning
# rates, a factor of √10 apart, around a middle of our choice; no best rate may lie at an edge. The
# average of EGD is Nesterov's with 0.95. Rates and seeds run side by side under `vmap`; the best
# rate is the one with the best median of three seeds.

# %%
STEPS, SEEDS = 200, 3
GRID = np.logspace(-1.5, 1.5, 7)


def egd_then_momentum(rate):
    return optax.chain(
        scale_by_egd(), optax.trace(0.95, nesterov=True), optax.scale_by_learning_rate(rate)
    )


# Name: middle of the grid, and the optimizer.
METHODS = {
    "SGD": (0.6, lambda rate: optax.sgd(rate, 0.95, nesterov=True)),
    "Adam": (0.1, optax.adam),
    "EGD": (0.15, egd),
    "momentum → EGD": (0.15, lambda rate: egd(rate, momentum=0.95, nesterov=True)),
    "EGD → momentum": (0.0075, egd_then_momentum),
    "EGD → Adam": (0.03, lambda rate: optax.chain(scale_by_egd(), optax.adam(rate))),
}


def train(optimizer, start, batches):
    def step(carry, index):
        params, state = carry
        batch = jax.tree.map(lambda array: array[index % len(array)], batches)
        updates, state = optimizer.update(jax.grad(squared_error)(params, *batch), state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = start, optimizer.init(start)
    return jax.lax.scan(step, carry, jnp.arange(STEPS))[0][0]


def sweep(make, rates, runs):
    """Return the errors (rate, run) after training."""

    def one(rate, run):
        start, batches, test = run
        optimizer = make(optax.linear_schedule(rate, 0.0, STEPS))
        return relative_error(train(optimizer, start, batches), *test)

    every = jax.vmap(jax.vmap(one, (None, 0)), (0, None))
    return np.asarray(jax.jit(every, compiler_options=QUICK)(rates, runs))


def compare(tasks):
    """Return the best rate's index and the errors of the seeds, by task and method."""
    runs = [run for seeds in tasks.values() for run in seeds]
    runs = jax.tree.map(lambda *arrays: jnp.asarray(np.stack(arrays), jnp.float32), *runs)
    results = {task: {} for task in tasks}
    for name, (middle, make) in METHODS.items():
        rates = jnp.asarray(middle * GRID, jnp.float32)
        errors = sweep(make, rates, runs).reshape(len(GRID), -1, SEEDS)
        best = np.median(np.nan_to_num(errors, nan=np.inf), axis=2).argmin(0)
        for index, task in enumerate(tasks):
            results[task][name] = int(best[index]), errors[best[index], index]
    return results


# %% [markdown]
# ## The tasks
#
# All are linear regressions with 24 features and 16 outputs, `y = x W`; the error is that of the
# noiseless outputs, relative to them.
#
# - **mixed features**: the variances of the features fall by a factor of 10,000, and the features
#   are then rotated. 64 points, full batch, no noise.
# - **features apart**: the same without the rotation. Each feature has its own scale.
# - **noise**: features of equal variance, noise as strong as the signal, 30 batches of 64 in turn.


# %%
def regression(seed, *, rotated=True, spread=1e4, noise=0.0):
    random = np.random.default_rng(seed)
    rotation = np.linalg.qr(random.normal(size=(24, 24)))[0] if rotated else np.eye(24)
    root = np.logspace(0, -np.log10(spread) / 2, 24)[:, None] * rotation
    x = random.normal(size=(30 if noise else 1, 64, 24)) @ root
    weights = random.normal(size=(24, 16))
    weights /= np.std(x @ weights)
    y = x @ weights
    y += noise * random.normal(size=y.shape)
    batches = np.resize(x, (30, 64, 24)), np.resize(y, (30, 64, 16))  # repeats a single batch
    return np.zeros((24, 16)), batches, (root, root @ weights)


def squared_error(weights, x, y):
    return jnp.mean((x @ weights - y) ** 2)


def relative_error(weights, x, y):
    return jnp.sum((x @ weights - y) ** 2) / jnp.sum(y**2)


def seeds(make, **options):
    return [make(seed, **options) for seed in range(SEEDS)]


regressions = {
    "mixed features": seeds(regression),
    "features apart": seeds(regression, rotated=False),
    "noise": seeds(regression, spread=1.0, noise=1.0),
}
results = compare(regressions)
medians = {
    task: {name: np.median(errors) for name, (_, errors) in methods.items()}
    for task, methods in results.items()
}
assert all(0 < best < len(GRID) - 1 for rows in results.values() for best, _ in rows.values())

# %%
print("error, median of three seeds at the best of seven rates; * the least of its task")
print(f"{'':16}", *(f"{task:>15}" for task in results))
for name in METHODS:
    cells = [
        f"{row[name]:.2g}{'*' if row[name] == min(row.values()) else ' '}"
        for row in medians.values()
    ]
    print(f"{name:16}", *(f"{cell:>15}" for cell in cells))


# %% [markdown]
# ## What this shows
#
# **Mixed features: every chain with EGD wins**, by more than a factor of twenty. The slow
# directions are not aligned with entries, so Adam cannot speed them up, and whitening can.

# %%
WITH_EGD = [name for name in METHODS if "EGD" in name]


def error(task, *names):
    return np.array([medians[task][name] for name in names])


assert np.all(
    error("mixed features", *WITH_EGD) < error("mixed features", "SGD", "Adam").min() / 20
)
assert error("mixed features", "EGD → Adam") < error("mixed features", "EGD") / 3

# %% [markdown]
# **Features apart: plain Adam wins, and EGD loses.** Here the scales belong to entries, which is
# what Adam's second moments are for. Whitening takes the scales out, and an Adam behind it can no
# longer see them.

# %%
assert np.all(error("features apart", *WITH_EGD) > 50 * error("features apart", "Adam"))
assert error("mixed features", "Adam") > 1000 * error("features apart", "Adam")

# %% [markdown]
# **Noise: EGD loses unless momentum comes first.** All directions are equally easy, so there is
# nothing to gain. Neither momentum nor Adam *behind* EGD repairs it. Momentum *before* EGD does, to
# within five percent.

# %%
sgd = results["noise"]["SGD"][1]
for name in ("EGD", "EGD → momentum", "EGD → Adam"):
    assert np.all(results["noise"][name][1] > 1.2 * sgd)
assert np.all(results["noise"]["momentum → EGD"][1] < 1.05 * sgd)

# %% [markdown]
# The reason: at the least squares solution the mean of the 30 gradients is zero, and the mean of
# the 30 whitened gradients is not, as a median is not a mean. EGD comes to rest elsewhere, however
# small the rate.

# %%
_, (x, y), _ = regressions["noise"][0]
solution = np.linalg.lstsq(x.reshape(-1, 24), y.reshape(-1, 16), rcond=None)[0]
gradients = np.swapaxes(x, 1, 2) @ (x @ solution - y)
whitened = np.asarray(polar_factor(gradients.astype(np.float32)))
of_mean, of_whitened_mean = (np.linalg.norm(g.mean(0), 2) for g in (gradients, whitened))
print(f"mean of the gradients {of_mean:.1g}, of the whitened ones {of_whitened_mean:.2g}")
assert of_mean < 1e-9 * np.linalg.norm(gradients[0], 2)
assert of_whitened_mean > 0.05

# %% [markdown]
# ## What to take
#
# - Noisy batches: momentum before EGD, `egd(rate, momentum=0.95, nesterov=True)`. It is the only
#   place that survived the noise here.
# - Little noise, and you want to go far down: EGD before Adam,
#   `optax.chain(scale_by_egd(), optax.adam(rate))`.
# - Inputs whose *entries* have scales of their own (counts, unscaled columns): plain Adam.
# - Momentum after EGD: no task here asks for it. It is for [signals of few
#   directions](../guides/momentum.md).
#
# These are small tasks, three seeds and a coarse grid. They show mechanisms; measure a large model
# itself. [Continual learning](continual.py) has a case in which Adam behind
# EGD does harm.
