"""Pages and their tables, in Markdown."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tabulate import tabulate


def templates(folder: Path) -> Environment:
    """Return the templates of a folder; a name that a page lacks is an error."""
    return Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )


def markdown(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table; numbers that are text keep their digits."""
    return tabulate(list(rows), headings, tablefmt="github", disable_numparse=True)
