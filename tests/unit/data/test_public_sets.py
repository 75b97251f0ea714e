"""Where public data are had: one table, which the page of the docs and the command repeat."""

from pathlib import Path

import pytest

from cmrfed.core.errors import ConfigError
from cmrfed.data.public_sets import SETS, in_words, table
from cmrfed.data.sources import SOURCES

PAGE = Path(__file__).parents[3] / "docs" / "public-data.md"


def test_the_page_has_the_table():
    assert table() in PAGE.read_text(encoding="utf-8"), "put cmrfed.data.public_sets.table() there"


@pytest.mark.parametrize("one", SETS, ids=lambda one: one.key)
def test_each_says_terms_place_and_what_follows(one):
    text = in_words(one)
    assert all(part in text for part in (one.name, one.terms, one.place, one.citation, one.command))
    assert one.place.startswith("https://")
    assert one.prepare in SOURCES or (one.prepare is None and one.remark)


def test_the_command_tells_and_downloads_nothing(capsys, monkeypatch):
    import socket

    from cmrfed.cli.data import fetch_public

    monkeypatch.setattr(socket, "socket", None)
    fetch_public(["sunnybrook"])
    said = capsys.readouterr().out
    assert "CC0-1.0" in said
    assert "ACDC (acdc)" not in said
    assert "Nothing was downloaded" in said
    fetch_public(None)
    assert all(one.name in capsys.readouterr().out for one in SETS[:1])
    with pytest.raises(ConfigError, match=r"no such public data set.*nowhere.*sunnybrook"):
        fetch_public(["nowhere"])
