from cmrfed.sweep.estimate import dry_run
from cmrfed.sweep.work import states
from tests.sweep_world import BASE, make_sweep

TINY = "{rounds: 2, local_steps: 5}"
SMALL = "name: s\nrecipe: base.yaml\ngrid: {epsilon: [inf, 8, 2]}"


def cells(text):
    return [line.split() for line in text.splitlines() if line.startswith("epsilon")]


def test_points_steps_and_the_epsilon_of_all(tmp_path):
    base = BASE + f"pretrain: {{patients: 2, scanners: 1, mask: {TINY}, image: {TINY}}}\n"
    sweep = make_sweep(tmp_path, SMALL, base)
    text = dry_run(sweep, states(sweep, tmp_path / "run"))
    first, second, third = cells(text)
    assert first[2:9] == ["unfinished", "∞", "–", "–", "36", "20", "16000"]
    assert second[-4:-2] == ["0", "9000"], "what the first has made is not made again"
    assert float(second[4].rstrip(",")) < float(third[4].rstrip(","))
    assert "Over the 2 private points together the phantom patients would pay at most ε = " in text
    assert not (tmp_path / "run").exists()


def test_a_point_that_cannot_be_run_is_said_to(tmp_path):
    sweep = make_sweep(tmp_path, "name: s\nrecipe: base.yaml\ngrid: {epsilon: [8, 1.0e-6]}")
    text = dry_run(sweep, states(sweep, tmp_path / "run"))
    assert "cannot be run: epsilon 1e-06: ε = 1e-06" in text
    assert "Over the 1 private points" in text


def test_families_share_the_public_masks(tmp_path):
    base = BASE + f"pretrain: {{patients: 2, scanners: 1, mask: {TINY}, image: {TINY}}}\n"
    text = "name: s\nrecipe: base.yaml\ngrid: {image.generator.mask_dropout: [0.1, 0.2]}"
    rows = [line.split() for line in dry_run(make_sweep(tmp_path, text, base), []).splitlines() if "dropout" in line]
    assert [row[-4] for row in rows] == ["20", "10"]
