# %% [markdown]
# # Continual learning
#
# A network that learns one task after the other often learns the later ones worse than a fresh
# network would: it loses *plasticity*. Does EGD, which moves every direction of a matrix equally
# far, help? This page measures it on a stream of ten tasks, with SGD, Adam, EGD, and EGD before
# Adam.
#
# In short: EGD is right more often while it learns than the others. But it does **not** keep the
# network plastic by itself, and Adam behind it makes the loss worse. A decoupled weight decay does
# keep it, and with EGD that works best. Every claim has an `assert` beside it.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

from egd_optax import egd, scale_by_egd

# %% [markdown]
# ## The stream
#
# scikit-learn's digits, 8 x 8 pixels. Each task renames the ten digits, in its own way, and has 60
# batches of 16, which is four passes over 240 images. Then the next task begins without notice.

# %%
SEEDS, TASKS, BATCHES, WIDTH = 3, 10, 60, 16
PIXELS, LABELS = load_digits(return_X_y=True)


def make_stream(seed):
    """Return initial parameters, batches (task, batch, example, ...) and test sets (task, ...)."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(PIXELS))
    train, test = order[:240], order[-400:]
    batches, tests = [], []
    for _ in range(TASKS):
        images, targets = PIXELS / 16, np.eye(10)[random.permutation(10)[LABELS]]
        chosen = np.concatenate([random.permutation(train) for _ in range(4)]).reshape(BATCHES, 16)
        batches.append((images[chosen], targets[chosen]))
        tests.append((images[test], targets[test]))
    stacked = [jax.tree.map(lambda *arrays: np.stack(arrays), *part) for part in (batches, tests)]
    return start(random), *stacked


def start(random):
    return {
        "hidden": random.normal(size=(64, WIDTH)) * (2 / 64) ** 0.5,
        "bias": np.zeros(WIDTH),
        "out": random.normal(size=(WIDTH, 10)) * (2 / WIDTH) ** 0.5,
    }


RUNS = [make_stream(seed) for seed in range(SEEDS)]
RUNS = jax.tree.map(lambda *arrays: jnp.asarray(np.stack(arrays), jnp.float32), *RUNS)

# %% [markdown]
# ## The network and the measurements
#
# One hidden layer of 16 units. For each task we keep the *online accuracy*, that of every batch
# before the network learns from it, and the *final accuracy* on 400 other images at the task's
# end. We also keep the share of hidden units that are dead, which answer to none of these images.
#
# The control is `fresh`: the same, but parameters and optimizer state go back to the start before
# every task. The continued network has lost the difference of the two in plasticity.


# %%
def hidden(params, images):
    return jax.nn.relu(images @ params["hidden"] + params["bias"])


def loss(params, images, targets):
    return optax.softmax_cross_entropy(hidden(params, images) @ params["out"], targets).mean()


def accuracy(params, images, targets):
    answers = (hidden(params, images) @ params["out"]).argmax(-1)
    return jnp.mean(answers == targets.argmax(-1))


def learn(optimizer, fresh, params, batches, tests):
    """Return online and final accuracy, share of dead units and weight norm, task by task."""
    beginning = params, optimizer.init(params)

    def step(carry, batch):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, *batch), state, params)
        return (optax.apply_updates(params, updates), state), accuracy(params, *batch)

    def task(carry, data):
        batches, test = data
        carry = jax.tree.map(lambda old, new: jnp.where(fresh, old, new), beginning, carry)
        carry, online = jax.lax.scan(step, carry, batches)
        dead = jnp.mean(hidden(carry[0], test[0]).max(0) == 0)
        norm = jnp.linalg.norm(carry[0]["hidden"])
        return carry, (online.mean(), accuracy(carry[0], *test), dead, norm)

    return jax.lax.scan(task, beginning, (batches, tests))[1]


# %% [markdown]
# ## One budget for all
#
# Each optimizer gets five learning rates, a factor of √10 apart, without decay; the middle of each
# grid is ours, and no best rate may lie at an edge. The best is the one with the best online
# accuracy over all tasks, in the median of three seeds. At that rate each then gets two decoupled
# decays, under which the weights shrink by 1 % or 3 % a step, and keeps the better one.

# %%
GRID = np.logspace(-1, 1, 5)
SHRINKS = 0.01, 0.03


def sgd(rate, decay):
    return optax.chain(
        optax.trace(0.9), optax.add_decayed_weights(decay), optax.scale_by_learning_rate(rate)
    )


def adam(rate, decay):
    return optax.adamw(rate, weight_decay=decay)


METHODS = {
    "SGD": (0.03, sgd),
    "Adam": (0.01, adam),
    "EGD → Adam": (0.01, lambda *numbers: optax.chain(scale_by_egd(), adam(*numbers))),
    "EGD": (0.1, lambda rate, decay: egd(rate, weight_decay=decay, decay="decoupled")),
}
QUICK = {"xla_backend_optimization_level": 1}  # the runs are short, so spend less on compiling


def measure(middle, make):
    """Return figures (4, seed, task) of the best settings: continued, fresh, with decay."""

    def one(rate, decay, fresh, run):
        return jnp.stack(learn(make(rate, decay), fresh, *run))

    compiled = jax.jit(jax.vmap(one, (None, None, None, 0), out_axes=1), compiler_options=QUICK)

    def play(rate, decay=0.0, fresh=False):
        return np.asarray(compiled(jnp.float32(rate), jnp.float32(decay), fresh, RUNS))

    tries = [play(middle * size) for size in GRID]
    best = best_of(tries)
    assert 0 < best < len(GRID) - 1
    rate = middle * GRID[best]
    decayed = [play(rate, shrink / rate) for shrink in SHRINKS]
    fresh = play(rate, fresh=True)
    return {"continued": tries[best], "fresh": fresh, "decay": decayed[best_of(decayed)]}


def best_of(tries):
    """Return the index of the best online accuracy, median of the seeds."""
    return int(np.argmax([np.median(figures[0].mean(-1)) for figures in tries]))


results = {name: measure(*method) for name, method in METHODS.items()}

# %% [markdown]
# ## Results


# %%
def online(name, way):
    """Mean online accuracy of all tasks, for each seed."""
    return results[name][way][0].mean(-1)


def late(name, way, figure=1):
    """A figure of the last three tasks, median of the seeds; 1: final accuracy, 2: dead units."""
    return np.median(results[name][way][figure, :, -3:].mean(-1))


print(f"{'':12}{'online accuracy':^30}{'final, last three tasks':^30}{'dead':>8}")
print(f"{'':12}" + 2 * f"{'continued':>10}{'fresh':>10}{'decay':>10}" + f"{'continued':>10}")
for name, ways in results.items():
    cells = [np.median(online(name, way)) for way in ways]
    cells += [late(name, way) for way in ways]
    cells += [late(name, "continued", figure=2)]
    print(f"{name:12}" + "".join(f"{cell:10.2f}" for cell in cells))

# %%
# alt: Final accuracy against task in three panels. Continued networks get worse from task to task,
# down to chance for all but EGD; fresh ones do not; with decay those with EGD do not either.
COLORS = dict(zip(METHODS, ("#000000", "#D55E00", "#CC79A7", "#0072B2"), strict=True))
figure, panels = plt.subplots(1, 3, figsize=(10, 3.4), sharey=True, layout="constrained")
for axes, way in zip(panels, ("continued", "fresh", "decay"), strict=True):
    for name, ways in results.items():
        finals = np.median(ways[way][1], axis=0)
        axes.plot(range(1, TASKS + 1), finals, "o-", markersize=4, color=COLORS[name], label=name)
    axes.set(title=f"final accuracy, {way}", xlabel="task", xticks=range(1, TASKS + 1, 3))
    axes.grid(color="0.92")
    axes.spines[["top", "right"]].set_visible(False)
_ = panels[1].legend(frameon=False, loc="lower right")

# %% [markdown]
# ## What this shows
#
# **EGD alone is right most often while it learns**, on each seed. EGD in front of Adam gains
# little: plain Adam is ahead on one seed.

# %%
OTHERS = [name for name in METHODS if name != "EGD"]
rivals = [online(name, "continued") for name in OTHERS]
assert np.all(online("EGD", "continued") > np.max(rivals, axis=0) + 0.03)
assert np.sum(online("Adam", "continued") > online("EGD → Adam", "continued")) == 1

# %% [markdown]
# **EGD does not keep a network plastic.** At the end all four know far fewer digits than a fresh
# network after as many steps. With Adam behind it, it is worse: most hidden units end up dead,
# while EGD alone leaves most of them alive.

# %%
for name in METHODS:
    assert late(name, "continued") < late(name, "fresh") - 0.2
assert late("EGD → Adam", "continued") < late("EGD", "continued") - 0.2
dead = {name: late(name, "continued", figure=2) for name in METHODS}
assert dead["EGD → Adam"] > 0.5 > dead["EGD"] + 0.1

# %% [markdown]
# **Decay keeps it plastic.** It helps every optimizer. With EGD and decay the continued network is
# as good as a fresh one, or nearly, and the best of all that are continued. For Adam these decays
# are not enough.


# %%
def median(name, way):
    return np.median(online(name, way))


for name in METHODS:
    assert median(name, "decay") > median(name, "continued") + 0.02
assert median("EGD", "decay") > median("EGD", "fresh") - 0.06
assert median("EGD", "decay") > max(median(name, "decay") for name in OTHERS) + 0.015
assert late("EGD", "decay") > late("EGD", "fresh") - 0.08
assert median("Adam", "decay") < median("Adam", "fresh") - 0.08

# %% [markdown]
# The reason: whitened steps have a fixed length, and so the weights under EGD grow as long as it
# trains; a step of that length then changes them less and less. Decay bounds the weights.


# %%
def growth(way):
    """Norm of the first matrix after the last task over that after the first, median seed."""
    norms = results["EGD"][way][3]
    return np.median(norms[:, -1] / norms[:, 0])


print(f"the first matrix grows by {growth('continued'):.2f}, with decay by {growth('decay'):.2f}")
assert growth("continued") > 1.4
assert growth("decay") < 1.2

# %% [markdown]
# ## What to take
#
# On a stream of tasks use `egd(rate, weight_decay=decay, decay="decoupled")` without momentum,
# with `rate * decay` around 0.01 to 0.03. If you know when a task begins, you may as well start
# afresh: a fresh network learns these tasks faster with EGD than with SGD or Adam.

# %%
assert median("EGD", "fresh") > max(median(name, "fresh") for name in ("SGD", "Adam")) + 0.1

# %% [markdown]
# [Images](../grokking/images.md#mnist-with-re-shuffled-labels-table-8) has another stream:
# labels shuffled among the images. This is one small network, three seeds and ten tasks: measure
# yours.
