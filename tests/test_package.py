"""The order of imports, what importing needs, and one version everywhere."""

import ast
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

import egd_optax

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = pathlib.Path(egd_optax.__file__).parent
# Each layer may import itself and the ones before it; a name stands for itself and all below it.
LAYERS = [
    ("_checks",),
    ("polar",),
    ("_selection",),
    ("_matrix_view",),
    ("_decisions",),
    ("_axes",),
    ("_layers", "_program", "_siblings"),
    ("_infer_axes", "_scaling"),
    ("_mesh",),
    ("_exchange",),
    ("_spread",),
    ("_buckets",),
    ("diagnostics", "_transform"),
    ("_wrappers", "_alias", "_from_muon"),
    ("models",),
]
NEEDED = {"egd_optax", "jax", "numpy", "optax", *sys.stdlib_module_names}


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


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_run_one_way(file):
    own = file.relative_to(PACKAGE).with_suffix("").parts[0]
    for module in imported_modules(file):
        root, _, rest = module.partition(".")
        assert root in NEEDED or (own, root) == ("models", "flax"), f"{own} imports {module}"
        if own != "__init__" and root == "egd_optax" and rest:
            assert layer(rest.split(".")[0]) <= layer(own), f"{own} imports {module}"


def python(code):
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_importing_loads_nothing_beside_optax():
    """And so costs no more than Optax: seconds would depend on the machine."""
    start = "import sys, optax; before = {*sys.modules}; import egd_optax; "
    loaded = python(start + "print(*{*sys.modules} - before)").split()
    assert {name.partition(".")[0] for name in loaded} <= NEEDED


def test_the_library_needs_no_extra():
    """Blocked, not only unused: it must work where they are not installed."""
    python(
        "import sys\n"
        "for name in ('flax', 'equinox', 'matplotlib', 'tyro', 'rich', 'tqdm', 'sklearn'):\n"
        "    sys.modules[name] = None\n"
        "import egd_optax, jax.numpy as jnp\n"
        "optimizer = egd_optax.egd(0.1)\n"
        "assert not egd_optax.diagnostics.check_whitening(optimizer, [jnp.ones((2, 3))]).failed\n"
    )


def test_the_models_name_the_extra_that_they_need(monkeypatch):
    monkeypatch.setitem(sys.modules, "flax", None)
    monkeypatch.delitem(sys.modules, "egd_optax.models", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'egd-optax\[models\]'$"):
        importlib.import_module("egd_optax.models")


def test_modules_and_functions_keep_their_size():
    for file in FILES:
        text = file.read_text()
        assert len(text.splitlines()) <= 300, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                docstring = len((ast.get_docstring(node) or "").splitlines())
                assert node.end_lineno - node.lineno - docstring <= 60, f"{file}: {node.name}"


def test_citation_and_changelog_have_the_packages_version():
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    latest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert cited[1] == latest[1] == egd_optax.__version__
