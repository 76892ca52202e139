"""A tutorial as a page: run as a notebook, written as Markdown with its output and figures."""

import base64
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jupytext
from nbclient import NotebookClient
from nbformat import NotebookNode

ALT = re.compile(r"^# alt: (.+(?:\n# .+)*)\n", re.M)


def read(path: Path, execute: bool) -> NotebookNode:
    """Return a script's or a notebook's cells, with their outputs if it is run.

    Raises:
        CellExecutionError: a cell raised.
    """
    notebook = jupytext.read(path)
    if execute:
        with tempfile.TemporaryDirectory() as folder:
            resources = {"metadata": {"path": folder}}
            NotebookClient(notebook, kernel_name="python3", resources=resources).execute()
    return notebook


def as_page(
    notebook: NotebookNode, path: Path, warn: Callable[[str], None]
) -> tuple[str, dict[str, bytes]]:
    """Return the Markdown of a notebook, and the figures that it shows by file name."""
    figures: dict[str, bytes] = {}
    parts = [part for cell in notebook.cells for part in _cell(cell, path.stem, figures, warn)]
    page = "\n\n".join(part for part in parts if part.strip())
    source = path.name
    page = re.sub(r"\]\((\w+)\.(py|ipynb)([#)])", r"](\1.md\3", page)
    return f"{page}\n\nThis page is the output of [{source}]({source}).\n{{ .source }}\n", figures


def _cell(
    cell: NotebookNode, name: str, figures: dict[str, bytes], warn: Callable[[str], None]
) -> Iterator[str]:
    """Yield the parts of a cell: text, or code and what it gave."""
    if cell.cell_type == "markdown":
        yield cell.source
        return
    described = ALT.search(cell.source)
    yield _fenced("python", ALT.sub("", cell.source).strip())
    for output in cell.outputs:
        data = output.get("data", {})
        if output.get("name") == "stderr":
            warn(f"a cell wrote to stderr: {output.text.strip()[:200]}")
        elif "image/png" in data:
            file = f"{name}-{len(figures) + 1}.png"
            figures[file] = base64.b64decode(data["image/png"])
            if not described:
                warn(f"{file} needs a description, a comment `# alt: ...`: {cell.source[:80]!r}")
            yield f"![{described[1].replace(chr(10) + '# ', ' ') if described else ''}]({file})"
        else:
            yield _fenced("{ .text .output }", (output.get("text") or data["text/plain"]).rstrip())


def _fenced(kind: str, text: str) -> str:
    return f"```` {kind}\n{text}\n````" if text else ""
