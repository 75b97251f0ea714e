"""Whatever happens to the ledger's files, what was spent is never forgotten."""

import os
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cmrfed.core.errors import PrivacyError
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.ledger.ledger import PrivacyLedger

FILES = ("ledger.jsonl", "ledger.head")


def event(number):
    return PrivacyEvent(
        noise_multiplier=1.0 + number % 3, sampling_rate=0.5, steps=3, run="r", stage="mask", round=number, digest="x"
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The two files of a ledger with five reservations, of which three are committed."""
    root = tmp_path_factory.mktemp("ledger")
    ledger = PrivacyLedger.create(root)
    for number in range(5):
        ticket = ledger.reserve(event(number))
        if number % 2 == 0:
            ledger.commit(ticket)
    return {name: (root / name).read_bytes() for name in FILES}


def forgotten(files):
    """Events that are missing from the history, after the repair that damage asks for; nothing when it is unbounded."""
    with tempfile.TemporaryDirectory() as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
        ledger = PrivacyLedger(Path(folder))
        try:
            history = ledger.history()
        except PrivacyError:
            history = ledger.repair("damaged by a test")
            assert ledger.history() == history
        if history.unbounded:
            return Counter()
        return Counter(event(n).request for n in range(5)) - Counter(e.request for e in history.events)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_byte_may_change(written, data):
    name = data.draw(st.sampled_from(FILES))
    place = data.draw(st.integers(0, len(written[name]) - 1))
    value = data.draw(st.integers(1, 255))
    changed = bytearray(written[name])
    changed[place] ^= value
    assert not forgotten({**written, name: bytes(changed)})


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_any_tail_may_be_lost(written, data):
    name = data.draw(st.sampled_from(FILES))
    kept = data.draw(st.integers(0, len(written[name]) - 1))
    assert not forgotten({**written, name: written[name][:kept]})


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_lines_may_be_lost_doubled_or_swapped(written, data):
    lines = written["ledger.jsonl"].splitlines(keepends=True)
    chosen = data.draw(st.lists(st.sampled_from(lines), max_size=len(lines) + 2))
    assert not forgotten({**written, "ledger.jsonl": b"".join(chosen)})


@settings(max_examples=60, deadline=None)
@given(place=st.integers(0, 3000), junk=st.binary(min_size=1, max_size=40))
def test_anything_may_be_inserted(written, place, junk):
    data = written["ledger.jsonl"]
    assert not forgotten({**written, "ledger.jsonl": data[:place] + junk + data[place:]})


# --- killed processes ---------------------------------------------------------------------------
def serve_until_killed(root):
    """Pay, release, commit, as a site does; what was released is noted after it has left."""
    ledger = PrivacyLedger(root)
    with (root / "released").open("a") as released:
        for number in range(10_000):
            ticket = ledger.reserve(event(number), again=True)
            ticket.permit()
            print(ticket.number, file=released, flush=True)
            ledger.commit(ticket)


def test_a_killed_process_has_paid_for_all_that_it_released(tmp_path):
    ledger = PrivacyLedger.create(tmp_path)
    before = 0
    for attempt in range(25):
        child = os.fork()
        if not child:
            try:
                serve_until_killed(tmp_path)
            finally:
                os._exit(1)
        time.sleep(0.01 + 0.013 * attempt % 0.1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        history = ledger.history()  # no repair is needed
        released = (tmp_path / "released").read_text().split() if (tmp_path / "released").exists() else []
        assert {int(n) for n in released if n} <= {p.number for p in history.payments}
        assert len(history.events) >= before
        before = len(history.events)
    assert before > 0
