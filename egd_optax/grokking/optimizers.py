"""From a Config to an Optax transformation: three small tables."""

from collections.abc import Callable

import optax

import egd_optax
from egd_optax.grokking.config import Config
from egd_optax.polar import PolarMethod

MATRICES = {"first": r"^hidden/kernel$", "all": r"/kernel$"}

METHODS: dict[str, Callable[[Config], PolarMethod]] = {
    "auto": lambda config: egd_optax.polar.Auto(),
    "svd": lambda config: egd_optax.polar.SVD(),
    "gram": lambda config: egd_optax.polar.Gram(),
    "newton_schulz": lambda config: egd_optax.polar.NewtonSchulz(),
    "randomized": lambda config: egd_optax.polar.Randomized(config.rank or 0),
}

DIRECTIONS = {
    "egd": lambda config: egd_optax.scale_by_egd(METHODS[config.method](config)),
    "column_norm": lambda config: egd_optax.normalize_columns(),
    "sgd": lambda config: optax.identity(),
}


def build_optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    """Build the transformation; its update takes the last epoch's test accuracy as `metric=`."""
    decay = optax.add_decayed_weights(config.weight_decay)
    first_two = {"coupled": (decay, _direction(config)), "decoupled": (_direction(config), decay)}[
        config.decay
    ]
    return optax.with_extra_args_support(optax.chain(*first_two, optax.sgd(config.learning_rate)))


def _direction(config: Config) -> optax.GradientTransformation:
    """Change the gradients of the chosen matrices, until the switch-off if there is one."""
    chosen = egd_optax.matching(MATRICES[config.matrices])
    direction = optax.masked(DIRECTIONS[config.optimizer](config), chosen)
    if config.switch_off is None or config.optimizer == "sgd":
        return direction
    return egd_optax.switch_off(
        direction, optax.identity(), threshold=config.switch_off, latch=False
    )
