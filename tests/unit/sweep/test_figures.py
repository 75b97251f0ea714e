import pytest

from cmrfed.sweep import figures
from cmrfed.sweep.figures import _bounds, against_epsilon
from cmrfed.sweep.summary import Curve, Level


def curve(panel, line, *levels):
    return Curve("fidelity", panel, line, levels, "no knee")


NARROW = curve("ddpm", "sites together", Level(2, 0.8, 0.7, 0.9, 3), Level(8, 0.4, 0.3, 0.5, 3, reference=0.1))
WIDE = curve("fm", "one site alone", Level(8, 0.5, -7.0, 9.0, 2))


def test_every_line_of_every_panel_is_named(tmp_path):
    drawn = against_epsilon(tmp_path, "fidelity", [NARROW, WIDE])
    text = (tmp_path / "fidelity-against-epsilon.svg").read_text()
    assert "sites together" in text
    assert "one site alone" in text
    assert (tmp_path / "fidelity-against-epsilon.pdf").exists()
    assert "ddpm, fm" in drawn.alt


def test_an_interval_of_few_seeds_does_not_flatten_the_rest():
    low, high = _bounds([NARROW, WIDE])
    assert low < 0.1
    assert high > 0.9
    assert high - low < 3 * (0.8 - 0.1)


def test_intervals_that_have_room_are_whole():
    low, high = _bounds([NARROW])
    assert low == pytest.approx(0.1 - 0.05 * 0.8)
    assert high == pytest.approx(0.9 + 0.05 * 0.8)


def test_a_value_far_off_does_not_hide_the_others(tmp_path, monkeypatch):
    scales = []
    monkeypatch.setattr(figures, "write_figure", lambda *args: scales.append(args[-1].axes[0].get_yscale()))
    monkeypatch.setattr(figures, "_saved", lambda *args: figures.write_figure(*args))
    far = curve("ddpm", "from nothing", Level(8, 1093.0, 982.0, 1219.0, 1))
    for curves in ([NARROW], [NARROW, far]):
        against_epsilon(tmp_path, "fidelity", curves)
    assert scales == ["linear", "symlog"]


def test_a_single_value_has_room():
    low, high = _bounds([curve("ddpm", "", Level(8, 0.5, None, None, 1))])
    assert low < 0.5 < high


def test_nothing_measured_is_no_figure(tmp_path):
    assert against_epsilon(tmp_path, "fidelity", [curve("ddpm", "", Level(8))]) is None
