import re

import pytest

from cmrfed.config.experiment import resolve
from cmrfed.pipeline.privacy.plan import PrivacyPlan
from cmrfed.pipeline.training import stage_specs
from cmrfed.report.results import duration
from cmrfed.sweep.estimate import dry_run, run_seconds, step_seconds
from cmrfed.sweep.timing import DRAWN, Clock
from cmrfed.sweep.work import states
from tests.support import ROOT
from tests.sweep_world import BASE, make_sweep

TINY = "{rounds: 2, local_steps: 5}"
SMALL = "name: s\nrecipe: base.yaml\ngrid: {epsilon: [inf, 8, 2]}"


@pytest.fixture(autouse=True)
def every_step_takes_a_minute(monkeypatch):
    monkeypatch.setattr(Clock, "_timed", lambda *_: 60.0)


def cells(text, axis="epsilon"):
    return [re.split("  +", line) for line in text.splitlines() if line.startswith(axis)]


def test_points_steps_and_the_epsilon_of_all(tmp_path):
    base = BASE + f"pretrain: {{patients: 2, scanners: 1, mask: {TINY}, image: {TINY}}}\n"
    sweep = make_sweep(tmp_path, SMALL, base)
    text = dry_run(sweep, states(sweep, tmp_path / "run"))
    first, second, third = cells(text)
    assert first[1:8] == ["unfinished", "∞", "–", "–", "36", "20", "16000"]
    assert second[6:8] == ["0", "9000"], "what the first has made is not made again"
    assert float(second[3].split(",")[0]) < float(third[3].split(",")[0])
    minutes = 36 + 20 + 16000 + 2 * int(first[8].removeprefix("≈ ")) / DRAWN  # drawing is for each slice of a batch
    assert first[9] == duration(60 * minutes)
    assert f"About {duration(60 * minutes)}" not in text, "the other points take time as well"
    assert "Over the 2 private points together the phantom patients would pay at most ε = " in text
    assert not (tmp_path / "run").exists()


def test_a_point_that_cannot_be_run_is_said_to(tmp_path):
    sweep = make_sweep(tmp_path, "name: s\nrecipe: base.yaml\ngrid: {epsilon: [8, 1.0e-6]}")
    text = dry_run(sweep, states(sweep, tmp_path / "run"))
    assert "cannot be run: epsilon 1e-06: ε = 1e-06" in text
    assert "Over the 1 private points" in text
    assert cells(text)[1][-1] == "–"


def test_families_share_the_public_masks(tmp_path):
    base = BASE + f"pretrain: {{patients: 2, scanners: 1, mask: {TINY}, image: {TINY}}}\n"
    text = "name: s\nrecipe: base.yaml\ngrid: {image.generator.mask_dropout: [0.1, 0.2]}"
    rows = cells(dry_run(make_sweep(tmp_path, text, base), []), "image")
    assert [row[6] for row in rows] == ["20", "10"]


def test_a_run_takes_the_time_of_all_its_parts(monkeypatch):
    """A clock of whole numbers against a sum by hand."""
    experiment = resolve(ROOT / "configs/recipes/demo.yaml", [])

    class Fixed:
        def training_step(self, *_):
            return 1.0

        def drawing(self, *_):
            return 1000.0

        def segmenter_step(self, *_):
            return 1e6

    specs = stage_specs(PrivacyPlan(experiment))
    trained = sum(experiment.sites * s.training.rounds * s.training.local_steps for s in specs)
    config = experiment.evaluation
    arms = (2 + config.mixed_arm + len(config.mixed_shares)) * config.segmenter.seeds + config.control_seeds
    arms += 2 * experiment.sites * config.site_seeds
    drawn = experiment.synthesis.patients * sum(experiment.synthesis.slices)
    assert run_seconds(experiment, Fixed()) == trained + 2000.0 * drawn + 1e6 * arms * config.segmenter.steps
    parts = step_seconds(experiment, Fixed())
    assert list(parts) == [*experiment.stages, "synthesis", "evaluation"], "the steps of run.json after its data"
    assert parts["mask"] == experiment.sites * experiment.mask.training.rounds * experiment.mask.training.local_steps
    assert parts["synthesis"] == 2000.0 * drawn
