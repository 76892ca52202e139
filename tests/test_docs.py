"""The site: entries for public names, descriptions of figures, a place for each page."""

import importlib
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
sys.path.insert(0, str(ROOT / "examples" / "website"))
api_coverage = importlib.import_module("api_coverage")  # what the site's hook calls, too


def test_nothing_public_is_missing():
    assert api_coverage.problems() == []


def test_a_missing_entry_is_found(tmp_path):
    for page in PAGES:
        text = page.read_text().replace("::: egd_optax.polar.Gram\n", "")
        (tmp_path / page.name).write_text(text)
    (problem,) = api_coverage.problems(docs=tmp_path, modules=["egd_optax.polar"])
    assert "egd_optax.polar.Gram is public and has no entry" in problem


def without_sections(matrix: int, *rest: int) -> int:
    """Return the matrix."""
    if rest:
        raise ValueError("no rest")
    return matrix


def test_missing_sections_of_a_docstring_are_found():
    gaps = set(api_coverage.docstring_gaps(without_sections))
    assert gaps == {"the argument matrix", "the argument rest", "Returns", "Raises"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_figures_are_described(page):
    for description, target in re.findall(r"!\[([^\]]*)\]\(([^)]*)\)", page.read_text()):
        assert len(description.split()) >= 5, f"{target} needs a description, has {description!r}"
        assert (page.parent / target).is_file(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_page_has_a_place_in_the_menu(page):
    assert re.search(rf"\b{page.relative_to(DOCS)}$", (ROOT / "mkdocs.yml").read_text(), re.M)


def test_the_site_asks_no_other_host():
    """Readers offline, and readers who do not want to be counted, get the whole site."""
    settings = [
        ROOT / "mkdocs.yml",
        *(ROOT / "examples" / "website").glob("*.py"),
        *(DOCS / "assets").glob("*"),
    ]
    assert not [path.name for path in settings if re.search(r"https?://", path.read_text())]
