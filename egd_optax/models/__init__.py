"""Flax reference models of the experiments; the core package never imports them."""

from egd_optax._extras import missing_extra

if problem := missing_extra("egd_optax.models", needed=("flax",)):
    raise ModuleNotFoundError(problem)

from egd_optax.models.mlp import MLP as MLP
from egd_optax.models.mlp import TwoLayerMLP as TwoLayerMLP
from egd_optax.models.transformer import DecoderTransformer as DecoderTransformer
