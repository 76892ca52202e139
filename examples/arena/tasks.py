"""What there is to learn: modular tables, parity, permutations, a transformer, digits."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import numpy as np
from flax import nnx
from grokking import tasks as grokking
from grokking.config import Config
from grokking.experiments import PAPER
from grokking.tasks import OPERATIONS, Examples, Split

from arena.contract import Batch, Params, Task
from egd_optax import MatrixAxes, infer_axes
from egd_optax.models import TwoLayerMLP

MODULAR_STEPS = 250
FEW, SOME = 32, 48  # trials of tasks whose trials take a minute or so each
PERMUTATIONS = np.array(list(itertools.permutations(range(5))))  # S5, in lexical order


@dataclasses.dataclass(frozen=True)
class Composition(grokking.Task):
    """Learn the table of the composition in S5, 120 x 120, from half of it.

    Inputs are two one-hots (240,) of the permutations a and b, the label is that of a after b.
    """

    kind: ClassVar[str] = "composition"

    @property
    def train_size(self) -> int:
        return len(PERMUTATIONS) ** 2 // 2

    def split(self, key: jax.Array) -> Split:
        """Shuffle the whole table with `key` and cut it into halves."""
        count = len(PERMUTATIONS)
        entries = np.asarray(jax.random.permutation(key, count**2))
        pair = np.divmod(entries, count)
        inputs = np.concatenate([np.eye(count, dtype=np.float32)[one] for one in pair], axis=1)
        labels = composed()[pair].astype(np.int32)
        return _cut(inputs, labels, self.train_size)

    def network(self, width: int, rngs: nnx.Rngs) -> nnx.Module:
        return TwoLayerMLP(2 * len(PERMUTATIONS), width, len(PERMUTATIONS), rngs=rngs)


class Parts:
    """The functions of a `Task` that come from a problem of the grokking experiments.

    Leaves of three axes and more, an attention's, are handed out as matrices: in x out.

    Args:
        problem: brings data, network, loss and accuracy.
        width: of the network.
        init_scale: factor on every initial value.
    """

    def __init__(self, problem: grokking.Task, width: int, init_scale: float = 1.0):
        self.problem, self.width, self.init_scale = problem, width, init_scale

    def init(self, key: jax.Array) -> Params:
        network = self.problem.network(self.width, nnx.Rngs(params=key))
        params = nnx.to_pure_dict(nnx.state(network, nnx.Param))
        axes = infer_axes(params)
        return _by_path(lambda path, leaf: self.init_scale * _flat(leaf, axes.get(path)), params)

    def data(self, seed: int) -> tuple[Batch, Batch]:
        key = jax.random.split(jax.random.key(seed), 3)[0]  # as in the grokking experiments
        train, test = jax.tree.map(np.asarray, self.problem.split(key))
        return train, test

    def loss(self, params: Params, batch: Batch) -> jax.Array:
        return self.problem.loss(self._outputs(params, batch), batch.labels)

    def score(self, params: Params, batch: Batch) -> jax.Array:
        return self.problem.accuracy(self._outputs(params, batch), batch.labels)

    def _outputs(self, params: Params, batch: Batch) -> jax.Array:
        graph, shapes = self._network
        shaped = jax.tree.map(lambda leaf, like: leaf.reshape(like.shape), params, shapes)
        return nnx.merge(graph, shaped)(batch.inputs)

    @functools.cached_property
    def _network(self) -> tuple[Any, Any]:
        """Return the graph of the network, and the shapes of its parameters."""
        whole = nnx.eval_shape(lambda: self.problem.network(self.width, nnx.Rngs(params=0)))
        graph, shapes = nnx.split(whole, nnx.Param)
        return graph, nnx.to_pure_dict(shapes)


def inferred(params: Params) -> Any:
    """Mark the matrices that are no embedding and no output head, by the library's rules."""
    axes = infer_axes(params)
    return _by_path(lambda path, _: axes.get(path) is not None, params)


def composed() -> np.ndarray:
    """Return the table (120, 120) of the numbers of a after b."""
    after = PERMUTATIONS[:, PERMUTATIONS]  # [a, b, i]: a(b(i))
    places = 5 ** np.arange(5)
    numbers = np.zeros(5**5, int)
    numbers[PERMUTATIONS @ places] = np.arange(len(PERMUTATIONS))
    return numbers[after @ places]


def _cut(inputs: Any, labels: Any, train_size: int) -> Split:
    first, rest = slice(train_size), slice(train_size, None)
    return Split(Examples(inputs[first], labels[first]), Examples(inputs[rest], labels[rest]))


def _by_path(function: Callable[[str, Any], Any], tree: Any) -> Any:
    """Map a function of path, such as "hidden/kernel", and leaf."""
    return jax.tree_util.tree_map_with_path(
        lambda keys, leaf: function(jax.tree_util.keystr(keys, simple=True, separator="/"), leaf),
        tree,
    )


def _flat(leaf: jax.Array, axes: MatrixAxes | None) -> jax.Array:
    """Return a leaf of three axes and more as the matrix that its axes make of it."""
    if axes is None or leaf.ndim == 2:
        return leaf
    rows = [leaf.shape[axis] for axis in np.atleast_1d(axes.rows)]
    return leaf.reshape(math.prod(rows), -1)


def _task(name: str, title: str, parts: Parts, batches: tuple[int, ...], **fields: Any) -> Task:
    return Task(
        name=name,
        title=title,
        init=parts.init,
        loss=parts.loss,
        data=parts.data,
        score=parts.score,
        batches=batches,
        **fields,
    )


def _of(config: Config) -> Parts:
    return Parts(config.task, config.width, config.init_scale)


def _modular(operation: str, p: int, fraction: float = 0.5) -> Task:
    config = PAPER[f"{operation}-{p}"]
    whole: Any = config.task
    problem = dataclasses.replace(whole, train_fraction=fraction)
    size = problem.train_size
    return _task(
        f"{operation}-{p}",
        f"{operation.capitalize()} modulo {p}",
        Parts(problem, config.width, config.init_scale),
        (512, size // 4, size // 2, size),
        target=0.95,
        steps=MODULAR_STEPS,
        note="The paper's network and data: a two-layer ReLU network, half of the table.",
    )


def with_fraction(name: str, fraction: float) -> Task:
    """Return a modular table's task with another share of the table to train on.

    Raises:
        ValueError: the task is no modular table.
    """
    operation, _, p = name.partition("-")
    if operation not in OPERATIONS or not p.isdigit():
        raise ValueError(
            f"only modular tables have a share to train on, such as addition-97, got {name}"
        )
    return _modular(operation, int(p), fraction)


def _parity(k: int) -> Task:
    return _task(
        f"parity-{k}",
        f"Parity of {k} signs",
        _of(PAPER[f"parity-{k}"]),
        (32, 128, 512, 2_000),
        target=0.95,
        steps=3_000,
        every=5,
        note="The paper's network and data; its readout is a vector, which is not whitened.",
    )


def _permutations() -> Task:
    size = Composition().train_size
    return _task(
        "s5",
        "Composition in S5",
        Parts(Composition(), 512),
        (512, size // 4, size // 2, size),
        target=0.95,
        steps=MODULAR_STEPS,
        trials=FEW,
        note="Meant as a negative control: spherical constraints, which speed addition up, bring\n"
        "nothing here (arXiv 2603.05228).",
    )


def _transformer() -> Task:
    return _task(
        "transformer-97",
        "Transformer on multiplication modulo 97",
        _of(PAPER["transformer-97"]),
        (512,),
        target=0.95,
        steps=1_200,
        every=10,
        hold=51,  # the first look, and 500 more steps
        seeds=5,
        tuning_seeds=(0,),
        trials=SOME,
        hidden=inferred,
        note="Its 12 hidden matrices are whitened.",
    )


def _mnist() -> Task:
    return _task(
        "mnist",
        "MNIST, few digits, large initial values",
        _of(PAPER["mnist"]),
        (200, 500, 1_000),
        target=0.85,
        steps=1_500,
        every=10,
        trials=FEW,
        note="The paper's table 6 on 5,000 digits: 1,000 to train on, 8 times the initial values.",
    )


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        *(_modular(operation, p) for operation in OPERATIONS for p in (97, 79, 127)),
        *(_parity(k) for k in (2, 3, 4)),
        _permutations(),
        _transformer(),
        _mnist(),
    )
}
