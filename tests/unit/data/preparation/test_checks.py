"""`prepare` sets aside exactly the patients that `verify` names, whatever is wrong with them."""

import contextlib
import gzip
import json
import shutil
import tempfile
from pathlib import Path

import hypothesis.strategies as st
import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from cmrfed.core.errors import DataError
from cmrfed.data.labels import Label, Phase
from cmrfed.data.preparation.prepare import PrepareConfig, prepare
from cmrfed.data.preparation.verify import verify
from tests.source_files import acdc_patient, save, short_axis

SMALL = PrepareConfig(size_px=16, field_px=64, field_mm=80.0)


def rewrite(path: Path, change, affine=None, dtype=None) -> None:
    file = nib.load(path)
    array = np.asarray(file.dataobj).astype(dtype or file.get_data_dtype())
    nib.save(nib.Nifti1Image(np.ascontiguousarray(change(array)), file.affine if affine is None else affine), path)


def header(path: Path, **fields) -> None:
    raw = bytearray(gzip.decompress(path.read_bytes()))
    head = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for key, value in fields.items():
        head[key] = value
    raw[:348] = head.binaryblock
    path.write_bytes(gzip.compress(bytes(raw)))


def checksum(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-6] ^= 0xFF
    path.write_bytes(bytes(data))


def black_slice(path: Path) -> None:
    """Pixels changed under an old checksum."""
    raw = bytearray(gzip.decompress(path.read_bytes()))
    tail = path.read_bytes()[-8:]
    raw[352:20000] = bytes(20000 - 352)
    path.write_bytes(gzip.compress(bytes(raw))[:-8] + tail)


DAMAGE = {
    "none": lambda image, mask: None,
    "checksum of the image": lambda image, mask: checksum(image),
    "checksum of the mask": lambda image, mask: checksum(mask),
    "black slice": lambda image, mask: black_slice(image),
    "truncated": lambda image, mask: mask.write_bytes(mask.read_bytes()[:100]),
    "empty file": lambda image, mask: image.write_bytes(b""),
    "no mask of one phase": lambda image, mask: mask.unlink(),
    "empty mask": lambda image, mask: rewrite(mask, np.zeros_like),
    "no RV": lambda image, mask: rewrite(mask, lambda a: np.where(a == Label.RV, 0, a).astype(np.uint8)),
    "swapped": lambda image, mask: rewrite(mask, lambda a: np.array([0, 3, 2, 1], np.uint8)[a]),
    "strange labels": lambda image, mask: rewrite(mask, lambda a: a + np.uint8(1)),
    "halves": lambda image, mask: rewrite(mask, lambda a: a * np.float32(0.75), dtype=np.float32),
    "constant": lambda image, mask: rewrite(image, np.ones_like),
    "NaN": lambda image, mask: rewrite(image, lambda a: np.full_like(a, np.nan)),
    "one NaN": lambda image, mask: rewrite(image, lambda a: np.where(a == a.max(), np.nan, a)),
    "mask of other extent": lambda image, mask: rewrite(mask, lambda a: a[:-1]),
    "mask with fewer slices": lambda image, mask: rewrite(mask, lambda a: a[..., :-1]),
    "mask shifted": lambda image, mask: rewrite(
        mask, lambda a: a, np.array(nib.load(mask).affine) + 5 * np.eye(4, k=3)
    ),
    "mask of other spacing": lambda image, mask: rewrite(mask, lambda a: a, np.diag([2.5, 2.5, 10, 1])),
    "other grid": lambda image, mask: rewrite(image, lambda a: a[:-4]),
    "infinite scale": lambda image, mask: header(image, scl_slope=np.inf, scl_inter=0),
    "overflowing scale": lambda image, mask: header(image, scl_slope=3e38, scl_inter=3e38),
    "scale of the mask": lambda image, mask: header(mask, scl_slope=0.99999, scl_inter=0),
    "no dimensions": lambda image, mask: header(image, dim=[0] * 8),
    "negative dimensions": lambda image, mask: header(mask, dim=[3, -5, 80, 6, 1, 1, 1, 1]),
    "huge dimensions": lambda image, mask: header(image, dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]),
    "unknown type": lambda image, mask: header(image, datatype=999),
    "no pixdim": lambda image, mask: header(image, pixdim=[0] * 8, sform_code=0, qform_code=0),
    "NaN affine": lambda image, mask: header(image, srow_x=[np.nan] * 4),
    "odd quaternion": lambda image, mask: header(image, qform_code=1, sform_code=0, quatern_b=9),
    "sheared": lambda image, mask: [header(p, srow_x=[1.5, 0.9, 0, 0]) for p in (image, mask)],
    "a film": lambda image, mask: rewrite(image, lambda a: np.stack([a, a], axis=-1)),
    "mask mirrored": lambda image, mask: rewrite(mask, lambda a: a[::-1]),
    "mask upside down": lambda image, mask: rewrite(mask, lambda a: a[:, ::-1]),
    "same image in both phases": lambda image, mask: shutil.copy(image, str(image).replace("_frame09", "_frame01")),
}
HARMLESS = ("none", "scale of the mask", "infinite scale")


def damaged(root: Path, kinds: list[str]) -> list[str]:
    """Patients, one for each kind of damage; returns their names."""
    names = []
    for number, kind in enumerate(kinds):
        folder = acdc_patient(root / f"p{number}")
        image = folder / f"p{number}_frame09.nii.gz"
        DAMAGE[kind](image, Path(str(image).replace(".nii", "_gt.nii")))
        names.append(f"p{number}")
    return names


def named_by_verify(root: Path, names: list[str]) -> set[str]:
    return {name for name in names if any(f"/{name}" in item.path for item in verify(root, "acdc").quarantined)}


def aside_by_prepare(root: Path, out: Path, names: list[str]) -> set[str]:
    with contextlib.suppress(DataError):  # nobody was left
        cohort = prepare(root, out, "acdc", SMALL)
    if not out.exists():
        return set(names)
    aside = {item["patient_id"] for item in json.loads((out / "quarantine.json").read_text())}
    assert aside == set(names) - set(cohort.patient_ids)
    return aside


@settings(max_examples=6, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.sampled_from(sorted(DAMAGE)), min_size=2, max_size=3))
def test_prepare_sets_aside_whom_verify_names(kinds):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "scans"
        names = damaged(root, kinds)
        aside = aside_by_prepare(root, Path(folder) / "cohort", names)
        assert aside == named_by_verify(root, names)


@pytest.mark.parametrize("kind", DAMAGE)
def test_each_damage_is_found_and_costs_one_patient(tmp_path, kind):
    names = damaged(tmp_path / "scans", ["none", kind])
    aside = aside_by_prepare(tmp_path / "scans", tmp_path / "cohort", names)
    lost_header = ("no pixdim", "NaN affine", "odd quaternion")
    assert aside <= {"p1"}
    assert aside == named_by_verify(tmp_path / "scans", names)
    if kind not in lost_header:
        assert aside == (set() if kind in HARMLESS else {"p1"})


def test_the_corrected_copy_of_a_bad_patient_is_kept(tmp_path):
    """Whichever comes first: a patient that is not accepted is nobody's twin."""
    for bad, good in (("a", "b"), ("d", "c")):
        acdc_patient(tmp_path / "scans" / bad)
        for path in list((tmp_path / "scans" / bad).iterdir()):
            copy = tmp_path / "scans" / good / path.name.replace(f"{bad}_", f"{good}_")
            copy.parent.mkdir(exist_ok=True)
            shutil.copy(path, copy)
        rewrite(tmp_path / "scans" / bad / f"{bad}_frame01_gt.nii.gz", lambda a: a + np.uint8(7))
    assert prepare(tmp_path / "scans", tmp_path / "cohort", "acdc", SMALL).patient_ids == ("b", "c")
    assert len(verify(tmp_path / "scans").quarantined) == 2


def test_a_twin_is_found_in_another_order_of_axes(tmp_path):
    acdc_patient(tmp_path / "scans" / "a")
    shutil.copytree(tmp_path / "scans" / "a", tmp_path / "scans" / "b")
    for path in list((tmp_path / "scans" / "b").glob("a_*")):
        path.rename(path.with_name(path.name.replace("a_", "b_", 1)))
    for path in (tmp_path / "scans" / "b").glob("*.nii.gz"):
        file = nib.load(path)
        flip = np.diag([1.0, -1, 1, 1])
        flip[1, 3] = file.shape[1] - 1
        array = np.asarray(file.dataobj)[:, ::-1].transpose(2, 0, 1)
        nib.save(nib.Nifti1Image(array, file.affine @ flip @ np.eye(4)[:, [2, 0, 1, 3]]), path)
    assert prepare(tmp_path / "scans", tmp_path / "cohort", "acdc", SMALL).patient_ids == ("a",)


# --- phases -----------------------------------------------------------------------------------
@pytest.mark.parametrize("info", ["ED: 9\nES: 1\n", None])
def test_phases_are_decided_by_the_cavity(tmp_path, info, capsys):
    folder = acdc_patient(tmp_path / "scans" / "p", info=False)
    for end in (".nii.gz", "_gt.nii.gz"):
        if info is None:
            (folder / f"p_frame09{end}").rename(folder / f"p_frame00{end}")
    if info:
        (folder / "Info.cfg").write_text(info)
    cohort = prepare(tmp_path / "scans", tmp_path / "cohort", "acdc", SMALL)
    ed, es = cohort.volumes(0)
    assert (ed.phase, es.phase) == (Phase.ED, Phase.ES)
    assert (ed.mask == Label.LV).sum() > (es.mask == Label.LV).sum()
    wanted = "ED and ES exchanged" if info else "no ED and ES in Info.cfg"
    assert any(wanted in note for note in cohort.patients[0].notes)
    assert any(wanted in note for note in verify(tmp_path / "scans").notes)
    assert wanted in capsys.readouterr().err


def test_notes_on_spacing_reach_both_commands(tmp_path, capsys):
    acdc_patient(tmp_path / "scans" / "p", spacing=None)
    prepare(tmp_path / "scans", tmp_path / "cohort", "acdc", SMALL)
    assert "note: spacing unknown" in capsys.readouterr().err
    assert "spacing unknown" in verify(tmp_path / "scans").text()


def test_a_structure_that_only_a_bad_patient_has_is_not_asked_of_others(tmp_path):
    acdc_patient(tmp_path / "scans" / "a")
    for frame, squeeze in ((1, 1.0), (9, 0.6)):
        mask = short_axis(squeeze=squeeze)[1]
        save(
            tmp_path / "scans" / "a" / f"a_frame{frame:02d}_gt.nii.gz",
            np.where(mask == Label.LV, mask, 0).astype(np.uint8),
        )
    checksum(acdc_patient(tmp_path / "scans" / "b") / "b_frame01.nii.gz")
    cohort = prepare(tmp_path / "scans", tmp_path / "cohort", "acdc", SMALL)
    assert (cohort.patient_ids, cohort.labels) == (("a",), (Label.LV,))
