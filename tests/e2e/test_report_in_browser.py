"""The report as a browser sees it: no error, no request to anywhere, words for every picture."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cmrfed.report.html import write_report
from tests.run_folder import write_run_folder

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no Chromium found: install it to check the report in a browser"
)

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=3000",
]


class Browsed:
    """What Chromium made of a page: its document after scripts, its console lines, the page's requests."""

    def __init__(self, page: Path, scratch: Path) -> None:
        log = scratch / "net.json"
        own = [
            f"--user-data-dir={scratch / 'profile'}",
            f"--log-net-log={log}",
            "--host-resolver-rules=MAP * ~NOTFOUND",
        ]
        done = subprocess.run(
            [BROWSER, *FLAGS, *own, "--dump-dom", page.as_uri()],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        self.document = done.stdout
        self.console = re.findall(r"CONSOLE.*", done.stderr)
        starts = [event.get("params") or {} for event in json.loads(log.read_text())["events"]]
        # Chromium's own start-up requests have no page behind them: "not an origin".
        self.requests = [p["url"] for p in starts if p.get("initiator", "not an origin") != "not an origin"]


class Elements(HTMLParser):
    """All start tags with their attributes."""

    def __init__(self, document: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.fixture(scope="module")
def browsed(tmp_path_factory) -> Browsed:
    folder = tmp_path_factory.mktemp("run")
    return Browsed(write_report(write_run_folder(folder)), tmp_path_factory.mktemp("browser"))


def test_the_check_itself_sees_errors_and_requests(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text('<link rel="icon" href="data:,"><img src="http://127.0.0.1:9/x.png"><script>nothing()</script>')
    seen = Browsed(page, tmp_path)
    assert any("nothing is not defined" in line for line in seen.console)
    assert seen.requests == ["http://127.0.0.1:9/x.png"]


def test_no_console_message_and_no_request(browsed):
    assert browsed.console == []
    assert browsed.requests == []


def test_every_picture_and_chart_has_words(browsed):
    elements = Elements(browsed.document).found
    images = [attrs for tag, attrs in elements if tag == "img"]
    charts = [attrs for tag, attrs in elements if tag == "svg" and attrs.get("role") == "img"]
    assert images
    assert charts
    assert all(len(attrs.get("alt") or "") > 10 for attrs in images)
    assert all(len(attrs.get("aria-label") or "") > 10 for attrs in charts)


def test_links_inside_the_page_lead_somewhere(browsed):
    elements = Elements(browsed.document).found
    targets = {attrs["id"] for _, attrs in elements if attrs.get("id")}
    links = {attrs["href"][1:] for tag, attrs in elements if tag == "a" and (attrs.get("href") or "").startswith("#")}
    assert links
    assert links <= targets


def test_identifiers_are_unique(browsed):
    names = [attrs["id"] for _, attrs in Elements(browsed.document).found if attrs.get("id")]
    assert len(names) == len(set(names))
