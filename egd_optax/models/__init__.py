"""Flax reference models of the experiments; the core package never imports them."""

import importlib.util

if importlib.util.find_spec("flax") is None:
    raise ModuleNotFoundError("egd_optax.models needs Flax: pip install 'egd-optax[models]'")

from egd_optax.models.mlp import TwoLayerMLP as TwoLayerMLP
from egd_optax.models.transformer import DecoderTransformer as DecoderTransformer
