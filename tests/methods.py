"""The methods under test; a new one belongs into one of these lists."""

from egd_optax import polar

EXACT = [polar.SVD(), polar.Gram(), polar.Auto()]
POLYNOMIAL = [polar.NewtonSchulz()]
SKETCHES = [polar.Randomized(8, tail="keep"), polar.Streaming(8)]
METHODS = [*EXACT, *POLYNOMIAL, *SKETCHES]
