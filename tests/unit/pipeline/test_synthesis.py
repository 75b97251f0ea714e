"""The phantom as the data set: simulated patients, and no generator and no patient named or claimed anywhere."""

import numpy as np
import pytest

from cmrfed.config.experiment import resolve
from cmrfed.core.errors import ConfigError
from cmrfed.core.settings.digests import digested
from cmrfed.data.cohort import Cohort
from cmrfed.data.synthetic import NOT_PRIVATE, SIMULATED, SyntheticDataset
from cmrfed.pipeline import synthesis
from cmrfed.pipeline.files.contents import write_contents
from cmrfed.pipeline.files.record import read_run
from cmrfed.pipeline.privacy.plan import PrivacyPlan
from cmrfed.pipeline.synthesis import draw_dataset
from cmrfed.pipeline.trained import TrainedRun
from cmrfed.report.methods import paragraphs
from cmrfed.segmentation.files import save_segmenter
from cmrfed.segmentation.segmenter import build_segmenter, segment
from cmrfed.segmentation.settings import SegmenterConfig
from cmrfed.synthesis.settings import SynthesisConfig
from tests.evaluation_world import cohort as hearts
from tests.run_folder import write_run_folder


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """A run that asks for the phantom, whose patients are drawn at once and kept."""
    hearts(tmp_path / "phantom", range(3))
    asked = []

    def drawn(config, size_px, seed):
        asked.append((config, size_px, seed))
        return Cohort.open(tmp_path / "phantom")

    monkeypatch.setattr(synthesis, "public_patients", drawn)
    run_dir = write_run_folder(tmp_path / "run")
    record = read_run(run_dir)
    tree = record.experiment.model_dump(mode="json")
    experiment = resolve(tree | {"synthesis": {"source": "phantom", "patients": 3}})
    run = TrainedRun(run_dir, record.model_copy(update={"experiment": experiment}), PrivacyPlan(experiment))
    run.__dict__["claim"] = NOT_PRIVATE
    run.__dict__["digests"] = {"mask": "a", "image": "b"}
    return run, asked


def test_simulated_patients_are_handed_out_as_they_are(trained, tmp_path):
    run, asked = trained
    data = draw_dataset(run, run.run_dir / "synthetic", patients=3, seed=5)
    cases, phantom = list(data.cases()), Cohort.open(tmp_path / "phantom")
    assert np.array_equal(np.concatenate([case.mask for case in cases]), phantom.masks[:])
    assert np.allclose(np.concatenate([case.image for case in cases]), phantom.images[:])
    assert {case.patient_id for case in cases} == {"phantom-0001", "phantom-0002", "phantom-0003"}
    [(config, _, seed)] = asked
    assert (config.patients, config.scanners) == (3, 3)
    draw_dataset(run, tmp_path / "other", patients=3, seed=6)
    assert asked[1][2] != seed


def test_no_generator_and_no_patient_is_named(trained):
    run, _ = trained
    data = draw_dataset(run, run.run_dir / "synthetic", patients=3, seed=5)
    manifest = data.manifest
    assert (manifest.source, manifest.generators, manifest.styles) == ("phantom", {}, ())
    assert manifest.privacy == SIMULATED
    assert "No patient is behind this data set, and no generator" in manifest.privacy.statement
    assert not manifest.privacy.differentially_private
    assert [source.name[:9] for source in manifest.learned_from] == ["phantom v"]
    assert SyntheticDataset.open_for_release(data.root)
    methods = " ".join(p.text for p in paragraphs(run.record.as_json(), []))
    assert "it holds 3 simulated patients of the phantom" in methods


def test_it_may_leave_where_the_generators_may_not(trained):
    run, _ = trained
    draw_dataset(run, run.run_dir / "synthetic", patients=3, seed=5)
    write_contents(run.run_dir, NOT_PRIVATE)
    rows = (run.run_dir / "CONTENTS.md").read_text(encoding="utf-8").splitlines()
    [drawn], [learned] = ([r for r in rows if r.startswith(f"| `{n}/`")] for n in ("synthetic", "generators"))
    assert "| yes | simulated patients of the phantom" in drawn
    assert "| no |" in learned


def test_under_the_labels_of_a_segmenter_the_claim_is_that_of_the_run(trained, tmp_path):
    run, _ = trained
    network = build_segmenter(SegmenterConfig(channels=(4, 8)), 1)
    save_segmenter(run.run_dir / "generators" / "segmenter", network, channels=(4, 8), size_px=16)
    run.plan.experiment.synthesis.__dict__["source"] = "relabelled"
    data = draw_dataset(run, run.run_dir / "synthetic", patients=3, seed=5)
    cases, phantom = list(data.cases()), Cohort.open(tmp_path / "phantom")
    assert np.allclose(np.concatenate([case.image for case in cases]), phantom.images[:])
    masks = np.concatenate([case.mask for case in cases])
    assert np.array_equal(masks, segment(network, phantom.images[:]))
    assert not np.array_equal(masks, phantom.masks[:])
    assert data.manifest.source == "relabelled"
    assert list(data.manifest.generators) == ["segmenter"]
    assert data.manifest.privacy == NOT_PRIVATE, "patients have taught the labels"
    methods = " ".join(p.text for p in paragraphs(run.record.as_json(), []))
    assert "with the masks that the segmenter of the sites gave them" in methods


def test_nothing_can_be_relabelled_without_a_segmenter():
    with pytest.raises(ConfigError, match=r"synthesis\.source is relabelled, but there is no segmenter"):
        resolve({"name": "x", "data": {}, "synthesis": {"source": "relabelled"}})


def test_the_usual_source_is_in_no_digest():
    assert "source" not in digested(SynthesisConfig())
    assert digested(SynthesisConfig(source="phantom"))["source"] == "phantom"
