"""Train a transformer over many devices, in one process or several, and go on over others.

Parameters and the optimizer's state are cut along their longest axis over all devices, as in FSDP;
so is the batch. Each matrix is whitened once, by one device: `egd(..., mesh_axes="data")`.

    python examples/training/many_devices.py --folder runs/many --devices 8 --steps 100
    python examples/training/many_devices.py --folder runs/many --processes 2 --devices 2

The second command goes on from the first one's checkpoint, with two processes of two CPU devices.
On a cluster start the script once a host, with --coordinator HOST:PORT and --process-id.
"""

import dataclasses
import json
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import orbax.checkpoint as ocp
import tyro
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from run_config import check_config
from tqdm import tqdm

from egd_optax import egd, infer_axes
from egd_optax.models import DecoderTransformer

MODULUS = 59  # what is learned: a b modulo 59, from the tokens (a, times, b, equals)
LENGTH, HEADS = 4, 4
FREE = {"folder", "steps", "save_every", "processes", "devices", "coordinator", "process_id"}


@dataclasses.dataclass(frozen=True)
class Config:
    """One run.

    Args:
        folder: where checkpoints and the log go.
        steps: updates in all, those of earlier runs in this folder among them.
        save_every: updates from one checkpoint to the next.
        batch_size: examples in a batch, over all devices; a multiple of their number.
        learning_rate: of the whitened matrices.
        width: of the transformer; a multiple of its 4 heads.
        layers: of the transformer.
        processes: how many take part.
        devices: CPU devices that a process pretends to have; None: the devices it has.
        coordinator: HOST:PORT of process 0; None: all processes are started here.
        process_id: which one this is, with a coordinator.
        seed: of the initial values and the batches.
    """

    folder: Path
    steps: int = 200
    save_every: int = 50
    batch_size: int = 128
    learning_rate: float = 0.02
    width: int = 64
    layers: int = 2
    processes: int = 1
    devices: int | None = None
    coordinator: str | None = None
    process_id: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "batch_size", "width", "layers", "processes"):
            if getattr(self, name) < 1:
                raise SystemExit(f"--{name.replace('_', '-')} must be at least 1.")
        if not 0 <= self.learning_rate < float("inf"):
            raise SystemExit("--learning-rate must be a number of at least 0.")
        if self.width % HEADS:
            raise SystemExit(f"--width must be a multiple of the {HEADS} heads, got {self.width}.")
        if not 0 <= self.process_id < self.processes:
            raise SystemExit(f"--process-id must lie in [0, {self.processes}) of --processes.")

    def fixed(self) -> dict[str, Any]:
        """Return the options that a run keeps when it goes on."""
        return {key: value for key, value in dataclasses.asdict(self).items() if key not in FREE}


class Training:
    """The program of a run: how it starts, and what a step does, over the devices of a mesh."""

    def __init__(self, config: Config):
        self.config = config
        self.mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
        self.optimizer = self._optimizer()
        self.layouts = jax.tree.map(self.layout, jax.eval_shape(self.start, jax.random.key(0)))
        whole = NamedSharding(self.mesh, P())
        self.begin = jax.jit(self.start, out_shardings=self.layouts)
        self.update = jax.jit(
            self.step, out_shardings=(*self.layouts, whole), donate_argnums=(0, 1)
        )

    def layout(self, leaf: Any) -> NamedSharding:
        """Cut the longest of the axes that the devices can share evenly."""
        even = [size if size % self.mesh.size == 0 else 0 for size in leaf.shape]
        longest = int(np.argmax(even)) if any(even) else None
        return NamedSharding(
            self.mesh, P(*("data" if i == longest else None for i in range(leaf.ndim)))
        )

    def start(self, key: jax.Array) -> tuple[Any, Any]:
        """Return initial parameters and the optimizer's state."""
        params = nnx.state(self._network(key), nnx.Param)
        return params, self.optimizer.init(params)

    def step(self, params: Any, state: Any, batch: Any) -> tuple[Any, Any, jax.Array]:
        """Return parameters and state after an update, and the loss before it."""
        value, gradients = jax.value_and_grad(self.loss)(params, batch)
        updates, state = self.optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state, value

    def loss(self, params: Any, batch: Any) -> jax.Array:
        tokens, labels = batch
        logits = nnx.merge(self._graph, params)(tokens)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def batch(self, step: int) -> Any:
        """Return tokens and labels, a function of seed and step: each device draws its part."""
        size = self.config.batch_size
        a, b = np.random.default_rng((self.config.seed, step)).integers(MODULUS, size=(2, size))
        signs = np.full_like(a, MODULUS), np.full_like(a, MODULUS + 1)
        arrays = np.stack([a, signs[0], b, signs[1]], axis=1), a * b % MODULUS
        cut = NamedSharding(self.mesh, P("data"))
        return jax.tree.map(
            lambda x: jax.make_array_from_callback(x.shape, cut, x.__getitem__), arrays
        )

    def _network(self, key: jax.Array) -> nnx.Module:
        sizes = {"layers": self.config.layers, "width": self.config.width, "heads": HEADS}
        return DecoderTransformer(MODULUS + 2, LENGTH, **sizes, rngs=nnx.Rngs(params=key))

    def _optimizer(self) -> optax.GradientTransformation:
        self._graph, shapes = nnx.split(
            nnx.eval_shape(lambda: self._network(jax.random.key(0))), nnx.Param
        )
        example = jax.ShapeDtypeStruct((2, LENGTH), int), jax.ShapeDtypeStruct((2,), int)
        return egd(
            self.config.learning_rate,
            axes=infer_axes(shapes, self.loss, example),
            momentum=0.9,
            nesterov=True,
            others=optax.adam(3e-3),
            mesh_axes="data",
        )


def train(config: Config) -> None:
    """Train in this process, one of `config.processes`, from the last checkpoint on."""
    first, devices = jax.process_index() == 0, jax.device_count()
    if config.batch_size % devices:
        raise SystemExit(
            f"--batch-size must be a multiple of the {devices} devices, got {config.batch_size}."
        )
    training = Training(config)
    check_config(config.folder, config.fixed(), write=first)
    options = ocp.CheckpointManagerOptions(max_to_keep=2, cleanup_tmp_directories=True)
    with (
        jax.set_mesh(training.mesh),
        ocp.CheckpointManager((config.folder / "steps").resolve(), options=options) as checkpoints,
    ):
        params, state = training.begin(jax.random.key(config.seed))
        done = checkpoints.latest_step() or 0
        if done:
            like = jax.tree.map(ocp.utils.to_shape_dtype_struct, (params, state))
            params, state = checkpoints.restore(done, args=ocp.args.StandardRestore(like))
        bar = tqdm(range(done + 1, config.steps + 1), "training", disable=None if first else True)
        for number in bar:
            params, state, value = training.update(params, state, training.batch(number))
            if first:
                write(config, {"step": number, "loss": float(value), "devices": devices})
                bar.set_postfix(loss=f"{value:.3f}")
            if number % config.save_every == 0 or number == config.steps:
                checkpoints.save(number, args=ocp.args.StandardSave((params, state)))
    if first:
        print(f"{config.steps} steps are done; log: {config.folder / 'log.jsonl'}")


def write(config: Config, line: dict[str, Any]) -> None:
    """Append a step to the log; of one that was run twice the last line counts."""
    with (config.folder / "log.jsonl").open("a") as log:
        log.write(json.dumps(line) + "\n")


def launch(config: Config) -> int:
    """Start all processes on this machine; as one fails, stop the others and return its code."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, __file__, *sys.argv[1:], "--coordinator", coordinator]
    started = [
        subprocess.Popen([*command, "--process-id", str(index)])
        for index in range(config.processes)
    ]
    codes: list[int | None] = [None]
    try:
        while None in codes and not any(codes):
            time.sleep(0.1)
            codes = [one.poll() for one in started]
        return next(filter(None, codes), 0)
    finally:
        for one in started:
            one.kill()


def main(config: Config) -> int:
    if config.processes > 1 and config.coordinator is None:
        return launch(config)
    if config.devices is not None:
        jax.config.update("jax_num_cpu_devices", config.devices)
    if config.coordinator is not None:
        jax.distributed.initialize(config.coordinator, config.processes, config.process_id)
    train(config)
    return 0


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config)))
