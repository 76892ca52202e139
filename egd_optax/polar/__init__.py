"""Polar factors of matrices: arrays in, arrays out; knows no tree and no Optax."""

from egd_optax.polar._auto import Auto as Auto
from egd_optax.polar._coefficients import polar_express_coefficients as polar_express_coefficients
from egd_optax.polar._halley import Halley as Halley
from egd_optax.polar._method import PolarMethod as PolarMethod
from egd_optax.polar._newton_schulz import NewtonSchulz as NewtonSchulz
from egd_optax.polar._sketch import Randomized as Randomized
from egd_optax.polar._sketch import SubspaceIteration as SubspaceIteration
from egd_optax.polar._stacks import polar_factor as polar_factor
from egd_optax.polar._svd import SVD as SVD
