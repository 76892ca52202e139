"""The comparison as a value: network, data, training, and one run of it.

The language model's comparison does the tuning. What is tuned is the error at the end on 1,000
digits that the trial did not train on; the other 1,000, the test set, are for the fresh seeds.
"""

import dataclasses
import functools
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from arena.field import FIRST_FRESH_SEED, Field
from arena.record import TIMES, Line, Log, Record
from arena.space import Settings, traced
from flax import nnx
from grokking.digits import DIGITS, mnist
from grokking.log import environment
from grokking.tasks import check_choice, check_least
from language.compare import planned, told, tuned
from language.optimizers import OPTIMIZERS, Recipe

from egd_optax import infer_axes
from images.networks import NETWORKS, SIDE, TITLES

NAMES = ("adamw", "sgd", "muon", "egd")
HELD_OUT = 1_000  # digits to tune by, and as many again to test on
ROUNDS = 15  # of timing, in turn


@dataclasses.dataclass(frozen=True)
class Config:
    """A network and its training, whatever the optimizer.

    Args:
        network: "cnn" or "vit".
        steps: updates; learning rates warm up in a twentieth of them and fall as a cosine.
        batch: digits in one.
        every: steps from one look at the held-out digits to the next.

    Raises:
        ValueError: an unknown network, or a number that cannot be.
    """

    network: str = "cnn"
    steps: int = 300
    batch: int = 100
    every: int = 10

    def __post_init__(self) -> None:
        check_choice("network", self.network, NETWORKS)
        for name in ("steps", "batch", "every"):
            check_least(name, getattr(self, name), 1)
        if self.steps % self.every:
            raise ValueError(
                f"steps must be a multiple of every, got {self.steps} and {self.every}; change one"
            )
        if self.batch > DIGITS - 2 * HELD_OUT:
            raise ValueError(
                f"a batch must fit into the {DIGITS - 2 * HELD_OUT} training digits, got "
                f"{self.batch}; lower batch"
            )

    def schedule(self) -> optax.Schedule:
        """Return the factor of every learning rate: warm-up to 1, then a cosine to a tenth."""
        up = max(1, self.steps // 20)
        return optax.warmup_cosine_decay_schedule(1 / up, 1.0, up, self.steps + 1, end_value=0.1)


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared: a network's training, and how often each optimizer is tried.

    Args:
        config: the network and its training.
        trials: of each optimizer.
        seeds: fresh ones, for the best of each.
    """

    config: Config
    trials: int = 16
    seeds: int = 3

    def __post_init__(self) -> None:
        for name in ("trials", "seeds"):
            check_least(name, getattr(self, name), 1)

    @property
    def field(self) -> Field:
        """The study in the arena's words: no target is reached, the lowest error is the best.

        The factor by shape is Muon's throughout.
        """
        chosen = {
            name: entry._replace(knobs=entry.numbers)
            for name, entry in OPTIMIZERS.items()
            if name in NAMES
        }
        network = self.config.network
        return planned(self, f"images-{network}", TITLES[network], chosen)

    def told(self, header: Line) -> Line:
        """Return a log's config with the network and its training, which must not change."""
        own = {"model": dataclasses.asdict(self.config), "matrices": whitened(self.config.network)}
        return told(header, own)

    def trained(self, name: str, settings: Settings, seed: int) -> Line:
        """Train once, and return the run's line: its course, and the error at the end.

        The error is that on the test set if the seed is a fresh one. Without a finite loss at the
        end there is no score.
        """
        program = _program(self.config, name)
        return program.run(traced(OPTIMIZERS[name].numbers, settings), seed)


class Data(NamedTuple):
    """Numbers of digits: of each batch (looks, every, batch), and of those that are looked at."""

    batches: np.ndarray
    held_out: np.ndarray


def data(config: Config, seed: int) -> Data:
    """Return what a seed trains on and is judged by.

    A fixed thousand is the test set, of the fresh seeds alone, which train on all other 4,000. The
    tuning seeds train on 3,000 of these and are judged by the other 1,000. An epoch's last partial
    batch is dropped.
    """
    order = np.random.default_rng(0).permutation(DIGITS)
    test, validation, rest = np.split(order, (HELD_OUT, 2 * HELD_OUT))
    fresh = seed >= FIRST_FRESH_SEED
    train = np.concatenate([validation, rest]) if fresh else rest
    random = np.random.default_rng(seed)
    whole = len(train) // config.batch
    epochs = -(-config.steps // whole)
    batches = [
        random.permutation(train)[: whole * config.batch].reshape(whole, config.batch)
        for _ in range(epochs)
    ]
    chosen = np.concatenate(batches)[: config.steps]
    return Data(chosen.reshape(-1, config.every, config.batch), test if fresh else validation)


class Program:
    """A network with an optimizer; compiled when it is first used, for all settings and seeds."""

    def __init__(self, config: Config, name: str):
        self.config, self.network = config, NETWORKS[config.network]
        self._entry = OPTIMIZERS[name]
        self._graph, shapes = nnx.split(nnx.eval_shape(lambda: self.network(nnx.Rngs(0))))
        images = jax.ShapeDtypeStruct((config.batch, SIDE, SIDE, 1), np.float32)
        labels = jax.ShapeDtypeStruct((config.batch,), np.int32)
        self.axes = infer_axes(nnx.to_pure_dict(shapes), self._loss, images, labels)
        self._compiled: Any = None

    def run(self, values: dict[str, np.generic], seed: int) -> Line:
        """Train, and return the line of a log."""
        images, labels = mnist()
        params = nnx.to_pure_dict(nnx.state(self.network(nnx.Rngs(seed))))
        pictures = images.reshape(-1, SIDE, SIDE, 1)
        arguments = values, params, pictures, labels, data(self.config, seed)
        started = time.perf_counter()
        if self._compiled is None:
            self._compiled = jax.jit(self._train).lower(*arguments).compile()
        compilation = time.perf_counter() - started
        started = time.perf_counter()
        losses, errors = map(np.asarray, jax.block_until_ready(self._compiled(*arguments)))
        seconds = time.perf_counter() - started
        finite = bool(np.isfinite(losses).all())
        looks = range(self.config.every, self.config.steps + 1, self.config.every)
        course: dict[str, list] = {
            "step": list(looks),
            "loss": [float(f"{loss:.5g}") if np.isfinite(loss) else None for loss in losses],
            "validation": [round(float(error), 4) for error in errors],
        }
        return {
            "seed": seed,
            "steps": None,  # there is no target
            "score": course["validation"][-1] if finite else None,
            "seconds": round(seconds, 3),
            "compile": round(compilation, 2),
            "course": course,
        }

    def _train(
        self, values: Any, params: Any, images: jax.Array, labels: jax.Array, chosen: Data
    ) -> tuple[jax.Array, jax.Array]:
        """Return the mean loss of the steps before each look, and the error there."""
        transform = self._entry.make(values, Recipe(self.axes, self.config.schedule()))

        def step(carry: tuple, batch: jax.Array) -> tuple[tuple, jax.Array]:
            params, state = carry
            loss, gradients = jax.value_and_grad(self._loss)(params, images[batch], labels[batch])
            updates, state = transform.update(gradients, state, params)
            return (optax.apply_updates(params, updates), state), loss

        def look(carry: tuple, batches: jax.Array) -> tuple[tuple, tuple]:
            carry, losses = jax.lax.scan(step, carry, batches)
            wrong = self._outputs(carry[0], images[chosen.held_out]).argmax(-1)
            error = jnp.mean(wrong != labels[chosen.held_out], dtype=jnp.float32)
            return carry, (losses.mean(), error)

        carry = params, transform.init(params)
        return jax.lax.scan(look, carry, jnp.asarray(chosen.batches))[1]

    def _loss(self, params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = self._outputs(params, images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def _outputs(self, params: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(self._graph, params)(images)


def time_bests(study: Study, path: Path) -> Record:
    """Time some steps of a log's bests in turn, in one process; nothing else should be running."""
    short = dataclasses.replace(study.config, steps=2 * study.config.every)
    with Log(path, study.told(study.field.config())) as log:
        found = {name: tuned(log.record, study.field.task, name) for name in log.record.optimizers}
        rows: dict[str, Line] = {
            name: {"settings": one.best["settings"], "seconds": []}
            for name, one in found.items()
            if one and one.trials
        }
        programs = {name: Program(short, name) for name in rows}
        for number in range(ROUNDS + 1):
            for name, row in rows.items():
                values = traced(OPTIMIZERS[name].numbers, row["settings"])
                line = programs[name].run(values, study.field.fresh_seeds[0])
                if number:  # the first round compiles
                    row["seconds"].append(round(line["seconds"] / short.steps, 6))
                else:
                    row["compile"] = line["compile"]
        log.add({"kind": TIMES, "hardware": environment()["hardware"], "rows": rows})
        return log.record


def whitened(network: str) -> list[str]:
    """Return the paths of the matrices that Muon and EGD whiten; the rest is AdamW's."""
    axes = Program(Config(network), "egd").axes
    return [path for path, found in axes.items() if found]


@functools.lru_cache(maxsize=1)  # it is used until its optimizer is done
def _program(config: Config, name: str) -> Program:
    return Program(config, name)
