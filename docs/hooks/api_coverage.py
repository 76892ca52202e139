"""What the API pages leave out: public names without an entry, docstrings without a section."""

import ast
import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

DOCS = Path(__file__).parents[1]
MODULES = (
    "egd_optax",
    "egd_optax.polar",
    "egd_optax.diagnostics",
    "egd_optax.models",
)


def problems(docs: Path = DOCS, modules: Iterable[str] = MODULES) -> list[str]:
    """Return a line for each public name or part of a docstring that is missing."""
    entries = documented(docs)
    names = [(module, name) for module in modules for name in public_names(module)]
    missing = [
        f"{module}.{name} is public and has no entry in the API pages: add ::: {module}.{name}"
        for module, name in names
        if entries.isdisjoint({f"{module}.{name}", _origin(module, name)})
    ]
    gaps = [
        f"the docstring of {module}.{name} lacks {gap}"
        for module, name in names
        for gap in docstring_gaps(getattr(importlib.import_module(module), name))
    ]
    return missing + gaps


def documented(docs: Path = DOCS) -> set[str]:
    """Return the names after `:::` in the pages."""
    pages = docs.rglob("*.md")
    return {name for page in pages for name in re.findall(r"^::: (\S+)", page.read_text(), re.M)}


def public_names(module: str) -> list[str]:
    """Return what a module re-exports with `X as X`, defines without `_`, or has in `__all__`."""
    imported = importlib.import_module(module)
    names: list[str] = list(getattr(imported, "__all__", ()))
    for node in ast.parse(inspect.getsource(imported)).body:
        if isinstance(node, ast.ImportFrom):
            names += [alias.name for alias in node.names if alias.name == alias.asname]
        elif isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            names.append(node.name)
    return [name for name in names if not isinstance(getattr(imported, name), ModuleType)]


def _origin(module: str, name: str) -> str:
    """Return the path of the definition; a function may be hidden by a module of its name."""
    thing = getattr(importlib.import_module(module), name)
    return f"{getattr(thing, '__module__', module)}.{name}"


def with_fields(markdown: str) -> str:
    """Name the fields of tuples and results below their entries: they have no signature there."""

    def name_them(entry: re.Match) -> str:
        module, _, name = entry[1].rpartition(".")
        thing = getattr(importlib.import_module(module), name, None)
        if not inspect.isclass(thing) or _built_by_users(thing):
            return entry[0]
        names = getattr(thing, "_fields", [f.name for f in _dataclass_fields(thing)])
        listed = ", ".join(f"`{field}`" for field in names)
        return f"{entry[0]}\n\nFields: {listed}.\n" if names else entry[0]

    return re.sub(r"^::: (\S+)$", name_them, markdown, flags=re.M)


def _dataclass_fields(cls: type) -> tuple[dataclasses.Field, ...]:
    return dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()


def docstring_gaps(thing: Any) -> Iterator[str]:
    """Yield what the docstring of a public function or class lacks, as far as it can be told.

    Classes owe `Args` and `Raises` where users build them: those with a constructor or a check of
    their own. Tuples and results that the package hands out say in prose what they hold.
    """
    if not callable(thing):
        return
    text = inspect.getdoc(thing) or ""
    sections = re.findall(r"^(\w+):$", text, re.M)
    if not text:
        yield "everything"
    elif inspect.isclass(thing) and not _built_by_users(thing):
        return
    source = inspect.getsource(thing)
    for argument in _arguments(thing):
        if not re.search(rf"^    \*{{0,2}}{argument}: \S", text, re.M):
            yield f"the argument {argument}"
    returns = inspect.isfunction(thing) and "return" in thing.__annotations__
    if returns and thing.__annotations__["return"] is not None and "Returns" not in sections:
        yield "Returns"
    if (
        re.search(r"^\s+(raise |.*(?<![.\w])check_\w+\()", source, re.M)
        and "Raises" not in sections
    ):
        yield "Raises"


def _built_by_users(cls: type) -> bool:
    """Return whether a class has a constructor, or a check of what it is built from."""
    if dataclasses.is_dataclass(cls) or getattr(cls, "_is_protocol", False):
        return hasattr(cls, "__post_init__")
    return inspect.isfunction(vars(cls).get("__init__"))


def _arguments(thing: Any) -> list[str]:
    """Return the names of the arguments of a function or constructor."""
    call = thing.__init__ if inspect.isclass(thing) else thing
    return [name for name in inspect.signature(call).parameters if name != "self"]
