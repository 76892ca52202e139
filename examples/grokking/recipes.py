"""The paper's runs as a table, and our smaller copies of two of them."""

import dataclasses

from grokking.config import Config
from grokking.images import Images
from grokking.tasks import ModularArithmetic, SparseParity

# Settings of the paper's Table 1. The cap on the epochs lies above its slowest SGD (10116).
RECIPES: dict[str, Config] = {
    **{
        f"{operation}-{p}": Config(task=ModularArithmetic(operation, p), method="svd")
        for operation in ("addition", "multiplication")
        for p in (79, 97, 127)
    },
    **{
        f"parity-{k}": Config(
            task=SparseParity(n, k),
            method="svd",
            width=width,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            batch_size=32,
        )
        for k, n, width, learning_rate, weight_decay in (
            (2, 400, 50, 0.01, 1e-3),
            (3, 100, 100, 0.0416239, 1e-2),
            (4, 50, 100, 0.0230841, 1e-2),
        )
    },
    "transformer-97": Config(
        task=ModularArithmetic("multiplication", 97, nonzero=True, encoding="tokens"),
        width=128,
        matrices="feed_forward",
        switch_off=None,
        decay="between",
        optimizer="adam",
        b2=0.98,
        learning_rate=1e-3,
        warmup_steps=10,
        weight_decay=0.005,
        epochs=1_000,
    ),
}
# The paper's for MNIST; the digits are our smaller copy of it, and of its CIFAR-10 with new labels.
RECIPES["mnist"] = Config(
    task=Images("mnist", 1_000),
    width=200,
    init_scale=8.0,
    matrices="all",
    switch_off=None,
    decay="decoupled",
    optimizer="adam",
    learning_rate=1e-3,
    weight_decay=2.0,
    batch_size=200,
    target=0.85,
    measure_every=20,
)
RECIPES["digits"] = dataclasses.replace(RECIPES["mnist"], task=Images("digits", 200), epochs=4_000)
RECIPES["cifar10-relabelled"] = dataclasses.replace(
    RECIPES["mnist"],
    task=Images("cifar10", 10_000, loss_kind="cross_entropy"),
    init_scale=1.0,
    weight_decay=0.0,
    target=None,
    measure_every=1,
    epochs=60,
    phases=2,
)
RECIPES["digits-relabelled"] = dataclasses.replace(
    RECIPES["cifar10-relabelled"],
    task=Images("digits", 1_000, loss_kind="cross_entropy"),
    batch_size=100,
)
