"""MkDocs hooks: pages that live outside docs/, tutorials that are run, API coverage."""

import functools
import logging
import os
import re
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from api_coverage import problems, with_fields
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from tutorials import as_page, read

ROOT = Path(__file__).parents[2]
TUTORIALS = ROOT / "examples" / "tutorials"
FROM_ROOT = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
# TUTORIALS=false leaves their outputs out, for a quick look at the rest.
EXECUTE = os.environ.get("TUTORIALS", "true") != "false"
# A child of the mkdocs logger, so that a warning fails a strict build.
log = logging.getLogger("mkdocs.hooks")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the tutorials, run, two pages from the repository's root, and the logs' figures."""
    paths = sorted([*TUTORIALS.glob("*.py"), *TUTORIALS.glob("*.ipynb")])
    log.info("Running %d tutorials", len(paths))
    with ThreadPoolExecutor(2) as pool:  # each has a process of its own
        notebooks = list(pool.map(lambda path: read(path, EXECUTE), paths))
    for path, notebook in zip(paths, notebooks, strict=True):
        warn = functools.partial(log.warning, "%s: %s", path.name)
        text, figures = as_page(notebook, path, warn)
        for name, content in {f"{path.stem}.md": text, **figures}.items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
        files.append(File.generated(config, f"tutorials/{path.name}", abs_src_path=str(path)))
    for page, name in FROM_ROOT.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    for name, content in _drawn().items():
        if old := files.get_file_from_path(name):  # `make pages` leaves it there
            files.remove(old)
        files.append(File.generated(config, name, content=content))
    return files


def _drawn() -> dict[str, bytes]:
    """Return the figures of the experiments' pages by path, drawn from their logs."""
    sys.path.insert(0, str(ROOT / "examples"))
    from arena import pages as arena
    from grokking import pages as grokking

    with tempfile.TemporaryDirectory() as folder:
        docs = Path(folder)
        grokking.render(docs)
        arena.render(docs, ROOT / "examples" / "arena" / "logs")
        found = [*docs.glob("grokking/*.png"), *docs.glob("arena/*.png")]
        return {str(path.relative_to(docs)): path.read_bytes() for path in found}


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn links within the repository into the site's, mark sessions as such, name fields."""
    if page.file.src_uri in FROM_ROOT:
        markdown = markdown.replace("](docs/", "](")
    up = page.file.src_uri.count("/") * "../"
    markdown = re.sub(
        rf"\]\(\.\./{up}examples/tutorials/(\w+)\.(py|ipynb)", rf"]({up}tutorials/\1.md", markdown
    )
    return with_fields(markdown.replace("```python\n>>>", "```pycon\n>>>"))


def on_page_content(html: str, **_: object) -> str:
    """Let figures open by a click."""
    return re.sub(r'<img [^>]*src="([^"]+)"[^>]*>', r'<a class="figure" href="\1">\g<0></a>', html)


def on_post_build(**_: object) -> None:
    """Warn of public names and sections of docstrings that are missing."""
    for problem in problems():
        log.warning(problem)
