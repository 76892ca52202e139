"""Naive float64 NumPy: what the package is measured against."""

import numpy as np


def polar64(matrix, rtol=1e-5):
    """U V^H over the singular values above rtol * sigma_1, straight from the definition."""
    u, s, vh = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    keep = s > rtol * s.max(initial=0)
    return u[:, keep] @ vh[keep]


def gain_matrix(matrix, factor):
    """U^T P V and the relative singular values, with U, s, V of `matrix` in float64."""
    u, s, vh = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    return u.T @ np.asarray(factor, np.float64) @ vh.T, s / s.max()


def composed(rows, x):
    """The composed polynomial at `x`: gain times x of exact arithmetic."""
    for a, b, c in rows:
        x = a * x + b * x**3 + c * x**5
    return x


def relative_error(actual, expected):
    return np.linalg.norm(np.asarray(actual, np.float64) - expected) / np.linalg.norm(expected)
