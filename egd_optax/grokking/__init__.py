"""The paper's grokking experiments: tasks, recipes, training, logs, figures."""

from egd_optax._extras import missing_extra

if problem := missing_extra("egd_optax.grokking"):
    raise ModuleNotFoundError(problem)

from egd_optax.grokking.config import Config as Config
from egd_optax.grokking.images import Images as Images
from egd_optax.grokking.recipes import RECIPES as RECIPES
from egd_optax.grokking.record import Log as Log
from egd_optax.grokking.record import RunLog as RunLog
from egd_optax.grokking.record import read_log as read_log
from egd_optax.grokking.tasks import ModularArithmetic as ModularArithmetic
from egd_optax.grokking.tasks import SparseParity as SparseParity
from egd_optax.grokking.train import Result as Result
from egd_optax.grokking.train import TrainingDiverged as TrainingDiverged
from egd_optax.grokking.train import train as train
