"""The documentation is built without a network, and nothing in it is loaded from elsewhere."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

import cmrfed

ROOT = Path(__file__).parents[2]
NO_NETWORK = """
import socket

def refuse(*given, **named):
    raise OSError("the documentation must be built without a network")

socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
"""


class Page(HTMLParser):
    """Places that a page leads to, what it loads, and the anchors that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.loads: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors.add(found.get("id", ""))
        if tag == "a":
            self.links.add(found.get("href", ""))
        elif "src" in found or (tag == "link" and found.get("rel") != "canonical"):
            self.loads.add(found.get("src") or found.get("href", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    pytest.importorskip("mkdocs", reason="needs mkdocs: pip install 'cmrfed[docs]'")
    folder = tmp_path_factory.mktemp("docs")
    (folder / "sitecustomize.py").write_text(NO_NETWORK, encoding="utf-8")
    paths = {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "NO_MKDOCS_2_WARNING": "1"}
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder / "site"]
    done = subprocess.run(build, cwd=ROOT, env=os.environ | paths, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}


def test_every_page_of_the_documentation_is_there(site):
    for source in (ROOT / "docs").rglob("*.md"):
        assert (site / source.relative_to(ROOT / "docs").with_suffix(".html")).is_file()
    assert all((site / f"{name}.html").is_file() for name in ("index", "contributing", "security", "changelog"))


def test_every_name_of_the_api_is_described(pages, site):
    anchors = pages[site / "api-reference.html"].anchors
    assert {f"{cmrfed._PLACES[name]}.{name}" for name in cmrfed.__all__ if name in cmrfed._PLACES} <= anchors


def test_nothing_is_loaded_from_elsewhere(pages, site):
    outside = re.compile(r"^(?:[a-z]+:)?//")
    assert {load for page in pages.values() for load in page.loads if outside.match(load)} == set()
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"(?:@import|url\()[\s'\"]*(?:https?:)?//[^)]*", styles) == []


def test_every_link_inside_leads_somewhere(pages):
    broken = set()
    for path, page in pages.items():
        for link in page.links:
            target, _, anchor = unquote(link).partition("#")
            if re.match(r"[a-z]+:", target) or target.startswith("/") or path.name == "404.html":
                continue
            there = (path.parent / target).resolve() if target else path
            there = there / "index.html" if there.is_dir() else there
            if not there.is_file() or (anchor and there in pages and anchor not in pages[there].anchors):
                broken.add(f"{path.name}: {link}")
    assert broken == set()
