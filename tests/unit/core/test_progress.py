from rich.console import Console

from cmrfed.core import progress
from cmrfed.core.progress import say, track


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
    clock = iter([0.0, 11.0, 11.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with track("rounds", 9) as bar:
        bar.advance()
        bar.advance()
    assert capsys.readouterr().err == "rounds: 1/9\n"


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
