"""An executed notebook's HTML in the markup of an ordinary page, without its scripts and styles."""

import re
from collections.abc import Callable, Iterator

from bs4 import BeautifulSoup, NavigableString, Tag
from latex2mathml.converter import convert

LABELS = r"""(title|xlabel|ylabel|suptitle)(?:=|\()\s*f?["']([^"']+)["']"""
CELL = "div.jp-Cell"
STDERR = "application/vnd.jupyter.stderr"


def as_page(html: str, link: Callable[[str], str], warn: Callable[[str], None]) -> str:
    """Return the cells of mkdocs-jupyter's HTML; `link` maps the target of each relative link."""
    notebook = BeautifulSoup(html, "html.parser")
    cells = [cell for cell in notebook.select(CELL) if cell.find_parent(class_="jp-Cell") is None]
    body = "\n".join(part for cell in cells for part in _cell(cell, warn))
    page = BeautifulSoup(body, "html.parser")
    for anchor in page.select("a[href]"):
        anchor["href"] = link(anchor["href"])
    return str(page)


def _cell(cell: Tag, warn: Callable[[str], None]) -> Iterator[str]:
    """Yield the parts of a cell: text, or code and what it gave."""
    text = cell.select_one("div.jp-MarkdownOutput")
    if text is not None:
        yield _text(text)
        return
    code = cell.select_one("div.jp-InputArea pre")
    source = "" if code is None else code.get_text()
    if code is not None:
        yield _code(_inside(code).replace(_described(code), ""), "highlight")
    printed = ""
    for output in cell.select("div.jp-OutputArea-output"):
        text = output.select_one("pre")
        if output.get("data-mime-type") == STDERR:
            warn(f"a cell wrote to stderr: {output.get_text().strip()[:200]}")
        elif text is not None and "jp-RenderedText" in output["class"]:
            printed += _inside(text)  # in pieces, as the kernel sent them
        else:
            yield _code(printed, "highlight output")
            printed = ""
            yield _drawn(output, source, warn)
    yield _code(printed, "highlight output")


def _code(html: str, classes: str) -> str:
    """Return a block of code or of text, which Material gives a button to copy it."""
    return f'<div class="{classes}"><pre><code>{html.strip()}</code></pre></div>' if html else ""


def _described(code: Tag) -> str:
    """Return the HTML of the comment that describes a figure, with the end of its line."""
    found = re.search(r"<span[^>]*># alt: .*</span>\n(<span[^>]*># .*</span>\n)*", _inside(code))
    return found[0] if found else ""


def _text(text: Tag) -> str:
    """Return a Markdown cell with Material's links beside headings, and formulas as MathML."""
    for anchor in text.select("a.anchor-link"):
        anchor["class"], anchor["title"] = "headerlink", "Permanent link"
    for piece in list(text.find_all(string=re.compile(r"\$"))):
        if piece.find_parent(["code", "pre"]) is None:
            piece.replace_with(BeautifulSoup(_formulas(piece), "html.parser"))
    for table in text.select("table"):
        table.attrs.pop("border", None)
    return _inside(text)


def _formulas(piece: NavigableString) -> str:
    """Replace $$...$$ and $...$, which browsers draw as MathML by themselves."""
    html = str(piece.output_ready())
    html = re.sub(r"\$\$(.+?)\$\$", lambda m: convert(m[1], display="block"), html, flags=re.DOTALL)
    return re.sub(r"\$([^$]+?)\$", lambda m: convert(m[1]), html)


def _drawn(output: Tag, source: str, warn: Callable[[str], None]) -> str:
    """Return a figure with its description, or a table."""
    image = output.select_one("img")
    if image is None:
        return f'<div class="output">{_inside(output)}</div>'
    alt = _alt(source)
    if not alt:
        warn(f"a figure has no title and no axis label to describe it: {source[:80]!r}")
    return f'<p><img alt="{alt}" src="{image["src"]}"></p>'


def _alt(source: str) -> str:
    """Describe a figure by the comment `# alt: ...` of its cell, or else by title and labels."""
    given = re.search(r"# alt: (.+(?:\n# .+)*)", source)
    if given:
        return given[1].replace("\n# ", " ").replace('"', "'")
    found = dict(reversed(re.findall(LABELS, source)))
    title = found.get("suptitle", found.get("title", ""))
    axes = " against ".join(found[name] for name in ("ylabel", "xlabel") if name in found)
    return ": ".join(part for part in (title, axes) if part)


def _inside(tag: Tag) -> str:
    return tag.decode_contents()
