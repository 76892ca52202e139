"""From a Config to an Optax transformation: three small tables and the chain of what they name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

import egd_optax
from egd_optax.polar import PolarMethod
from grokking.column_norm import normalize_columns
from grokking.config import Config
from grokking.grokfast import grokfast_ema, grokfast_ma

MATRICES = {
    "first": r"^hidden/kernel$",
    "all": r"/kernel$",
    "feed_forward": r"/mlp/(expand|contract)/kernel$",
}

METHODS: dict[str, Callable[[Config], PolarMethod | Callable]] = {
    "auto": lambda config: egd_optax.polar.Auto(),
    "svd": lambda config: spectral(config.power, config.floor),
    "gram": lambda config: egd_optax.polar.Halley(),
    "newton_schulz": lambda config: egd_optax.polar.NewtonSchulz(),
    "randomized": lambda config: egd_optax.polar.Randomized(config.rank or 0),
    "streaming": lambda config: egd_optax.polar.SubspaceIteration(config.rank or 0),
}

GRADIENTS: dict[str, Callable[[Config], optax.GradientTransformation]] = {
    "raw": lambda config: optax.identity(),
    "egd": lambda config: _whitening(config),
    "column_norm": lambda config: normalize_columns(),
    # Whitened, a matrix of rank r has the Frobenius norm sqrt(r): the same length, no equal speeds.
    "norm": lambda config: optax.normalize_by_update_norm(
        min(config.task.in_features, config.width) ** 0.5
    ),
    "grokfast_ema": lambda config: grokfast_ema(),
    "grokfast_ma": lambda config: grokfast_ma(),
}

OPTIMIZERS: dict[str, Callable[[Config], optax.GradientTransformation]] = {
    "sgd": lambda config: optax.identity(),
    "adam": lambda config: optax.scale_by_adam(b2=config.b2),
    "radam": lambda config: optax.scale_by_radam(b2=config.b2),
    "rmsprop": lambda config: optax.scale_by_rms(decay=0.99),
    "muon": lambda config: optax.chain(optax.contrib.muon(1.0), optax.scale(-1.0)),
}


def build_optimizer(config: Config) -> optax.GradientTransformationExtraArgs:
    """Build the transformation; its update takes the last measured test accuracy as `metric=`."""
    decay = {config.decay: optax.add_decayed_weights(config.weight_decay)}
    nothing = optax.identity()
    return optax.with_extra_args_support(
        optax.chain(
            decay.get("coupled", nothing),
            _change(config),
            decay.get("between", nothing),
            OPTIMIZERS[config.optimizer](config),
            decay.get("decoupled", nothing),
            optax.scale_by_learning_rate(_schedule(config)),
        )
    )


def spectral(power: float, floor: float | None) -> PolarMethod | Callable[[jax.Array], jax.Array]:
    """Return the SVD method; with a power q U S^q V^T, with a floor U S / max(S, floor) V^T."""
    if power == 0 and floor is None:
        return egd_optax.polar.SVD()

    def method(matrix: jax.Array) -> jax.Array:
        u, s, vh = jnp.linalg.svd(matrix, full_matrices=False)
        known = s > 1e-5 * s[0]
        powers = jnp.where(known, jnp.where(known, s, 1) ** power, 0)
        gains = powers if floor is None else s / jnp.maximum(s, floor)
        return (u * gains[None, :]) @ vh

    return method


def _whitening(config: Config) -> optax.GradientTransformation:
    """Whiten, from the moving average, the blend and the every-k that the run asks for."""
    whitening = egd_optax.scale_by_egd(METHODS[config.method](config))
    if config.momentum:
        whitening = optax.chain(optax.ema(config.momentum, debias=False), whitening)
    if config.every > 1:
        whitening = optax.conditionally_transform(whitening, lambda step: step % config.every == 0)
    if config.blend_steps:
        ramp = optax.linear_schedule(0.0, 1.0, config.blend_steps)
        whitening = egd_optax.blend_in(whitening, ramp)
    return whitening


def _change(config: Config) -> optax.GradientTransformation:
    """Change the gradient, until the switch-off if there is one."""
    change = GRADIENTS[config.gradient](config)
    if config.gradient in ("egd", "column_norm", "norm"):
        change = optax.masked(change, egd_optax.matching(MATRICES[config.matrices]))
    if config.switch_off is None or config.gradient == "raw":
        return change
    return egd_optax.switch_off(
        change, optax.identity(), threshold=config.switch_off, latch=config.latch
    )


def _schedule(config: Config) -> optax.ScalarOrSchedule:
    if not config.warmup_steps:
        return config.learning_rate
    first = config.learning_rate / config.warmup_steps
    return optax.linear_schedule(first, config.learning_rate, config.warmup_steps - 1)
