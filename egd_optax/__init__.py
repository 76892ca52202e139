"""Egalitarian gradient descent for Optax: every direction of a matrix learns at the same speed."""

from egd_optax import diagnostics as diagnostics
from egd_optax import polar as polar
from egd_optax._alias import egd as egd
from egd_optax._decisions import InferredAxes as InferredAxes
from egd_optax._decisions import LeafAxes as LeafAxes
from egd_optax._from_muon import from_muon as from_muon
from egd_optax._infer_axes import infer_axes as infer_axes
from egd_optax._matrix_view import MatrixAxes as MatrixAxes
from egd_optax._selection import matching as matching
from egd_optax._transform import ScaleByEGDState as ScaleByEGDState
from egd_optax._transform import scale_by_egd as scale_by_egd
from egd_optax._wrappers import SwitchOffState as SwitchOffState
from egd_optax._wrappers import switch_off as switch_off

__version__ = "0.1.0"
