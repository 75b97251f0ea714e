import json
import re
import shutil
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmrfed.core.errors import DataError
from cmrfed.data.pool import pool
from cmrfed.data.preparation.account import Account, added, facts, kinds_of
from cmrfed.data.preparation.prepare import PrepareConfig, prepare
from cmrfed.data.preparation.verify import verify
from cmrfed.data.sources import LeftOut
from tests.source_files import acdc_patient

SMALL = PrepareConfig(size_px=32, field_px=64, field_mm=80.0)


def nothing(folder: Path) -> None:
    pass


def no_files(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def no_target(folder: Path) -> None:
    for path in list(folder.glob("*_frame01*")):
        path.unlink()
        path.symlink_to("gone")


def truncated(folder: Path) -> None:
    path = folder / f"{folder.name}_frame09.nii.gz"
    path.write_bytes(path.read_bytes()[:300])


def masks_alone(folder: Path) -> None:
    for path in folder.glob("*_frame0?.nii.gz"):
        path.unlink()


def bad_info(folder: Path) -> None:
    (folder / "Info.cfg").write_text("ED: inf\nES: 9\n")


def unfinished(folder: Path) -> None:
    for path in list(folder.glob("*.nii.gz")):
        path.rename(f"{path}.part")


def linked(folder: Path) -> None:
    store = folder.parents[1] / "store"
    store.mkdir(exist_ok=True)
    folder.rename(store / folder.name)
    folder.symlink_to(store / folder.name)


def trashed(folder: Path) -> None:
    """Somebody else was deleted beside this one."""
    gone = folder.parent / ".Trash-1000" / "files" / "patient999"
    if not gone.exists():
        shutil.copytree(folder, gone)


WHOLE = (nothing, linked, trashed)
BROKEN = (no_files, no_target, truncated, masks_alone, bad_info, unfinished)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.sampled_from(WHOLE + BROKEN), min_size=1, max_size=4))
def test_everybody_who_was_found_is_accounted_for(tmp_path, capsys, changes):
    work = Path(tempfile.mkdtemp(dir=tmp_path))
    acdc_patient(work / "scans" / "patient000")
    for number, change in enumerate(changes, 1):
        change(acdc_patient(work / "scans" / f"patient{number:03d}"))
    cohort = prepare(work / "scans", work / "out", "acdc", SMALL)
    aside = json.loads((work / "out" / "quarantine.json").read_text())
    good = {"patient000", *(f"patient{i:03d}" for i, change in enumerate(changes, 1) if change in WHOLE)}
    every = {f"patient{i:03d}" for i in range(len(changes) + 1)}
    assert set(cohort.patient_ids) == good
    assert sorted([*cohort.patient_ids, *(item["patient_id"] for item in aside)]) == sorted(every)
    account = cohort.header.account
    assert (account.found, account.accepted, account.set_aside, account.skipped) == (
        len(every),
        len(good),
        len(every) - len(good),
        0,
    )
    printed = capsys.readouterr().err
    assert re.search(
        rf"{len(every)} patients? found: {len(good)} accepted, {len(every) - len(good)} set aside, 0", printed
    )
    assert (".Trash-1000" in printed) == (trashed in changes)
    report = verify(work / "scans", "acdc")
    assert report.ok == (good == every)
    assert all(any(name in item.path + item.reason for item in report.quarantined) for name in every - good)
    assert f"{len(every)} patients" in report.text()


def test_strict_refuses_what_cannot_be_followed(tmp_path):
    acdc_patient(tmp_path / "scans" / "patient001")
    (tmp_path / "scans" / "more").symlink_to("gone")
    with pytest.raises(DataError, match=r"links whose target is missing \(1\): more"):
        prepare(tmp_path / "scans", tmp_path / "out", "acdc", SMALL, strict=True)
    assert not (tmp_path / "out").exists()
    assert prepare(tmp_path / "scans", tmp_path / "out", "acdc", SMALL).patient_ids == ("patient001",)


def test_a_pooled_cohort_adds_the_accounts_and_names_no_path(tmp_path):
    cohorts = []
    for site in ("a", "b"):
        folder = acdc_patient(tmp_path / site / f"patient00{site}")
        image = folder / f"{folder.name}_frame01.nii.gz"
        file = nib.load(image)
        noise = np.random.default_rng(len(cohorts)).normal(0, 3, file.shape)
        nib.save(nib.Nifti1Image(file.get_fdata() + noise, file.affine), image)
        truncated(acdc_patient(tmp_path / site / "patient009"))
        (tmp_path / site / ".git").mkdir()
        cohorts.append(prepare(tmp_path / site, tmp_path / f"{site}-out", "acdc", SMALL))
    account = pool(cohorts, tmp_path / "pooled", "pooled").header.account
    assert (account.found, account.accepted, account.set_aside, account.skipped) == (4, 2, 2, 0)
    assert [(kind.kind, kind.count, kind.examples) for kind in account.left_out] == [("version control", 2, ())]


def test_cohorts_of_which_one_did_not_count():
    one = Account(found=1, accepted=1, set_aside=0, skipped=0)
    assert added([one, None]) is None
    assert added([]) is None


def test_facts_are_counts_without_names():
    left = kinds_of([LeftOut("z/.git", "version control"), LeftOut("p7/a", "links whose target is missing", lost=True)])
    account = Account(found=4, accepted=2, set_aside=1, skipped=1, left_out=left)
    found = facts(account, [("spacing unknown: 0.1 mm of p7",), ("spacing unknown: 9 mm",)])
    assert "p7" not in found.model_dump_json()
    assert found.lines() == [
        "4 patients found: 2 accepted, 1 set aside, 1 skipped",
        "not read, links whose target is missing (1)",
        "not read, version control (1)",
        "2 patients: spacing unknown",
    ]
    assert facts(None, []).lines() == []


def test_many_paths_of_a_kind_are_counted_and_some_named():
    (kind,) = kinds_of([LeftOut(f"{i:03d}/@eaDir", "trash") for i in range(300)])
    assert (kind.count, len(kind.examples)) == (300, 20)
    assert kind.text().endswith("019/@eaDir and 280 more")
