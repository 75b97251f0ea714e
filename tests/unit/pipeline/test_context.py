"""One run computes its plan once, reads its record once and loads each generator once."""

from collections import Counter
from pathlib import Path

import pytest

from cmrfed.config.experiment import Experiment, resolve
from cmrfed.core.errors import DataError
from cmrfed.generators.generator import Generator
from cmrfed.pipeline import context, trained
from cmrfed.pipeline.context import begin
from cmrfed.pipeline.evaluation import evaluate_run
from cmrfed.pipeline.files.record import read_run
from cmrfed.pipeline.privacy import plan
from cmrfed.pipeline.run import run
from cmrfed.pipeline.synthesis import synthesize_run
from cmrfed.pipeline.trained import TrainedRun
from tests.federation_world import tiny_cohort

TINY = {"backbone": {"channels": [4], "patch_px": 4, "norm_groups": 4}, "sampler": {"steps": 1}}


def experiment(folder: Path) -> Experiment:
    """A private recipe of two sites, with white-box attacks."""
    cohort = tiny_cohort(folder / "cohort", 12)
    stage = {"generator": TINY, "training": {"rounds": 1, "local_steps": 1}}
    tree = {
        "name": "tiny",
        "data": {"cohorts": [str(cohort.root)], "size_px": cohort.size_px, "partition": {"sites": 2}},
        "mask": stage,
        "image": stage,
        "federation": {"weighting": "equal"},
        "privacy": {"unit": "patient", "epsilon": 8.0, "delta": 0.01, "declared_patients": 4},
        "synthesis": {"patients": 1, "slices": [2, 2]},
        "evaluation": {"utility": False, "attacks": {"white_box": True}},
        "compute": {"threads": 1},
    }
    return resolve(tree)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the plan was computed, run.json was read and each generator was loaded."""
    found: Counter[str] = Counter()
    load, noise, claim = Generator.load, plan.plan_privacy, trained.claim

    def counted_load(folder: Path) -> Generator:
        found[folder.name] += 1
        return load(folder)

    def counted(name: str, function):
        def call(*args):
            found[name] += 1
            return function(*args)

        return call

    monkeypatch.setattr(Generator, "load", staticmethod(counted_load))
    monkeypatch.setattr(plan, "plan_privacy", counted("plan", noise))
    monkeypatch.setattr(trained, "claim", counted("claim", claim))
    monkeypatch.setattr("cmrfed.report.folder.read_run", counted("run.json for the report", read_run))
    monkeypatch.setattr("cmrfed.pipeline.files.record.read_run", counted("run.json", read_run))
    monkeypatch.setattr(trained, "read_run", counted("run.json", read_run))
    monkeypatch.setattr("cmrfed.pipeline.training.audit_experiment", lambda _: [])  # held by tests of its own
    monkeypatch.setattr("cmrfed.pipeline.evaluation.evaluate_run", counted("evaluation", evaluate_run))
    return found


def test_each_is_done_once(tmp_path: Path, counts: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    made = experiment(tmp_path)
    monkeypatch.setattr("cmrfed.pipeline.evaluation.evaluate", lambda **_: None)  # nothing of it loads a generator
    monkeypatch.setattr("cmrfed.report.html.write_report", lambda run_dir: run_dir / "report.html")
    run(made, tmp_path / "run")
    assert counts == {"plan": 1, "mask": 1, "image": 1, "claim": 1, "evaluation": 1}
    counts.clear()
    run(made, tmp_path / "run")
    assert counts == {"plan": 1, "run.json": 1, "claim": 1}, "what is done is not done again, and loads nothing"
    counts.clear()
    synthesize_run(tmp_path / "run", tmp_path / "more", patients=1, seed=1)
    assert counts == {"plan": 1, "run.json": 1, "mask": 1, "image": 1, "claim": 1}


def test_a_run_without_generators_says_how_to_go_on(tmp_path: Path) -> None:
    begun = begin(experiment(tmp_path), tmp_path / "run")
    with pytest.raises(DataError, match=r"has no image generator yet\. Do: finish the run"):
        begun.trained.generator("image")
    with pytest.raises(DataError, match=r"has no mask generator yet"):
        synthesize_run(tmp_path / "run", tmp_path / "out", patients=1, seed=0)
    with pytest.raises(DataError, match=r"elsewhere is not a run\. Got: no such folder"):
        TrainedRun.open(tmp_path / "elsewhere")


def test_what_is_recorded_is_what_the_context_holds(tmp_path: Path) -> None:
    begun = begin(experiment(tmp_path), tmp_path / "run")
    record = read_run(tmp_path / "run")
    assert record == begun.record.content
    assert record.privacy_plan == begun.plan.rows
    assert begun.data is not None
    assert [site.name for site in record.sites] == begun.data.names
    assert begun.trained.styles == tuple(begun.data.names)
    assert context.RunContext(tmp_path, begun.plan, begun.record, begun.grid).data is None
