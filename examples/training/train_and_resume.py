"""Train a Flax CNN on digits and go on after an interruption, with all that Optax and Orbax offer.

Masks, a partition, injected hyperparameters, accumulated gradients, dropout and checkpoints, in one
script. Stop it whenever you like, even by `kill -9`; the same command goes on from the last
checkpoint and ends with the parameters, bit for bit, of a run that was never stopped.

    python examples/training/train_and_resume.py --folder runs/digits
"""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import tyro
from flax import nnx
from run_config import check_config
from sklearn.datasets import load_digits
from tqdm import tqdm

from egd_optax import diagnostics, egd, infer_axes, matching, polar

METHODS = {"auto": polar.Auto(), "subspace": polar.SubspaceIteration(rank=8)}


@dataclasses.dataclass(frozen=True)
class Config:
    """One run.

    Args:
        folder: where checkpoints, `config.json` and, at the end, `final.npz` go.
        steps: batches in all; half as many updates, since gradients are averaged over two.
        save_every: batches from one checkpoint to the next; the last two are kept.
        batch_size: images in a batch.
        learning_rate: of the whitened matrices at the first update; it falls to 0 as a cosine.
        adam_rate: learning rate of Adam, for what is not whitened.
        method: how polar factors are computed; "subspace" keeps a basis in the state.
        seed: of the initial values, the dropout and the order of the images.
    """

    folder: Path
    steps: int = 600
    save_every: int = 100
    batch_size: int = 64
    learning_rate: float = 0.02
    adam_rate: float = 1e-3
    method: Literal["auto", "subspace"] = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "batch_size"):
            if getattr(self, name) < 1:
                raise SystemExit(f"--{name.replace('_', '-')} must be at least 1.")
        for name in ("learning_rate", "adam_rate"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise SystemExit(f"--{name.replace('_', '-')} must be a number of at least 0.")


class CNN(nnx.Module):
    """Two convolutions and a head, for images of 8 x 8 pixels."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.first = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.second = nnx.Conv(16, 32, (3, 3), strides=2, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)
        self.head = nnx.Linear(32 * 4 * 4, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        hidden = nnx.relu(self.second(nnx.relu(self.first(images))))
        return self.head(self.dropout(hidden.reshape(len(images), -1)))


def build(config: Config) -> tuple[CNN, nnx.Optimizer]:
    """Return the model and its optimizer: EGD for the kernels, Adam for the head and the rest."""
    model = CNN(nnx.Rngs(config.seed))

    @optax.inject_hyperparams
    def recipe(learning_rate: Any, adam_rate: Any) -> optax.GradientTransformation:
        whiten = egd(
            learning_rate,
            method=METHODS[config.method],
            momentum=0.9,
            nesterov=True,
            weight_decay=1e-4,
            others=optax.adamw(adam_rate, mask=matching("kernel$")),
        )
        return optax.chain(diagnostics.spectrum_monitor(axes=infer_axes), whiten)

    schedule = optax.cosine_decay_schedule(config.learning_rate, max(config.steps // 2, 1))
    transformation = optax.MultiSteps(recipe(schedule, config.adam_rate), every_k_schedule=2)
    trainer = nnx.Optimizer(model, transformation, wrt=nnx.Param)
    print(diagnostics.whitening_plan(trainer, model))
    return model, trainer


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Return 1797 images (1797, 8, 8, 1) in [0, 1] and their labels."""
    data = load_digits()
    return data.images[..., None].astype(np.float32) / 16, data.target.astype(np.int32)


@nnx.jit
def train_step(model: CNN, trainer: nnx.Optimizer, images: jax.Array, labels: jax.Array):
    def loss(model: CNN) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    value, gradients = nnx.value_and_grad(loss)(model)
    trainer.update(model, gradients)
    return value


def batch_of(config: Config, step: int, count: int) -> np.ndarray:
    """Return the indices of a batch: a function of seed and step, so there is nothing to store."""
    return np.random.default_rng((config.seed, step)).integers(count, size=config.batch_size)


def state_of(model: CNN, trainer: nnx.Optimizer) -> dict[str, Any]:
    """Return all that training changes: parameters, dropout's keys, the optimizer's state."""
    return {"model": nnx.state(model), "trainer": nnx.state(trainer)}


def restore(checkpoints: ocp.CheckpointManager, model: CNN, trainer: nnx.Optimizer) -> int:
    """Load the last checkpoint, if there is one, and return the step to go on from."""
    last = checkpoints.latest_step()
    if last is None:
        return 0
    like = jax.tree.map(ocp.utils.to_shape_dtype_struct, state_of(model, trainer))
    saved = checkpoints.restore(last, args=ocp.args.StandardRestore(like))
    nnx.update(model, saved["model"])
    nnx.update(trainer, saved["trainer"])
    print(f"Going on after step {last}.")
    return last


def train(config: Config, model: CNN, trainer: nnx.Optimizer, data: tuple) -> None:
    """Train from the last checkpoint on; saving goes on in the background of the next steps."""
    images, targets = data
    options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
    with ocp.CheckpointManager((config.folder / "steps").resolve(), options=options) as checkpoints:
        start = restore(checkpoints, model, trainer)
        steps = tqdm(range(start + 1, config.steps + 1), initial=start, total=config.steps)
        for step in steps:
            batch = batch_of(config, step, len(images))
            loss = train_step(model, trainer, images[batch], targets[batch])
            if step % config.save_every == 0 or step == config.steps:
                steps.set_postfix(loss=f"{loss:.3f}")
                checkpoints.save(step, args=ocp.args.StandardSave(state_of(model, trainer)))


def report(config: Config, model: CNN, trainer: nnx.Optimizer, data: tuple) -> None:
    """Print accuracy and condition of the gradients, and write the parameters."""
    images, targets = data
    model.eval()
    right = jnp.argmax(model(jnp.asarray(images)), axis=1) == targets
    print(f"Test accuracy {jnp.mean(right):.1%}.")
    for path, figures in diagnostics.read_spectra(trainer.opt_state)[0].items():
        print(f"{path}: condition of a late gradient {figures.condition.item():.0f}")
    leaves = jax.tree.leaves_with_path(nnx.state(model, nnx.Param))
    final = config.folder / "final.npz"
    np.savez(final, **{jax.tree_util.keystr(path): leaf for path, leaf in leaves})
    print(f"Parameters: {final}")


def main(config: Config) -> None:
    images, targets = digits()
    count = len(images) * 4 // 5
    model, trainer = build(config)
    options = dataclasses.asdict(config)
    check_config(options.pop("folder"), options)
    train(config, model, trainer, (images[:count], targets[:count]))
    report(config, model, trainer, (images[count:], targets[count:]))


if __name__ == "__main__":
    main(tyro.cli(Config))
