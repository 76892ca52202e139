"""The site: entries for public names, descriptions of figures, a place for each page."""

import contextlib
import functools
import importlib
import inspect
import io
import pathlib
import re
import shlex
import sys

import jax
import programs
import pytest
import tyro

import egd_optax

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
sys.path.insert(0, str(ROOT / "docs" / "hooks"))
api_coverage = importlib.import_module("api_coverage")  # what the site's hook calls, too


def test_nothing_public_is_missing():
    assert api_coverage.problems() == []


def test_a_missing_entry_is_found(tmp_path):
    for page in PAGES:
        text = page.read_text().replace("::: egd_optax.polar.Halley\n", "")
        (tmp_path / page.name).write_text(text)
    (problem,) = api_coverage.problems(docs=tmp_path, modules=["egd_optax.polar"])
    assert "egd_optax.polar.Halley is public and has no entry" in problem


def without_sections(matrix: int, *rest: int) -> int:
    """Return the matrix."""
    if rest:
        raise ValueError("no rest")
    return matrix


def test_missing_sections_of_a_docstring_are_found():
    gaps = set(api_coverage.docstring_gaps(without_sections))
    assert gaps == {"the argument matrix", "the argument rest", "Returns", "Raises"}


def test_the_table_of_arguments_is_that_of_egd():
    text = (DOCS / "api" / "transformations.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (?:`(.*?)`)? ?\|", text, re.M)
    arguments = inspect.signature(egd_optax.egd).parameters.values()
    defaults = {
        one.name: "" if one.default is one.empty else repr(one.default).replace("'", '"')
        for one in arguments
    }
    assert dict(rows) == defaults
    (listed,) = re.findall(r"`scale_by_egd` takes (.*?)\. It", text, re.DOTALL)
    named = re.findall(r"`(\w+)`", listed)
    assert named == list(inspect.signature(egd_optax.scale_by_egd).parameters)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_figures_are_described(page):
    for description, target in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", page.read_text()):
        assert len(description.split()) >= 5, f"{target} needs a description, has {description!r}"
        drawn = page.parent.name in ("grokking", "arena")  # with the site, whose build is strict
        assert drawn or (page.parent / target).is_file(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_page_has_a_place_in_the_menu(page):
    assert re.search(rf"\b{page.relative_to(DOCS)}$", (ROOT / "mkdocs.yml").read_text(), re.M)


def test_the_site_asks_no_other_host():
    """Readers offline, and readers who do not want to be counted, get the whole site."""
    settings = [
        ROOT / "mkdocs.yml",
        *(ROOT / "docs" / "hooks").glob("*.py"),
        *(DOCS / "assets").glob("*"),
    ]
    assert not [path.name for path in settings if re.search(r"https?://", path.read_text())]


@functools.cache
def usage(script, *subcommand):
    """What a script, or one of a folder's subcommands, says of itself."""
    name, arguments = pathlib.Path(script).stem, [*subcommand, "--help"]
    if script.endswith(".py"):
        ask = functools.partial(tyro.cli, importlib.import_module(name).Config, args=arguments)
    else:
        ask = functools.partial(importlib.import_module(f"{name}.command_line").main, arguments)
    with contextlib.redirect_stdout(io.StringIO()) as said, pytest.raises(SystemExit) as ended:
        ask()
    assert ended.value.code == 0
    return said.getvalue()


def commands():
    """The commands in the console blocks of every page, the same one once."""
    blocks = [
        block
        for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
        for block in re.findall(r"```console\n(.*?)```", page.read_text(), re.S)
    ]
    return sorted(
        {tuple(shlex.split(line, comments=True)) for b in blocks for line in b.splitlines()}
    )


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_what_a_page_tells_to_type_exists(command):
    """CI runs make test, docs and smoke; the rest is only asked whether it is there."""
    program, *arguments = command
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.M)
    elif program == "python":
        options = [word for word in arguments if word.startswith("--")]
        start = arguments[:2] if arguments[1:] and arguments[1] not in options else arguments[:1]
        assert all(option in usage(*start) for option in options)
    else:
        assert command[:2] == ("pip", "install")
        extras = re.findall(r"\[(.*)\]", arguments[1])
        assert all(f"\n{extra} = [" in (ROOT / "pyproject.toml").read_text() for extra in extras)


sys.path.insert(0, str(pathlib.Path(__file__).parents[1] / "docs" / "hooks"))
models_page = importlib.import_module("models_page")


def test_the_page_of_models_is_made_by_its_script(strict):
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        page = models_page.page()
    kept = models_page.PAGE.read_text()
    if jax.__version_info__ < (0, 10):  # older versions name other lines of an expression
        page, kept = (re.sub(r"\.py:\d+", ".py", text) for text in (page, kept))
    assert page == kept, "run `make pages`"
    assert page.count("\nleaf ") == len(programs.PROGRAMS) == 12
