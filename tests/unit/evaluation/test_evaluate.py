import json
from pathlib import Path

import numpy as np
import pytest

from cmrfed.core.errors import EvaluationError
from cmrfed.data.settings import PhantomConfig
from cmrfed.evaluation.evaluate import evaluate
from cmrfed.evaluation.features import extractors as features_module
from cmrfed.evaluation.features.phantom_cnn import Recipe, load_or_train
from cmrfed.evaluation.results.result import AXES, EvaluationReport
from cmrfed.evaluation.settings import EvaluationConfig
from cmrfed.segmentation.settings import SegmenterConfig
from tests.evaluation_world import cohort, synthetic

SHORT = Recipe(phantom=PhantomConfig(patients=2, sites=2, seed=3), steps=2, batch_size=4, size_px=32, crop_px=24)
CONFIG = EvaluationConfig(
    segmenter=SegmenterConfig(channels=(8, 16, 32), steps=2, batch_size=8, seeds=1, precision="fp32"),
    fidelity={"subsets": 5, "fid_halves": 3, "frd_slices": 12},
    anatomy={"bootstrap_draws": 10},
    memorisation={"draws": 2},
)


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    return load_or_train(tmp_path_factory.mktemp("cache"), SHORT)


@pytest.fixture(autouse=True)
def short_extractor(network, monkeypatch):
    monkeypatch.setattr(features_module, "load_or_train", lambda folder: network)


@pytest.fixture
def world(tmp_path):
    return {
        "synthetic": synthetic(tmp_path / "synthetic", range(100, 104)).root,
        "train": cohort(tmp_path / "train", range(6), prefix="t"),
        "holdout": cohort(tmp_path / "holdout", range(20, 25), prefix="h"),
        "external": {"elsewhere": cohort(tmp_path / "ext", range(40, 43), labels=(3,), prefix="e")},
        "paired": synthetic(tmp_path / "paired", range(20, 25), prefix="h", change=lambda x: x * 0.9).root,
        "config": CONFIG,
        "out": tmp_path / "out",
    }


def test_everything_is_measured_and_written(world):
    report = evaluate(**world)
    out = world["out"]
    assert EvaluationReport.model_validate(json.loads((out / "evaluation.json").read_text())) == report
    assert {m.axis for m in report.metrics} == {"fidelity", "anatomy", "memorisation", "leakage", "utility"}
    ids = [m.id for m in report.metrics]
    assert len(ids) == len(set(ids)) == len({m.name for m in report.metrics})
    assert [m.id for m in report.metrics if m.axis == "leakage"] == ["leakage.membership.black-box"]
    assert "hold out at least 10" in report.find("leakage.membership.black-box").unavailable
    missing = {m.id: m.unavailable for m in report.metrics if m.unavailable and m.axis != "leakage"}
    assert "fidelity.lpips.paired" in missing
    packages = ("fidelity.lpips.paired", "fidelity.frd.synthetic.radiomics")
    missing = {name: why for name, why in missing.items() if name not in packages}
    spacing = [name for name, reason in missing.items() if "spacing" in reason]
    assert spacing == [
        "anatomy.clinical-distance.volumes",
        "utility.clinical-error.holdout.volumes",
        "utility.clinical-error.elsewhere.volumes",
    ]
    missing = {name: reason for name, reason in missing.items() if name not in spacing}
    assert all("not vary" in reason for reason in missing.values()), "the drawn cavities are all circles"
    assert {p.name for p in (out / "pictures").iterdir()} == {"synthetic.png", "holdout.png", "nearest.png"}
    assert [verdict.axis for verdict in report.verdicts] == list(AXES)
    measured = [verdict for verdict in report.verdicts if verdict.level != "not-measured"]
    assert len(measured) == 4
    assert all(verdict.text and verdict.rule for verdict in measured)
    assert report.sizes == {"synthetic": 4, "training": 6, "hold-out": 5, "elsewhere": 3}
    assert set(report.inputs) == {*report.sizes, "extractor phantom-cnn-v1"}
    assert any("hold-out: 5 patient(s)" in w.text for w in report.warnings)


def test_what_an_autoencoder_loses_is_measured_by_itself(world, tmp_path):
    """Reconstructions that equal the images: Dice as on the hold-out. Grey ones: no structure is found in them."""
    plain = evaluate(**world)
    assert not [m.id for m in plain.metrics if "reconstruction" in m.id]
    name = "utility.dice.real.reconstruction"
    found = {}
    for kind, change in (("faithful", lambda x: x + 1e-4), ("grey", np.zeros_like)):
        folder = synthetic(tmp_path / kind, range(20, 25), prefix="h", change=change).root
        found[kind] = evaluate(**world, reconstructed=folder)
    real = plain.find("utility.dice.real.holdout")
    assert found["faithful"].find(name).reference == real.value
    assert found["faithful"].find(name).value == pytest.approx(real.value, abs=0.01)
    assert found["faithful"].find("fidelity.psnr.reconstruction").value > 60
    assert found["faithful"].find("fidelity.ssim.reconstruction").value > 0.99
    assert found["grey"].find("fidelity.psnr.reconstruction").value < 20
    assert found["grey"].find("fidelity.ssim.reconstruction").value < 0.5
    assert found["grey"].find(name).value < real.value
    assert all(found["grey"].find(m.id) == m for m in plain.metrics), "nothing else is changed by it"


def test_the_same_inputs_give_the_same_report(world):
    assert evaluate(**world) == evaluate(**world)


def test_real_patients_stay_out_of_the_pictures_on_request(world):
    config = CONFIG.model_copy(update={"utility": False})
    report = evaluate(**world | {"config": config})
    evaluate(**world | {"config": config.model_copy(update={"show_real": False})})
    assert [p.name for p in (world["out"] / "pictures").iterdir()] == ["synthetic.png"]
    assert report.verdict("utility").level == "not-measured"


def test_one_synthetic_patient_is_judged_with_a_warning(world, tmp_path):
    one = synthetic(tmp_path / "one", [7]).root
    report = evaluate(**world | {"synthetic": one, "config": CONFIG.model_copy(update={"utility": False})})
    assert any(w.text.startswith("synthetic: 1 patient(s)") for w in report.warnings)
    assert report.find("anatomy.shape-distance.lv.area").low is None


def test_constant_images_are_judged_with_a_warning(world, tmp_path):
    grey = synthetic(tmp_path / "grey", range(4), change=np.zeros_like).root
    report = evaluate(**world | {"synthetic": grey, "config": CONFIG.model_copy(update={"utility": False})})
    assert "24 of 24 synthetic images are constant" in [w.text for w in report.warnings]
    assert report.find("memorisation.constant-images").value == 1


def test_other_sizes_are_refused(world, tmp_path):
    big = synthetic(tmp_path / "big", range(2), size=48).root
    with pytest.raises(EvaluationError, match=r"another size than the real slices.*48 x 48 px.*32 x 32 px"):
        evaluate(**world | {"synthetic": big})
    with pytest.raises(EvaluationError, match=r"cohort hold-out is of another size.*--size 32"):
        evaluate(**world | {"holdout": cohort(tmp_path / "other", range(3), size=48)})


@pytest.mark.parametrize("names", [("hold-out",), ("Holdout",), ("training",), ("far away", "Far-away")])
def test_external_cohorts_that_ids_cannot_keep_apart_are_refused(world, names):
    other = world["external"]["elsewhere"]
    with pytest.raises(EvaluationError, match=r"is taken already.*Do: give the cohort another name"):
        evaluate(**world | {"external": dict.fromkeys(names, other)})


def test_shared_patients_are_refused(world):
    whole = world["train"]
    with pytest.raises(EvaluationError, match=r"training and hold-out share patients.*t002"):
        evaluate(**world | {"train": whole, "holdout": whole.select(["t002", "t003"])})


def test_images_that_are_no_numbers_are_refused(world, tmp_path):
    bad = synthetic(tmp_path / "nan", range(2), change=lambda x: np.where(x > 0, np.nan, x)).root
    with pytest.raises(EvaluationError, match=r"syn000_ED.*no numbers"):
        evaluate(**world | {"synthetic": bad})


def test_the_judge_never_sees_a_generator():
    folder = Path(features_module.__file__).parent
    for file in folder.glob("*.py"):
        text = file.read_text()
        assert not any(f"cmrfed.{layer}" in text for layer in ("generators", "training", "federation")), file
