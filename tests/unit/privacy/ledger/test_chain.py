from datetime import UTC, datetime, timedelta

from cmrfed.core.artifacts import canonical_json, digest_json
from cmrfed.privacy.ledger.chain import START, make_line, parse_line


def line_of_an_earlier_version(second: datetime) -> bytes:
    """A line without a nonce, as versions before wrote it."""
    content = {"number": 0, "previous": START, "time": second.isoformat(timespec="seconds"), "kind": "open", "body": {}}
    return (canonical_json({**content, "hash": digest_json(content)}) + "\n").encode()


def test_a_hash_does_not_tell_the_time_to_who_knows_all_else():
    before = datetime.now(UTC)
    line = make_line(0, START, "open", {})
    seconds = [before + timedelta(seconds=n) for n in range(-5, 6)]
    guesses = {parse_line(line_of_an_earlier_version(second)).hash for second in seconds}
    assert line.hash not in guesses
    assert make_line(0, START, "open", {}).hash != line.hash, "the same line in the same second has another hash"


def test_lines_of_earlier_versions_can_still_be_read():
    raw = line_of_an_earlier_version(datetime(2026, 1, 1, tzinfo=UTC))
    line = parse_line(raw)
    assert (line.number, line.kind, line.raw) == (0, "open", raw)


def test_bytes_that_are_nested_without_end_are_no_line() -> None:
    for depth in (101, 900, 100_000):
        assert parse_line(b"[" * depth + b"]" * depth + b"\n") is None
        assert parse_line(b'{"body":' * depth + b"0" + b"}" * depth + b"\n") is None
