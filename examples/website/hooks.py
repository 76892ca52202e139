"""MkDocs hooks: pages that live outside docs/, notebooks as ordinary pages, API coverage."""

import logging
import posixpath
import re
from pathlib import Path
from urllib.parse import urlsplit

from api_coverage import problems, with_fields
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from notebook_page import as_page

EXAMPLES = Path(__file__).parents[1]
ROOT = EXAMPLES.parent
FROM_ROOT = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}
# A child of the mkdocs logger, so that a warning fails a strict build.
log = logging.getLogger("mkdocs.hooks")


@event_priority(100)  # before mkdocs-jupyter, which takes over notebooks and scripts
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the tutorials and two pages from the repository's root."""
    folder = EXAMPLES / "tutorials"
    for path in sorted([*folder.glob("*.py"), *folder.glob("*.ipynb")]):
        uri = path.relative_to(EXAMPLES).as_posix()
        files.append(File(uri, str(EXAMPLES), config.site_dir, config.use_directory_urls))
    for page, name in FROM_ROOT.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / name)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Turn links within the repository into the site's, mark sessions as such, name fields."""
    if page.file.src_uri in FROM_ROOT:
        markdown = markdown.replace("](docs/", "](")
    up = page.file.src_uri.count("/") * "../"
    markdown = markdown.replace(f"](../{up}examples/tutorials/", f"]({up}tutorials/")
    return with_fields(markdown.replace("```python\n>>>", "```pycon\n>>>"))


def on_page_content(html: str, page: Page, files: Files, **_: object) -> str:
    """Give an executed notebook the markup of an ordinary page; let figures open by a click."""
    here = page.file.src_uri
    if not here.startswith("tutorials/"):
        return re.sub(
            r'<img [^>]*src="([^"]+)"[^>]*>', r'<a class="figure" href="\1">\g<0></a>', html
        )

    def warn(problem: str) -> None:
        log.warning("%s: %s", here, problem)

    def link(target: str) -> str:
        """Return the address of a page, which MkDocs does for Markdown files alone."""
        parts = urlsplit(target)
        if parts.scheme or not parts.path:
            return target
        file = files.get_file_from_path(posixpath.normpath(posixpath.join("tutorials", parts.path)))
        if file is None:
            warn(f"the link {target!r} leads nowhere")
            return target
        return file.url_relative_to(page.file) + (f"#{parts.fragment}" if parts.fragment else "")

    name = posixpath.basename(here)
    source = (
        f'<p class="source">This page is the output of <a href="{name}" download>{name}</a>.</p>'
    )
    return as_page(html, link, warn) + source


def on_post_build(**_: object) -> None:
    """Warn of public names and sections of docstrings that are missing."""
    for problem in problems():
        log.warning(problem)
