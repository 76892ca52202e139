"""The methods under test; a new one belongs into one of these lists."""

from egd_optax import polar

EXACT = [polar.SVD(), polar.Halley(), polar.Auto()]
POLYNOMIAL = [polar.NewtonSchulz()]
SKETCHES = [polar.Randomized(8, residual="keep"), polar.SubspaceIteration(8)]
METHODS = [*EXACT, *POLYNOMIAL, *SKETCHES]
