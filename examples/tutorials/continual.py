# %% [markdown]
# # Continual learning
#
# A network that learns one task after the other often learns the later ones worse than a fresh
# network would: it loses *plasticity*. Does EGD, which moves every direction of a matrix equally
# far, help? This page measures it on two streams of ten tasks, with SGD and Adam, each alone and
# behind EGD, and with EGD alone.
#
# The answer in short: EGD alone is right more often while it learns than the others. But it does
# **not** keep the network plastic by itself, and momentum or Adam behind it makes the loss worse.
# A decoupled weight decay does keep it, and with EGD that works best. Every claim has an `assert`
# beside it.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from sklearn.datasets import load_digits

from egd_optax import egd, scale_by_egd

# %% [markdown]
# ## Two streams
#
# Both use scikit-learn's digits, 8 x 8 pixels. Each task has 60 batches of 16, which is four
# passes over 240 images, and then the next task begins without notice.
#
# - **pixels**: each task shuffles the pixels of all images, in its own way. The first layer has to
#   be learned anew.
# - **classes**: each task renames the ten digits. The images stay, and so the first layer could,
#   too.

# %%
STREAMS, SEEDS, TASKS, BATCHES, WIDTH = ("pixels", "classes"), 3, 10, 60, 16
PIXELS, LABELS = load_digits(return_X_y=True)


def make_stream(kind, seed):
    """Return initial parameters, batches (task, batch, example, ...) and test sets (task, ...)."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(PIXELS))
    train, test = order[:240], order[-400:]
    batches, tests = [], []
    for _ in range(TASKS):
        pixels = random.permutation(64) if kind == "pixels" else np.arange(64)
        names = random.permutation(10) if kind == "classes" else np.arange(10)
        images, targets = PIXELS[:, pixels] / 16, np.eye(10)[names[LABELS]]
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


RUNS = [make_stream(kind, seed) for kind in STREAMS for seed in range(SEEDS)]
RUNS = jax.tree.map(lambda *arrays: jnp.asarray(np.stack(arrays), jnp.float32), *RUNS)

# %% [markdown]
# ## The network and the measurements
#
# One hidden layer of 16 units. For each task we keep the *online accuracy*, that of every batch
# before the network learns from it, and the *final accuracy* on 400 other images at the task's
# end. We also keep the share of hidden units that are dead, which answer to none of these images.
#
# The control is `fresh`: the same, but parameters and optimizer state go back to the start before
# every task. What a continued network lacks to a fresh one is the plasticity that it lost.


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
# decays, under which the weights shrink by 1 % or 3 % a step, and keeps the better one. Seeds and
# streams run side by side under `vmap`.

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
    "EGD → SGD": (0.01, lambda *numbers: optax.chain(scale_by_egd(), sgd(*numbers))),
    "EGD → Adam": (0.01, lambda *numbers: optax.chain(scale_by_egd(), adam(*numbers))),
    "EGD": (0.1, lambda rate, decay: egd(rate, weight_decay=decay, decay="decoupled")),
}
QUICK = {"xla_backend_optimization_level": 1}  # the runs are short, so spend less on compiling


def player(make):
    """Return a function of rates and decays by stream; it gives figures (stream, seed, task)."""

    def one(rate, decay, fresh, run):
        return learn(make(rate, decay), fresh, *run)

    compiled = jax.jit(jax.vmap(one, (0, 0, None, 0)), compiler_options=QUICK)

    def play(rates, decays, fresh=False):
        numbers = jnp.asarray(np.repeat([rates, decays], SEEDS, axis=1), jnp.float32)
        parts = compiled(*numbers, fresh, RUNS)
        return np.stack(parts).reshape(4, len(STREAMS), SEEDS, TASKS)

    return play


def best_of(tries):
    """Return the index of the best online accuracy, and its figures, for each stream."""
    tries = np.stack(tries)
    best = np.median(tries[:, 0].mean(-1), axis=-1).argmax(0)
    return best, np.stack([tries[index, :, place] for place, index in enumerate(best)], axis=1)


def measure(middle, make):
    """Return figures (stream, seed, task) of the best settings: continued, fresh, with decay."""
    play, none = player(make), np.zeros(len(STREAMS))
    best, continued = best_of([play(none + middle * size, none) for size in GRID])
    assert np.all((best > 0) & (best < len(GRID) - 1))
    rates = middle * GRID[best]
    _, decayed = best_of([play(rates, shrink / rates) for shrink in SHRINKS])
    return {"continued": continued, "fresh": play(rates, none, fresh=True), "decay": decayed}


results = {name: measure(*method) for name, method in METHODS.items()}

# %% [markdown]
# ## Results


# %%
def online(stream, name, way):
    """Mean online accuracy of all tasks, for each seed."""
    return results[name][way][0, STREAMS.index(stream)].mean(-1)


def late(stream, name, way, figure=1):
    """A figure of the last three tasks, median of the seeds; 1: final accuracy, 2: dead units."""
    return np.median(results[name][way][figure, STREAMS.index(stream), :, -3:].mean(-1))


for stream in STREAMS:
    print(f"{stream}: median of three seeds")
    print(f"{'':12}{'online accuracy':^30}{'final, last three tasks':^30}{'dead':>8}")
    print(f"{'':12}" + 2 * f"{'continued':>10}{'fresh':>10}{'decay':>10}" + f"{'continued':>10}")
    for name, ways in results.items():
        cells = [np.median(online(stream, name, way)) for way in ways]
        cells += [late(stream, name, way) for way in ways]
        cells += [late(stream, name, "continued", figure=2)]
        print(f"{name:12}" + "".join(f"{cell:10.2f}" for cell in cells))

# %%
# alt: Online accuracy as bars, and final accuracy against task for continued, fresh and decayed
# networks, on pixels above and classes below. Continued networks get worse from task to task, on
# the classes down to chance for all but EGD; fresh ones do not; with decay those with EGD do not
# either.
COLORS = dict(zip(METHODS, ("#000000", "#D55E00", "#56B4E9", "#CC79A7", "#0072B2"), strict=True))
SHADES = {"continued": 1, "fresh": 0.25, "decay": 0.6}


def draw_online(axes, stream):
    for place, name in enumerate(METHODS):
        for shift, (way, alpha) in zip((-0.25, 0, 0.25), SHADES.items(), strict=True):
            accuracies = online(stream, name, way)
            height = np.median(accuracies)
            axes.bar(place + shift, height, 0.23, color=COLORS[name], alpha=alpha)
            axes.plot([place + shift] * SEEDS, accuracies, ".", color="0.3", markersize=3)
    axes.set_xticks(range(len(METHODS)), METHODS, rotation=30, ha="right", rotation_mode="anchor")
    axes.set(title="online accuracy", ylabel=stream, ylim=(0, 1))


def draw_final(axes, stream, way):
    for name, ways in results.items():
        finals = np.median(ways[way][1, STREAMS.index(stream)], axis=0)
        style = {"marker": "o", "markersize": 4, "color": COLORS[name]}
        axes.plot(range(1, TASKS + 1), finals, label=name, **style)
    axes.set(title=f"final accuracy, {way}", xlabel="task", xticks=range(1, TASKS + 1, 3))
    axes.grid(color="0.92")


def draw():
    figure, rows = plt.subplots(2, 4, figsize=(12, 6.5), sharey=True, layout="constrained")
    for row, stream in zip(rows, STREAMS, strict=True):
        draw_online(row[0], stream)
        for axes, way in zip(row[1:], SHADES, strict=True):
            draw_final(axes, stream, way)
    for axes in rows.flat:
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*rows[0, 1].get_legend_handles_labels(), loc="outside upper center", ncols=5)


draw()

# %% [markdown]
# In each group of bars the left one is the continued network, the pale one is fresh for every
# task, and the right one is continued with decay. Dots are seeds.
#
# ## What this shows
#
# **EGD alone is right most often while it learns**, on both streams and each seed.


# %%
def medians(stream, way, names=METHODS):
    return np.array([np.median(online(stream, name, way)) for name in names])


OTHERS = [name for name in METHODS if name != "EGD"]
for stream in STREAMS:
    rivals = [online(stream, name, "continued") for name in OTHERS]
    assert np.all(online(stream, "EGD", "continued") > np.max(rivals, axis=0) + 0.03)

# %% [markdown]
# **EGD in front of SGD or Adam gains little once all are tuned.** On the pixels it is a tie. On
# the classes it gains in the median, but plain Adam is ahead on one seed.

# %%
PLAIN, BEHIND = ("SGD", "Adam"), ("EGD → SGD", "EGD → Adam")
gain = {s: medians(s, "continued", BEHIND) - medians(s, "continued", PLAIN) for s in STREAMS}
assert np.all(np.abs(gain["pixels"]) < 0.05)
assert np.all(gain["classes"] > 0.03)
ahead = online("classes", "Adam", "continued") > online("classes", "EGD → Adam", "continued")
assert np.sum(ahead) == 1

# %% [markdown]
# **EGD does not keep a network plastic.** At the end of the classes all five know far fewer digits
# than a fresh network after as many steps, and on the pixels, too, EGD falls behind one. With
# momentum or Adam behind it, it is worse: on the classes most hidden units end up dead, while EGD
# alone leaves most of them alive.

# %%
for name in METHODS:
    assert late("classes", name, "continued") < late("classes", name, "fresh") - 0.2
assert late("pixels", "EGD", "continued") < late("pixels", "EGD", "fresh") - 0.04
for name in BEHIND:
    assert late("classes", name, "continued") < late("classes", "EGD", "continued") - 0.2
dead = {name: late("classes", name, "continued", figure=2) for name in METHODS}
assert min(dead[name] for name in BEHIND) > 0.5 > dead["EGD"] + 0.1

# %% [markdown]
# **Decay keeps it plastic.** It helps every optimizer on both streams. With EGD and decay the
# continued network is as good as a fresh one, or nearly, and the best of all that are continued.
# For Adam these decays are not enough on the classes.

# %%
for stream in STREAMS:
    assert np.all(medians(stream, "decay") > medians(stream, "continued") + 0.02)
    assert medians(stream, "decay", ["EGD"]) > medians(stream, "fresh", ["EGD"]) - 0.06
    assert medians(stream, "decay", ["EGD"]) > medians(stream, "decay", OTHERS).max() + 0.015
    assert late(stream, "EGD", "decay") > late(stream, "EGD", "fresh") - 0.08
assert medians("classes", "decay", ["Adam"]) < medians("classes", "fresh", ["Adam"]) - 0.08

# %% [markdown]
# Why? Whitened steps have a fixed length, and so the weights under EGD grow as long as it trains;
# a step of that length then changes them less and less. Decay bounds the weights.


# %%
def growth(stream, way):
    """Norm of the first matrix after the last task over that after the first, median seed."""
    norms = results["EGD"][way][3, STREAMS.index(stream)]
    return np.median(norms[:, -1] / norms[:, 0])


for stream in STREAMS:
    grown, bounded = growth(stream, "continued"), growth(stream, "decay")
    print(f"{stream}: by {grown:.2f}, with decay by {bounded:.2f}")
    assert grown > 1.4
    assert bounded < 1.2

# %% [markdown]
# ## What to take
#
# On a stream of tasks use `egd(rate, weight_decay=decay, decay="decoupled")` without momentum,
# with `rate * decay` around 0.01 to 0.03. If you know when a task begins, you may as well start
# afresh: a fresh network learns these tasks faster with EGD than with SGD or Adam.

# %%
for stream in STREAMS:
    assert medians(stream, "fresh", ["EGD"]) > medians(stream, "fresh", PLAIN).max() + 0.1

# %% [markdown]
# The page on [images](../grokking/images.md#digits-with-re-shuffled-labels-after-table-8) has
# another stream: labels shuffled among the images, so that there is nothing to learn but to
# memorise anew. There, at one learning rate for all, EGD before Adam helps the more, the more
# shuffles there are. Here the rates are tuned and the tasks are others, and EGD before Adam gains
# little. This is one small network, three seeds and ten tasks: measure yours.
