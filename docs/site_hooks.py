"""What the site has beside the pages of docs/: README and its neighbours as pages, and the API from its docstrings."""

import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import cmrfed

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}
"""Files beside docs/ => their pages."""
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere or are made."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=_with_links(text, "", page, files)))
    files.append(File.generated(config, "api-reference.md", content=api_reference()))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to pages of the site; what the site does not have is named without a link."""
    source = page.file.src_uri
    if source in PAGES.values():
        return markdown
    return _with_links(markdown, posixpath.join("docs", posixpath.dirname(source)), source, files)


def _with_links(text: str, folder: str, page: str, files: Files) -> str:
    return _LINK.sub(lambda match: _moved(match, folder, page, files), text)


def _moved(match: re.Match[str], folder: str, page: str, files: Files) -> str:
    """A link of a file in a folder of the source tree, as it is on a page of the site."""
    mark, text, target, anchor = match.groups()
    if not target or re.match(r"[a-z]+:", target):
        return match.group()
    place = posixpath.normpath(posixpath.join(folder, target))
    there = PAGES.get(place) or (place.removeprefix("docs/") if place.startswith("docs/") else None)
    if there is None or (there not in PAGES.values() and files.get_file_from_path(there) is None):
        if not (ROOT / place).exists():
            return match.group()  # which the strict build refuses
        return text
    return f"{mark}[{text}]({posixpath.relpath(there, posixpath.dirname(page) or '.')}{anchor or ''})"


class DocstringLinks(griffe.Extension):
    """Docstrings link to ``docs/page.md``, as seen from the top of the source tree."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Let the links of a docstring start in docs/."""
        if obj.docstring:
            obj.docstring.value = obj.docstring.value.replace("](docs/", "](")


def api_reference() -> str:
    """A page with every name of the Python API, from its docstrings."""
    parts = ["# API reference", "Every name of `cmrfed.__all__`. [Python API](api.md) shows them at work."]
    parts += [
        f"::: {cmrfed._PLACES[name]}.{name}\n    options:\n      heading: cmrfed.{name}"
        for name in cmrfed.__all__
        if name in cmrfed._PLACES
    ]
    return "\n\n".join(parts) + "\n"
