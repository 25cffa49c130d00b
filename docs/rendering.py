"""What the site has besides its pages: equations as MathML, and a page for every file that one links to.

On a hub for code the pages are read as they are, where their links lead to the files themselves. In the site the same
links lead to pages that show those files, so that it stands for itself; a link to what is not there is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
LEXERS = {".py": "python", ".toml": "toml", ".json": "json", ".md": "markdown", ".cpp": "c++", ".h": "c++"}


class FileLinks(SphinxTransform):
    """Links to files and folders of the repository become links to the pages that show them."""

    default_priority = 200

    def apply(self, **kwargs: Any) -> None:
        shown: dict[Path, set[str]] = self.env.__dict__.setdefault("shown_files", {})
        for node in list(self.document.findall(_is_link)):
            # What would be a page, were it among the pages, is named without its ending.
            ending = ".md" if node.get("refdomain") == "doc" else ""
            path = (DOCS / (node["reftarget"] + ending)).resolve()
            if ROOT in path.parents and path.exists() and node["reftarget"] not in self.env.found_docs:
                shown.setdefault(path, set()).add(self.env.docname)
                target = self.app.builder.get_relative_uri(self.env.docname, page_of(path))
                node.replace_self(nodes.reference("", "", *node.children, refuri=target, internal=True))


def _is_link(node: nodes.Node) -> bool:
    unresolved = isinstance(node, addnodes.pending_xref) and node.get("refdomain") in (None, "doc")
    return unresolved or isinstance(node, addnodes.download_reference)


def page_of(path: Path) -> str:
    """The page that shows a file or a folder: a folder's own page has a name that no file has."""
    name = path.relative_to(ROOT).as_posix()
    return f"files/{name}/index" if path.is_dir() else f"files/{name}"


def file_pages(app: Sphinx) -> Iterator[tuple[str, dict[str, Any], str]]:
    """The files that pages link to, and all that folders that they link to hold."""
    linked: dict[Path, set[str]] = app.env.__dict__.get("shown_files", {})
    folders = [path for path in linked if path.is_dir()]
    inside = {path: listed(path) for path in folders}
    for path in sorted({*linked, *(file for files in inside.values() for file in files)}):
        title = path.relative_to(ROOT).as_posix()
        body = _folder(app, path, inside[path]) if path in inside else _file(app, path)
        yield page_of(path), {"title": title, "body": f"<h1><code>{escape(title)}</code></h1>{body}"}, "page.html"


def listed(folder: Path) -> list[Path]:
    """The files of a folder that are worth reading."""
    return sorted(path for path in folder.rglob("*") if path.suffix in LEXERS and "__pycache__" not in path.parts)


def _folder(app: Sphinx, folder: Path, files: list[Path]) -> str:
    links = (
        (app.builder.get_relative_uri(page_of(folder), page_of(file)), file.relative_to(folder).as_posix())
        for file in files
    )
    return (
        "<ul>" + "".join(f'<li><a href="{uri}"><code>{escape(name)}</code></a></li>' for uri, name in links) + "</ul>"
    )


def _file(app: Sphinx, path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    shown = app.builder.highlighter.highlight_block(text, LEXERS.get(path.suffix, "text"), force=True)  # type: ignore[attr-defined]
    return f'<div style="font-size: 78%">{shown}</div>'  # lines of 120 fit


def _inline(writer: Any, node: nodes.math) -> None:
    writer.body.append(_mathml(node, as_block=False))
    raise nodes.SkipNode


def _block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math" style="padding: 0.5em 0">{_mathml(node, as_block=True)}</div>')
    raise nodes.SkipNode


def _mathml(node: nodes.Element, as_block: bool) -> str:
    try:
        return tex2mathml(node.astext(), as_block=as_block)
    except MathError as error:
        logging.getLogger(__name__).warning("%s", error, location=node)
        return ""


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.add_transform(FileLinks)
    app.connect("html-collect-pages", file_pages)
    # What pages link to is gathered as they are read: all of them, each time.
    return {"parallel_read_safe": False, "parallel_write_safe": True}
