"""What measurements depend on beside their settings."""

import contextlib
import datetime
import importlib.metadata
import os
import platform
from typing import Any

import jax
import scipy.linalg  # noqa: F401 (its BLAS has to be loaded to be limited)
from threadpoolctl import threadpool_limits

import egd_optax

PACKAGES = ("jax", "jaxlib", "optax", "flax", "numpy")


def environment() -> dict[str, Any]:
    """Return what a measurement depends on beside its settings: versions, hardware, start."""
    device = jax.devices()[0]
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {
        "versions": {
            "python": platform.python_version(),
            "egd_optax": egd_optax.__version__,
            **versions,
        },
        "hardware": {
            "platform": device.platform,
            "device_kind": device.device_kind,
            "devices": jax.device_count(),
            "cpu_count": os.cpu_count(),
            "cpus_used": _usable_cpus(),
            "machine": platform.machine(),
        },
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def one_blas_thread() -> contextlib.AbstractContextManager:
    """Return a context in which BLAS has one thread, as OPENBLAS_NUM_THREADS=1 would do.

    Its idle threads spin for tens of milliseconds and take the cores from XLA's: on a small machine
    an epoch with a decomposition in it gets several times slower, at random.
    """
    return threadpool_limits(limits=1, user_api="blas")


def _usable_cpus() -> int | None:
    """Return the number of CPUs that this process may run on; not every system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
