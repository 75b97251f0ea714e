from multiprocessing import get_context
from pathlib import Path

from cmrfed.privacy.ledger.journal import FILE, Journal


def test_lines_are_chained_and_read_in_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.start()
    for number in range(5):
        journal.write("asked", request=number)
    entries = list(journal.read())
    assert [e.body["request"] for e in entries] == list(range(5))
    assert all(e.sound for e in entries)


def test_a_folder_without_a_journal_stays_without(tmp_path: Path) -> None:
    Journal(tmp_path).write("asked")
    assert not list(tmp_path.iterdir())
    assert list(Journal(tmp_path).read()) == []


def test_an_edit_shows_from_there_on(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.start()
    for number in range(4):
        journal.write("asked", request=number)
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes().replace(b'"request":1', b'"request":7'))
    assert [e.sound for e in journal.read()] == [True, False, False, False]


def test_a_line_that_was_taken_out_shows(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.start()
    for number in range(3):
        journal.write("asked", request=number)
    lines = (tmp_path / FILE).read_bytes().splitlines(keepends=True)
    (tmp_path / FILE).write_bytes(lines[0] + lines[2])
    assert [e.sound for e in journal.read()] == [True, False]


def test_a_torn_line_is_kept_and_the_next_is_written_after_it(tmp_path: Path) -> None:
    journal = Journal(tmp_path)
    journal.start()
    journal.write("asked", request=1)
    with (tmp_path / FILE).open("ab") as file:
        file.write(b'{"half')
    journal.write("asked", request=2)
    assert [(e.kind, e.sound) for e in journal.read()] == [("asked", True), ("damaged", False), ("asked", False)]


def _write(folder: str, count: int) -> None:
    for number in range(count):
        Journal(Path(folder)).write("asked", request=number)


def test_two_processes_do_not_tear_each_other(tmp_path: Path) -> None:
    Journal(tmp_path).start()
    context = get_context("fork")
    workers = [context.Process(target=_write, args=(str(tmp_path), 20)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    entries = list(Journal(tmp_path).read())
    assert len(entries) == 40
    assert all(e.sound for e in entries)
