from pathlib import Path

import pytest

from cmrfed.core.errors import ConfigError
from cmrfed.deploy.approval import Approvals
from cmrfed.privacy.ledger.journal import Journal

ONE, TWO = "1" * 64, "2" * 64


def test_only_what_was_approved_and_not_withdrawn_is_on_the_list(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    assert approvals.digests() == []
    approvals.approve(ONE)
    approvals.approve(TWO)
    approvals.approve(ONE, withdraw=True)
    assert Approvals(tmp_path).digests() == [TWO]


def test_what_was_asked_for_waits_until_it_is_approved(tmp_path: Path) -> None:
    approvals = Approvals(tmp_path)
    approvals.note(ONE)
    first = approvals.waiting()[ONE]
    approvals.note(ONE)
    assert approvals.waiting() == {ONE: first}
    approvals.approve(ONE)
    assert approvals.waiting() == {}


@pytest.mark.parametrize("text", ["", "1" * 63, "G" * 64, ONE[:-1] + "A", ONE + "\n"])
def test_a_part_of_a_digest_approves_nothing(tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError, match="no digest of a bundle"):
        Approvals(tmp_path).approve(text)
    assert Approvals(tmp_path).digests() == []


def test_a_damaged_list_approves_nothing_and_says_so(tmp_path: Path) -> None:
    Approvals(tmp_path).approve(ONE)
    with (tmp_path / "approved.jsonl").open("a") as file:
        file.write('{"digest": "')
    with pytest.raises(ConfigError, match="is damaged"):
        Approvals(tmp_path).digests()


def test_approvals_are_in_the_journal(tmp_path: Path) -> None:
    Journal(tmp_path).start()
    Approvals(tmp_path).approve(ONE)
    Approvals(tmp_path).approve(ONE, withdraw=True)
    assert [(e.kind, e.body["bundle"]) for e in Journal(tmp_path).read()] == [("approved", ONE), ("withdrawn", ONE)]
