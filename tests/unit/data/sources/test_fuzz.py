"""Nothing that a file holds ends in a traceback: damaged and hostile inputs of every kind, through every reader."""

import gzip
import json
import shutil
import tempfile
import tracemalloc
from contextlib import suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmrfed.core.errors import CmrfedError, DataError
from cmrfed.data.cohort import CohortHeader
from cmrfed.data.labels import ACDC_LABELS, Phase
from cmrfed.data.preparation.prepare import PrepareConfig, prepare
from cmrfed.data.preparation.verify import verify
from cmrfed.data.sources import SOURCES, RawVolume, read
from cmrfed.evaluation.inputs import read_dataset
from tests.source_files import short_axis

CONFIG = PrepareConfig(size_px=16, field_px=32, field_mm=40.0)
REAL = CohortHeader(
    schema_version=1,
    name="r",
    source="acdc",
    size_px=16,
    labels=(1, 2, 3),
    patients=1,
    slices=1,
    preparation={},
    digest="d",
)
FEW = settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))


# --- hostile NIfTI ------------------------------------------------------------------------------
NUMBERS = st.one_of(
    st.sampled_from([0, 1, -1, 2, 3, 7, 8, 127, 255, 348, 352, 540, 30000, 32767, -32768, 2**31 - 1, -(2**31)]),
    st.integers(-(2**31), 2**31 - 1),
)
REALS = st.one_of(
    st.sampled_from([0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 1e-45, 3.4e38, -3.4e38, 352.0, 1.25, 1e9]),
    st.floats(width=32),
)
FIELDS = {
    **dict.fromkeys(
        ("sizeof_hdr", "datatype", "bitpix", "qform_code", "sform_code", "xyzt_units", "slice_code"), NUMBERS
    ),
    **dict.fromkeys(("vox_offset", "scl_slope", "scl_inter", "cal_max", "quatern_b", "quatern_c", "qoffset_x"), REALS),
}
SHAPES = {"dim": 8, "pixdim": 8, "srow_x": 4, "srow_y": 4, "srow_z": 4}


def volume(dtype: type = np.int16, form: type = nib.Nifti1Image) -> bytes:
    image, _ = short_axis(slices=3, shape=(24, 26), centre=(12, 14))
    return bytes(form(image.transpose(2, 1, 0).astype(dtype), np.diag([-1.4, -1.4, 8.0, 1.0])).to_bytes())


WHOLE = [volume(), volume(np.float32), volume(np.uint8), volume(np.float64, nib.Nifti2Image)]


@st.composite
def hostile(draw: st.DrawFn) -> tuple[bytes, str]:
    """The bytes of a file that was NIfTI once, and its suffix."""
    data = bytearray(draw(st.sampled_from(WHOLE)))
    kind = nib.Nifti1Header if len(data) and data[0] == 92 else nib.Nifti2Header
    size = kind.template_dtype.itemsize
    header = np.frombuffer(bytes(data[:size]), kind.template_dtype).copy()
    for name in draw(st.lists(st.sampled_from([*FIELDS, *SHAPES]), max_size=4)):
        if name in SHAPES:
            place = draw(st.integers(0, SHAPES[name] - 1))
            value = draw(NUMBERS if name == "dim" else REALS)
            with suppress(OverflowError, ValueError), np.errstate(all="ignore"):
                header[name][0, place] = value
        else:
            with suppress(OverflowError, ValueError), np.errstate(all="ignore"):
                header[name] = draw(FIELDS[name])
    data[:size] = header.tobytes()
    for place in draw(st.lists(st.integers(0, 400), max_size=3)):
        data[place] = draw(st.integers(0, 255))
    content = bytes(data[: draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))])
    if draw(st.booleans()):
        return content, ".nii"
    packed = bytearray(gzip.compress(content, 1))
    for place in draw(st.lists(st.integers(0, len(packed) - 1), max_size=2)):
        packed[place] ^= draw(st.integers(0, 255))
    return bytes(packed[: draw(st.one_of(st.just(len(packed)), st.integers(0, len(packed))))]), ".nii.gz"


JUNK = st.tuples(st.binary(max_size=600), st.sampled_from([".nii", ".nii.gz"]))


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two patients, small, in ACDC layout."""
    root = tmp_path_factory.mktemp("good")
    for name in ("p1", "p2"):
        for frame, squeeze in ((1, 1.0), (9, 0.6)):
            image, mask = short_axis(slices=3, shape=(48, 52), centre=(24, 28), squeeze=squeeze)
            for suffix, array in (("", image + ord(name[1]) * np.arange(52) / 9), ("_gt", mask)):
                path = root / name / f"{name}_frame{frame:02d}{suffix}.nii"
                path.parent.mkdir(exist_ok=True)
                array = array.transpose(2, 1, 0).astype(np.uint8 if suffix else np.float32)
                nib.save(nib.Nifti1Image(array, np.diag([-1.4, -1.4, 8.0, 1.0])), path)
        (root / name / "Info.cfg").write_text("ED: 1\nES: 9\n")
    return root


def every_reader(root: Path, source: str, *, keeps: str | None = None) -> None:
    """Prepare, verify and evaluate a folder; only errors in words may come out of it."""
    out = root.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    with suppress(CmrfedError):
        verify(root, source)
    with suppress(CmrfedError):
        verify(root)
    try:
        cohort = prepare(root, out, source, CONFIG)
    except CmrfedError:
        assert keeps is None
    else:
        assert keeps is None or keeps in cohort.patient_ids
        assert np.isfinite(np.asarray(cohort.images, np.float32)).all()
        account = cohort.header.account
        assert account is not None
        assert account.found == account.accepted + account.set_aside + account.skipped
    with suppress(CmrfedError):
        read_dataset(root, REAL)


def one_file(good: Path, mask: bool, data: bytes, suffix: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(shutil.copytree(good, Path(folder) / "scans"))
        stem = f"p2_frame09{'_gt' if mask else ''}"
        (root / "p2" / f"{stem}.nii").unlink()
        (root / "p2" / f"{stem}{suffix}").write_bytes(data)
        every_reader(root, "acdc", keeps="p1")


@FEW
@given(mask=st.booleans(), file=st.one_of(hostile(), hostile(), JUNK))
def test_nifti(good, mask, file):
    one_file(good, mask, *file)


def load(folder: Path, mask: bool, data: bytes, suffix: str, frame: int | None) -> None:
    """Read a volume; whatever comes out is finite or an error in words."""
    whole, spoilt = folder / "whole.nii", folder / f"spoilt{suffix}"
    whole.write_bytes(WHOLE[2])
    spoilt.write_bytes(data)
    image, drawn = (whole, spoilt) if mask else (spoilt, whole)
    try:
        arrays = RawVolume(Phase.ED, image, drawn, ACDC_LABELS, frame).load()
    except DataError:
        return
    assert arrays.mask is not None
    assert arrays.mask.shape == arrays.image.shape
    assert set(np.unique(arrays.mask)) <= {0, 1, 2, 3}


@settings(FEW, max_examples=200)
@given(mask=st.booleans(), file=st.one_of(hostile(), hostile(), JUNK), frame=st.sampled_from([None, None, 0, 7]))
def test_volumes(tmp_path, mask, file, frame):
    load(tmp_path, mask, *file, frame)


@pytest.mark.timeout(3600)
@settings(FEW, max_examples=5000)
@given(mask=st.booleans(), file=st.one_of(hostile(), hostile(), JUNK), frame=st.sampled_from([None, None, 0, 7]))
def test_volumes_for_long(tmp_path, mask, file, frame):
    load(tmp_path, mask, *file, frame)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("shape", [(30000, 30000, 30000), (20000, 20000, 3), (512, 512, 32767), (-5, 4, 4), (0, 4, 4)])
def test_a_small_file_that_claims_much_takes_no_memory(good, suffix, shape):
    data = bytearray(WHOLE[0])
    header = np.frombuffer(bytes(data[:348]), nib.Nifti1Header.template_dtype).copy()
    header["dim"][0, 1:4] = shape
    data = header.tobytes() + bytes(data[348:])
    tracemalloc.start()
    try:
        one_file(good, False, gzip.compress(data) if suffix == ".nii.gz" else data, suffix)
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_long_comment_in_a_header_is_no_damage(tmp_path, suffix):
    file = nib.Nifti1Image.from_bytes(WHOLE[0])
    file.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"x" * 70_000))
    nib.save(file, tmp_path / f"a{suffix}")
    (tmp_path / "b.nii").write_bytes(WHOLE[0])
    with_comment, without = (RawVolume(Phase.ED, tmp_path / n, None, {}).load() for n in (f"a{suffix}", "b.nii"))
    assert np.array_equal(with_comment.image, without.image)


def test_what_follows_the_voxels_is_not_kept(tmp_path):
    with gzip.open(tmp_path / "a.nii.gz", "wb", compresslevel=1) as handle:
        handle.write(WHOLE[0])
        for _ in range(200):
            handle.write(bytes(1 << 20))
    tracemalloc.start()
    try:
        RawVolume(Phase.ED, tmp_path / "a.nii.gz", None, {}).load()
        assert tracemalloc.get_traced_memory()[1] < 30e6
    finally:
        tracemalloc.stop()


# --- texts --------------------------------------------------------------------------------------
LINES = st.one_of(
    st.sampled_from(
        ["ED: 1", "ES: 9", "ED = 9", "ES:inf", "Group: NOR", "ED: 1e400", "ED:", ":", "=", "ED: \x00", "[x]"]
    ),
    st.text(max_size=30),
)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1"])


def info(good: Path, lines: list[str], encoding: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(shutil.copytree(good, Path(folder) / "scans"))
        (root / "p2" / "Info.cfg").write_bytes("\n".join(lines).encode(encoding, errors="replace"))
        patients = {p.patient_id: p for p in read(root, "acdc")}
        assert set(patients) == {"p1", "p2"}
        assert patients["p1"].problem is None


@settings(FEW, max_examples=60)
@given(lines=st.lists(LINES, max_size=6), encoding=ENCODINGS)
def test_info(good, lines, encoding):
    info(good, lines, encoding)


CELLS = st.one_of(
    st.sampled_from(
        ["A1", "B1", "0", "1", "inf", "1e400", "-1", "", '"', '""', ";", "1,0", "\x00", "\u2028", "9" * 5000]
    ),
    st.text(max_size=12),
)


def sheet(rows: list[list[str]], separator: str, encoding: str, cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "scans"
        for code in ("A1", "B1"):
            (root / code).mkdir(parents=True)
            (root / code / f"{code}_sa.nii.gz").write_bytes(b"")
        head = separator.join(["External code", "ED", "ES", "Pathology"])
        text = "\n".join([head, *(separator.join(row) for row in rows)])
        (root / "info.csv").write_bytes(text.encode(encoding, errors="replace")[: -cut or None])
        with suppress(DataError):
            assert {"A1", "B1"} <= {p.patient_id for p in read(root, "mnms")}


@settings(FEW, max_examples=60)
@given(
    rows=st.lists(st.lists(CELLS, max_size=6), max_size=5),
    separator=st.sampled_from(",;\t"),
    encoding=ENCODINGS,
    cut=st.integers(0, 3),
)
def test_tables(rows, separator, encoding, cut):
    sheet(rows, separator, encoding, cut)


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["RV", "1", "MLV"])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)
KEYS = st.sampled_from(["labels", "channel_names", "modality", "file_ending", "numTraining"])


@settings(FEW, max_examples=60)
@given(
    changes=st.dictionaries(KEYS, VALUES, max_size=3),
    labels=st.dictionaries(st.sampled_from(["RV", "LV", "MYO", "bg", "1", "x", "ignore"]), VALUES, max_size=4),
    cut=st.integers(0, 40),
)
def test_descriptions(changes, labels, cut):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "scans"
        (root / "imagesTr").mkdir(parents=True)
        (root / "imagesTr" / "p1_ED_0000.nii.gz").write_bytes(b"")
        text = json.dumps({"labels": labels, "file_ending": ".nii.gz"} | changes)
        (root / "dataset.json").write_text(text if cut > 10 else text[: -cut or None])
        with suppress(DataError):
            assert [p.patient_id for p in read(root, "nnunet")] == ["p1"]


# --- names --------------------------------------------------------------------------------------
PARTS = st.sampled_from(
    [
        *("p1", "p2", "frame", "_frame01", "_frame09", "_gt", "_4d", "_SA_ED", "_SA_ES", "_sa", "_ED", "_0000"),
        *(".nii", ".nii.gz", ".NII.GZ", ".csv", "Info.cfg", "dataset.json", "imagesTr", "labelsTr", ".Trash"),
        *(" ", "\n", "\udc80", "é", "-", "1"),
    ]
)
NAMES = st.lists(PARTS, min_size=1, max_size=4).map("".join)


@FEW
@given(paths=st.lists(st.tuples(st.lists(NAMES, min_size=1, max_size=3), st.sampled_from("fdlc")), max_size=10))
def test_folders_of_any_shape(good, paths):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(shutil.copytree(good, Path(folder) / "scans"))
        for names, kind in paths:
            path = root.joinpath(*names)
            with suppress(OSError, UnicodeError):
                path.parent.mkdir(parents=True, exist_ok=True)
                if kind == "d":
                    path.mkdir(exist_ok=True)
                elif kind == "f":
                    path.write_text("External code,SUBJECT_CODE,ED,ES\np1,p1,1,2\n")
                else:
                    path.symlink_to(root if kind == "c" else "gone")
        for source in SOURCES.builtin_names:
            with suppress(CmrfedError):
                read(root, source)
        every_reader(root, "acdc")
