"""nnU-Net as a second segmenter: what it is given, what is said where it is absent, and a real, short training."""

import json
import os
import re
import subprocess
import sys
import time

import nibabel as nib
import numpy as np
import pytest

from cmrfed.data.cohort import Cohort
from cmrfed.data.labels import Label
from cmrfed.evaluation.settings import NnunetConfig
from cmrfed.evaluation.slices import slices_of_cohort
from cmrfed.evaluation.utility import nnunet as module
from cmrfed.evaluation.utility.nnunet import cases_of_cohort, cases_of_slices, missing, nnunet_utility
from tests.evaluation_world import cohort
from tests.support import descendants, is_running

SHORT = NnunetConfig(epochs=2, iterations=20)
TITLE, KEY = "nnU-Net v2, 2d, 2 epochs of 20 steps", "nnunet-2d-2x20"


@pytest.fixture
def world(tmp_path):
    real, made, held = (cohort(tmp_path / n, range(a, a + 4), prefix=n) for n, a in (("r", 0), ("s", 10), ("h", 20)))
    external = {"lv-only": cohort(tmp_path / "x", range(30, 32), labels=(3,))}
    return {"real": real, "synthetic": slices_of_cohort(made), "holdout": held, "external": external}


def test_slices_are_the_cases_that_a_cohort_is(world):
    of_cohort, of_slices = cases_of_cohort(world["real"]), cases_of_slices(slices_of_cohort(world["real"]))
    assert len(of_cohort) == len(of_slices) == 8
    for (image, mask), (same_image, same_mask) in zip(of_cohort, of_slices, strict=True):
        np.testing.assert_array_equal(image, same_image)
        np.testing.assert_array_equal(mask, same_mask)


def test_cases_are_read_one_at_a_time(world, monkeypatch):
    read = []
    volumes = Cohort.volumes
    monkeypatch.setattr(Cohort, "volumes", lambda self, i: read.append(i) or volumes(self, i))
    cases = cases_of_cohort(world["real"]) + cases_of_slices(world["synthetic"])
    read.clear()
    assert len(cases) == 16
    next(iter(cases))
    cases[2]
    assert read == [0, 1]


def test_arrays_are_written_as_numpy_does(tmp_path):
    arrays = [np.arange(6.0, dtype=np.float32).reshape(2, 3).T, np.zeros((0, 4), np.uint8)]
    module._save(tmp_path / "a.npz", iter(arrays))
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]
    with np.load(tmp_path / "a.npz") as kept:
        assert kept.files == ["arr_0", "arr_1"]
        for name, array in zip(kept.files, arrays, strict=True):
            np.testing.assert_array_equal(kept[name], array)
            assert kept[name].dtype == array.dtype


def test_structures_that_are_not_learned_are_background_and_the_rest_has_no_gaps(tmp_path, world):
    cases = cases_of_cohort(world["real"])
    module._write_cases(tmp_path / "raw", cases, (Label.LV, Label.RV))
    about = json.loads((tmp_path / "raw" / "dataset.json").read_text())
    assert about["labels"] == {"background": 0, "RV": 1, "LV": 2}
    assert about["numTraining"] == len(list((tmp_path / "raw" / "imagesTr").iterdir())) == 8
    written = np.asarray(nib.load(tmp_path / "raw" / "labelsTr" / "c00000.nii.gz").dataobj).transpose(2, 1, 0)
    mask = cases[0][1]
    for label, number in ((Label.RV, 1), (Label.LV, 2)):
        np.testing.assert_array_equal(written == number, mask == label)


def test_where_it_is_absent_the_table_says_why_and_what_to_do(world, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "missing", lambda: "ModuleNotFoundError: No module named 'nnunetv2'")
    (row,) = nnunet_utility(**world, config=SHORT, out=tmp_path / "out").metrics
    assert (row.id, row.name) == (f"utility.dice.{KEY}", f"Dice ({TITLE})")
    assert row.value is None
    assert "No module named 'nnunetv2'" in row.unavailable
    assert "pip install 'cmrfed[nnunet]'" in row.unavailable
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_imported_is_named(monkeypatch):
    monkeypatch.setattr(module, "_IMPORTS", "import no_such_package_at_all")
    assert missing() == "ModuleNotFoundError: No module named 'no_such_package_at_all'"
    monkeypatch.setattr(module, "_IMPORTS", "pass")
    assert missing() is None


def test_a_training_that_ends_without_a_result_is_said_with_its_log(world, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "missing", lambda: None)
    monkeypatch.setattr(module.importlib.metadata, "version", lambda _: "0")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "nnunetv2.py").write_text("raise SystemExit('no room left')")
    monkeypatch.setenv("PYTHONPATH", str(broken))
    (row,) = nnunet_utility(**world, config=SHORT, out=tmp_path / "out").metrics
    assert "nnU-Net ended without a result. Got: exit code 1: no room left. Do: read" in row.unavailable
    assert len(list((tmp_path / "out").glob("*/log.txt"))) == 1


def test_volumes_come_back_in_order_and_with_their_labels(world, tmp_path, monkeypatch):
    """In place of nnU-Net one that knows the masks: every Dice is then 1, and the second call trains nothing."""
    known = {
        v.image.astype(np.float32).tobytes(): v.mask
        for patients in (world["holdout"], *world["external"].values())
        for v in patients.iter_volumes()
    }
    calls = []

    def knows(here, asked, device):
        calls.append(asked)
        with np.load(here / f"asked-{asked}.npz") as kept:
            images = [kept[f"arr_{i}"] for i in range(len(kept.files))]
        table = module._renumbered(world["real"].labels)
        module._save(here / f"found-{asked}.npz", [table[known[image.tobytes()]] for image in images])

    monkeypatch.setattr(module, "missing", lambda: None)
    monkeypatch.setattr(module.importlib.metadata, "version", lambda _: "0")
    monkeypatch.setattr(module, "_run", knows)
    found = nnunet_utility(**world, config=SHORT, out=tmp_path / "out")
    assert found.find(f"utility.dice.synthetic.holdout.{KEY}").value == 1
    assert found.find(f"utility.hd95.both.holdout.{KEY}").value == 0
    left = found.find(f"utility.dice.real.lv-only.lv.{KEY}")
    assert (left.value, left.name) == (1, f"Dice, trained on real only, tested on lv-only ({TITLE}): LV")
    assert found.find(f"utility.dice.real.lv-only.rv.{KEY}") is None
    assert len(calls) == 3
    assert nnunet_utility(**world, config=SHORT, out=tmp_path / "out") == found
    assert len(calls) == 3


# --- nnU-Net itself -------------------------------------------------------------------------------
@pytest.fixture
def nnunet():
    why = missing()
    if why:
        pytest.skip(f"nnU-Net v2 cannot train here: {why}; pip install --no-deps -r requirements-nnunet.txt")


@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("nnunet")
def test_nnunet_itself_learns_something(world, tmp_path):
    found = nnunet_utility(**world, config=SHORT, out=tmp_path / "out")
    assert [m.unavailable for m in found.metrics if m.unavailable and "spacing" not in m.unavailable] == []
    print({m.name: m.value for m in found.metrics if m.measure in ("dice", "hd95", "assd")})
    best = found.find(f"utility.dice.both.holdout.{KEY}")
    assert best.value > 0.5
    assert best.n == 4
    folders = list((tmp_path / "out").iterdir())
    assert len(folders) == 3
    assert not any((f / "nnUNet_raw").exists() for f in folders), "images of patients do not stay behind"


TRAIN = """
import sys
from pathlib import Path
import numpy as np
import torch
from cmrfed.data.cohort import Cohort
from cmrfed.evaluation.utility.nnunet import _found, cases_of_cohort
cohort, settings = Cohort.open(Path(sys.argv[1])), {"epochs": 5, "iterations": 5, "seed": 0, "threads": 1}
cases = cases_of_cohort(cohort)
found = _found(cases, [image for image, _ in cases], cohort.labels, settings, Path(sys.argv[2]), torch.device("cpu"))
print("segmented", len(found))
"""


@pytest.mark.timeout(1800)
@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds processes through /proc")
@pytest.mark.usefixtures("nnunet")
def test_a_killed_training_ends_at_once_and_goes_on_where_it_was(world, tmp_path):
    command = [sys.executable, "-c", TRAIN, str(world["real"].root), str(tmp_path / "out")]
    first = subprocess.Popen(command)
    while not any(": Epoch 1\n" in log.read_text() for log in (tmp_path / "out").glob("*/log.txt")):
        assert first.poll() is None
        time.sleep(0.1)
    started = descendants(first.pid)
    assert started
    first.kill()
    first.wait()
    (log,) = (tmp_path / "out").glob("*/log.txt")
    deadline = time.monotonic() + 120
    while left := [pid for pid in started if is_running(pid)]:
        assert time.monotonic() < deadline, f"nnU-Net ends with the process that asked for it; left: {left}"
        time.sleep(0.1)
    assert "Training done" not in log.read_text()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == "segmented 8\n", done.stderr
    epochs = re.findall(r": Epoch (\d+)$", log.read_text(), re.MULTILINE)
    assert epochs.count("0") == 1, epochs
    assert epochs[0] == "0"
    assert epochs[-1] == "4"
