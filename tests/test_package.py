"""The order of imports, and what importing costs."""

import ast
import pathlib
import subprocess
import sys
import time

import pytest

import egd_optax

PACKAGE = pathlib.Path(egd_optax.__file__).parent
# Each layer may import the ones before it and nothing after; a name stands for itself and below.
LAYERS = [
    ("polar",),
    ("_matrix_view", "_selection"),
    ("_buckets", "_rules", "_scaling", "diagnostics"),
    ("_transform",),
    ("_wrappers", "_controls", "_grokfast", "_alias"),
    ("models",),
    ("grokking",),
]
ONLY_EXPERIMENTS = {"flax", "matplotlib", "tyro", "rich", "sklearn", "threadpoolctl", "tqdm"}


def imported_modules(file):
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def layer(module):
    ranks = [rank for rank, names in enumerate(LAYERS) if module in names]
    assert ranks, f"{module} has no place in the order of imports"
    return ranks[0]


@pytest.mark.parametrize(
    "file", sorted(PACKAGE.rglob("*.py")), ids=lambda f: str(f.relative_to(PACKAGE))
)
def test_imports_run_one_way(file):
    own = file.relative_to(PACKAGE).with_suffix("").parts[0]
    if own == "__init__":
        return
    for module in imported_modules(file):
        root, _, rest = module.partition(".")
        if root == "egd_optax" and rest and rest.split(".")[0] != "__version__":
            assert layer(rest.split(".")[0]) <= layer(own), f"{own} imports {module}"
        assert root not in ONLY_EXPERIMENTS or own in ("models", "grokking"), module


def test_core_needs_no_experiment_package():
    """Blocked, not only unused: the import must succeed where they are not installed."""
    code = (
        "import sys\n"
        f"for name in {sorted(ONLY_EXPERIMENTS)}: sys.modules[name] = None\n"
        "import egd_optax, jax.numpy as jnp\n"
        "egd_optax.polar.polar_factor(jnp.ones((2, 3)))\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_import_takes_no_more_than_1_3_times_that_of_optax():
    def seconds(module):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        return time.perf_counter() - start

    pairs = [(seconds("optax"), seconds("egd_optax")) for _ in range(3)]
    optax, own = (min(column) for column in zip(*pairs, strict=True))
    assert own <= 1.3 * optax
