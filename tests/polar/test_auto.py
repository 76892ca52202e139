"""The default picks an SVD for small matrices on CPU."""

import matrices
import numpy as np
import pytest
from methods import factor

from egd_optax import polar


@pytest.mark.parametrize(
    ("shape", "picked"),
    [
        ((1, 1000), "SVD"),
        ((32, 32), "SVD"),
        ((64, 16), "SVD"),
        ((24, 48), "Halley"),
        ((33, 33), "Halley"),
    ],
)
def test_auto_on_cpu_takes_the_svd_up_to_1024_entries(shape, picked):
    matrix = matrices.with_spectrum(shape, np.logspace(0, -2, min(shape)))
    expected = factor(matrix, {"SVD": polar.SVD(), "Halley": polar.Halley()}[picked])
    np.testing.assert_array_equal(factor(matrix, polar.Auto()), expected)
