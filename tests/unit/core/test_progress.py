import pytest
from rich.console import Console

from cmrfed.core import progress
from cmrfed.core.progress import job, say, step, track


def test_plain_lines_away_from_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(progress, "console", Console(stderr=True, force_terminal=False))
    with track("rounds", 3) as bar:
        bar.advance()
        assert capsys.readouterr().err == "", "no line before ten seconds"
        bar.advance(2, "loss 0.5")
    out = capsys.readouterr()
    assert out.err == "rounds: 3/3 loss 0.5\n"
    assert out.out == "", "standard output is for results"


def test_a_plain_line_every_ten_seconds(capsys, monkeypatch):
    monkeypatch.setattr(progress, "console", Console(stderr=True, force_terminal=False))
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with track("rounds", 9) as bar:
        for now[0] in (11.0, 12.0, 13.0, 22.0):
            bar.advance()
    assert capsys.readouterr().err == "rounds: 1/9\nrounds: 4/9, 25 s left\n"


@pytest.mark.parametrize(
    ("equal", "told"),
    [(True, ", 10 s left (step 2 of 3, about 50 s in all)"), (False, " (step 2 of 3, about 50 s in all)")],
)
def test_a_task_tells_what_is_left_of_it_and_of_the_job(capsys, monkeypatch, equal, told):
    monkeypatch.setattr(progress, "console", Console(stderr=True, force_terminal=False))
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with job({"first": 10.0, "second": 20.0, "third": 20.0}):
        with step("first"):
            now[0] = 10.0
        with step("second"), track("rounds", 10, whole=True, equal=equal) as bar:
            for _ in range(8):
                now[0] += 2
                bar.advance()
    assert capsys.readouterr().err == f"rounds: 5/10{told}\n"
    with step("alone"), track("other", 1) as bar:
        bar.advance()
    assert capsys.readouterr().err == "other: 1/1\n", "nothing is said of a job that has ended"


def test_a_bar_on_a_terminal(monkeypatch, tmp_path):
    with (tmp_path / "screen").open("w") as screen:
        monkeypatch.setattr(progress, "console", Console(file=screen, force_terminal=True, width=120))
        with track("rounds", 2) as bar:
            bar.advance(1, "loss 0.5")
            bar.advance()
    shown = (tmp_path / "screen").read_text()
    assert "rounds" in shown
    assert "2/2" in shown


def test_text_is_said_as_it_is(capsys, monkeypatch):
    monkeypatch.setattr(progress, "console", Console(stderr=True, width=40))
    say("a [bold] word and " + "x" * 80)
    assert capsys.readouterr().err == "a [bold] word and " + "x" * 80 + "\n"
