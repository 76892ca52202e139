"""How large a model is, and how long it is trained."""

import dataclasses
import math
from typing import Any

import optax
from common.checks import check_least

VOCABULARY = 256  # bytes
HOPELESS = math.log(VOCABULARY)  # the loss of a guess without any knowledge
CHUNK = 8  # validation windows at a time
SHARE = 20  # one in so many steps is warm-up
LEAST_STEPS = 2  # a warm-up and a decay


@dataclasses.dataclass(frozen=True)
class Config:
    """A model and its training, whatever the optimizer.

    Args:
        layers: blocks.
        width: of the residual stream; a multiple of `heads`.
        heads: attention heads of a block.
        context: bytes that the model sees.
        batch: windows in a batch.
        steps: updates.
        every: steps from one validation and checkpoint to the next.
        windows: validation windows, evenly spaced over the validation text.
        dtype: what the model computes in; parameters and optimizer are float32.
        scanned: one block with the layers stacked in front, instead of a list of blocks.
        tied: the embedding's table is the head, too.

    Raises:
        ValueError: a number that cannot be.
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    context: int = 128
    batch: int = 16
    steps: int = 600
    every: int = 25
    windows: int = 128
    dtype: str = "float32"
    scanned: bool = False
    tied: bool = False

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.type is int:
                check_least(field.name, value, 1)
        if self.width % self.heads:
            raise ValueError(
                f"width must be a multiple of heads, got {self.width} and {self.heads}; "
                f"{self.heads * math.ceil(self.width / self.heads)} would do"
            )
        if self.steps < LEAST_STEPS:
            raise ValueError(f"a warm-up and a decay need {LEAST_STEPS} steps, got {self.steps}")

    @property
    def tokens(self) -> int:
        """Bytes that one step trains on."""
        return self.batch * self.context

    @property
    def warmup(self) -> int:
        """Steps up to the full learning rate."""
        return max(1, self.steps // SHARE)

    def schedule(self) -> optax.Schedule:
        """Return the factor of every learning rate: warm-up to 1, then a cosine to a tenth."""
        up = self.warmup
        return optax.warmup_cosine_decay_schedule(1 / up, 1.0, up, self.steps, end_value=0.1)

    def at_equal_tokens(self, batch: int) -> "Config":
        """Return the training on as many bytes with another batch, looked at as often."""

        def scaled(count: int) -> int:
            return max(1, count * self.batch // batch)

        steps, every = scaled(self.steps), scaled(self.every)
        return dataclasses.replace(self, batch=batch, steps=steps, every=every)

    def to_json(self) -> dict[str, Any]:
        """Return what a log has of it."""
        return dataclasses.asdict(self)


SIZES = {
    "tiny": Config(2, 32, 2, 32, 4, steps=20, every=5, windows=8),
    "small": Config(),
    "gpt2": Config(
        12, 768, 12, 1024, 32, steps=2000, every=100, windows=64, dtype="bfloat16", scanned=True
    ),
}
