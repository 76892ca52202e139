"""The network that a run's task brings with it."""

from flax import nnx

from egd_optax.models import MLP, DecoderTransformer, TwoLayerMLP
from grokking.config import Config
from grokking.images import Images
from grokking.tasks import ModularArithmetic


def build_network(config: Config, rngs: nnx.Rngs) -> nnx.Module:
    """Return the network of the run's task and width, newly initialised from `rngs`."""
    task, width = config.task, config.width
    if isinstance(task, Images):
        return MLP(task.in_features, (width, width), task.out_features, rngs=rngs)
    if isinstance(task, ModularArithmetic) and task.encoding == "tokens":
        return DecoderTransformer(task.vocabulary, task.length, width=width, rngs=rngs)
    return TwoLayerMLP(
        task.in_features, width, task.out_features, bias_scale=task.bias_scale, rngs=rngs
    )
