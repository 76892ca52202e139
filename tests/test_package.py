"""The order of imports, what importing costs and needs, and one version everywhere."""

import ast
import importlib
import os
import pathlib
import re
import subprocess
import sys

import pytest

import egd_optax
from egd_optax import _extras

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = pathlib.Path(egd_optax.__file__).parent
# Each layer may import the ones before it and nothing after; a name stands for itself and below.
LAYERS = [
    ("polar", "_extras"),
    ("_matrix_view", "_selection"),
    ("_buckets", "_infer_axes", "_scaling", "diagnostics"),
    ("_transform",),
    ("_wrappers", "_controls", "_grokfast", "_alias"),
    ("models",),
    ("grokking",),
]
ONLY_EXPERIMENTS = set(_extras.EXPERIMENTS)


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


@pytest.mark.parametrize(
    ("package", "absent"),
    [("models", {"flax"}), ("grokking", {"tyro"}), ("grokking", ONLY_EXPERIMENTS)],
)
def test_an_absent_extra_is_named_with_the_remedy(monkeypatch, package, absent):
    for name in absent:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"egd_optax.{package}", raising=False)
    with pytest.raises(ModuleNotFoundError) as refusal:
        importlib.import_module(f"egd_optax.{package}")
    assert all(name in str(refusal.value) for name in absent)
    assert str(refusal.value).endswith("install it: pip install 'egd-optax[experiments]'")


def test_models_need_flax_alone(monkeypatch):
    for name in ONLY_EXPERIMENTS - {"flax", "rich"}:  # Flax needs rich itself
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "egd_optax.models", raising=False)
    importlib.import_module("egd_optax.models")


def test_import_takes_no_more_than_1_3_times_that_of_optax():
    def seconds(module):
        """Of processor time: other tests may run at the same time."""
        before = os.times()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True)
        after = os.times()
        return sum(after[2:4]) - sum(before[2:4])

    pairs = [(seconds("optax"), seconds("egd_optax")) for _ in range(3)]
    optax, own = (min(column) for column in zip(*pairs, strict=True))
    assert own <= 1.3 * optax


def test_citation_and_changelog_have_the_packages_version():
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert cited[1] == latest[1] == egd_optax.__version__
