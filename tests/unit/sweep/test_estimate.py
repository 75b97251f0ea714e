import re

import pytest

from cmrfed.config.experiment import resolve
from cmrfed.federation.server.checkpoint import RoundStore
from cmrfed.federation.server.metrics import RoundMetrics
from cmrfed.generators.generator import Generator
from cmrfed.pipeline.privacy.plan import PrivacyPlan
from cmrfed.pipeline.training import stage_specs
from cmrfed.report.results import duration
from cmrfed.sweep.clock import DRAWN, TOGETHER, Clock
from cmrfed.sweep.estimate import dry_run, left_to_do, run_seconds, step_seconds
from cmrfed.sweep.timing import JUDGE_S, JUDGE_SLICE_S, PHANTOM_S, REPORT_S, ROUND_S, SCORE_SLICE_S, WRITE_SLICE_S
from cmrfed.sweep.work import states
from tests.support import ROOT
from tests.sweep_world import BASE, make_sweep

TINY = "{rounds: 2, local_steps: 5}"
SMALL = "name: s\nrecipe: base.yaml\ngrid: {epsilon: [inf, 8, 2]}"


@pytest.fixture(autouse=True)
def every_step_takes_a_minute(monkeypatch, tmp_path):
    monkeypatch.setattr("cmrfed.sweep.timing.cached", lambda _: tmp_path / "no extractor")
    monkeypatch.setattr(Clock, "_timed", lambda *_: 60.0)


def round_seconds(experiment, stage):
    """Of all sites in all rounds of a stage, beside their steps."""
    size = sum(p.numel() for p in Generator(experiment.generator(stage)).network.parameters())
    return experiment.sites * experiment.training(stage).rounds * ROUND_S * size / 1e6


def rest(experiment, arms):
    """What is not timed: as it was measured elsewhere."""
    drawn, real = experiment.synthesis.patients * 18, 18 * experiment.data.phantom.patients
    area = (experiment.data.size_px / 64) ** 2
    scored = arms * SCORE_SLICE_S * real / 3 * area
    written = WRITE_SLICE_S * area * (drawn + real / 3)
    rounds = sum(round_seconds(experiment, stage) for stage in experiment.stages)
    return rounds + JUDGE_S + JUDGE_SLICE_S * area * (real + drawn) + scored + written + REPORT_S


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
    drawn, held_out = int(first[8].removeprefix("≈ ")), 9 * 18 / 3
    minutes = 36 + 20 + 16000 / TOGETHER + 400 + (2 * drawn + held_out) / DRAWN
    seconds = 60 * minutes + rest(sweep.points[0].experiment, arms=16)
    assert first[9] == duration(seconds)
    assert f"About {duration(seconds)}" not in text, "the other points take time as well"
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

        def extractor_step(self, *_):
            return 0.0

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
    held_out = experiment.data.phantom.patients * 18 / 3
    measured = rest(experiment, arms)
    data = experiment.data.phantom.patients * PHANTOM_S
    timed = trained + 1000.0 * (2 * drawn + held_out) + 1e6 * arms * config.segmenter.steps
    assert run_seconds(experiment, Fixed()) == pytest.approx(data + timed + measured)
    parts = step_seconds(experiment, Fixed())
    assert list(parts) == [*experiment.stages, "synthesis", "evaluation", "report"], "as run.json, after its data"
    steps = experiment.sites * experiment.mask.training.rounds * experiment.mask.training.local_steps
    assert parts["mask"] == pytest.approx(steps + round_seconds(experiment, "mask"))
    written = WRITE_SLICE_S * (drawn + held_out)
    assert parts["synthesis"] == pytest.approx(1000.0 * (2 * drawn + held_out) + written)


def test_what_a_run_folder_has_is_not_counted_again(tmp_path):
    experiment = resolve(ROOT / "configs/recipes/demo.yaml", [])
    whole = {"pretraining": 9.0, "mask": 50.0, "image": 70.0, "synthesis": 3.0}
    assert left_to_do(whole, experiment, tmp_path) == whole
    state = {"global": {}, "ema": {}, "strategy": {}}
    metrics = RoundMetrics(stage="mask", round=4, seconds=1.0, sites={}, bytes_down=0, bytes_up=0)
    RoundStore(tmp_path / "mask", experiment.digest).save(4, state, metrics)
    (tmp_path / "start").mkdir()
    rounds = experiment.mask.training.rounds
    assert left_to_do(whole, experiment, tmp_path) == whole | {"pretraining": 0.0, "mask": 50.0 * (1 - 4 / rounds)}
