import re

import pytest

from cmrfed.report.plots import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, curves, distributions, number, rocs, strips


def inside(chart) -> bool:
    return all(LEFT <= d.x <= WIDTH - RIGHT and TOP - 0.1 <= d.y <= HEIGHT - BOTTOM + 0.1 for d in chart.dots)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.80412, "0.804"), (12.345, "12.3"), (1234.5, "1,234"), (0.00012, "1.20e-04"), (-0.001, "-0.001")],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_curves_keep_every_value_and_mark_missing_rounds():
    chart = curves("Loss", {"a": {1: 0.9, 2: 0.5}, "b": {2: 0.6}}, "loss")
    assert len(chart.dots) == 3
    assert len(chart.paths) == 2
    assert chart.rows == (("1", "0.9", "–"), ("2", "0.5", "0.6"))
    assert inside(chart)


def test_lower_values_lie_lower_on_the_page():
    dots = curves("Loss", {"a": {1: 0.9, 2: 0.5, 3: 0.7}}, "loss").dots
    assert dots[0].y < dots[2].y < dots[1].y
    assert dots[0].x < dots[1].x < dots[2].x


def test_wide_ranges_get_a_logarithmic_axis_and_say_so():
    chart = curves("Loss", {"a": {1: 1.0, 2: 0.1, 3: 0.01}}, "loss")
    assert "logarithmic" in chart.y_label
    first, second, third = (dot.y for dot in chart.dots)
    assert second - first == pytest.approx(third - second)
    assert inside(chart)


def test_one_round_and_equal_values_can_be_drawn():
    assert inside(curves("Loss", {"a": {1: 0.5}}, "loss"))
    assert inside(strips("Dice", {"real": {"p1": 0.8, "p2": 0.8}}, "Dice"))
    assert inside(distributions("Area", {"real": [3.0, 3.0]}, "area"))


def test_strip_plot_shows_each_item_and_the_mean_of_its_group():
    chart = strips("Dice", {"real": {"p1": 0.8, "p2": 0.9}, "synthetic": {"p1": 0.7}}, "Dice")
    assert [dot.tip for dot in chart.dots] == ["real, p1: 0.8", "real, p2: 0.9", "synthetic, p1: 0.7"]
    heights = {dot.tip: dot.y for dot in chart.dots}
    mean = float(re.findall(r",([\d.]+)", chart.paths[0].d)[0])
    assert mean == pytest.approx((heights["real, p1: 0.8"] + heights["real, p2: 0.9"]) / 2, abs=0.1)
    assert chart.rows == (("p1", "0.8", "0.7"), ("p2", "0.9", "–"))


def test_items_of_equal_value_do_not_hide_each_other():
    chart = strips("Dice", {"real": {f"p{i}": 0.8 for i in range(5)}}, "Dice")
    assert len({dot.x for dot in chart.dots}) == 5


def test_histograms_share_bins_and_their_shares_sum_to_one():
    chart = distributions("Area", {"real": [1, 2, 3, 4], "synthetic": [2, 2, 9]}, "area", bins=4)
    shares = [[float(cell.rstrip("%")) for cell in row[1:]] for row in chart.rows]
    assert [sum(column) for column in zip(*shares, strict=True)] == pytest.approx([100, 100], abs=0.2)
    assert "real 4, synthetic 3" in chart.caption
    assert inside(chart)


def test_a_group_without_values_keeps_the_colours_of_the_others():
    for chart in (
        distributions("Area", {"synthetic": [], "real": [1.0, 2.0]}, "area"),
        strips("Area", {"synthetic": {}, "real": {"no. 1": 1.0}}, "area"),
    ):
        assert {dot.series for dot in chart.dots} == {1}
        assert {path.series for path in chart.paths} == {1}
        assert "synthetic 0" in chart.caption


def test_roc_curves_stand_beside_chance_and_the_ceiling_of_the_claim():
    attacks = {"near": ([0.0, 0.5, 1.0], [0.0, 1.0, 1.0]), "far": ([0.0, 1.0], [0.0, 1.0])}
    chart = rocs("Attacks", attacks, ([0.0, 1.0], [0.1, 1.0]))
    assert inside(chart)
    assert [p.kind for p in chart.paths] == ["chance", "line", "line", "ceiling"]
    assert chart.dots[1].tip == "near: 100% of members at 50% false alarms"
    assert ("near", "0.500", "1.000") in chart.rows
    assert "ε and δ allow" in chart.caption
    without = rocs("Attacks", attacks, None)
    assert "ceiling" not in [p.kind for p in without.paths]
    assert "no ε is claimed" in without.caption
