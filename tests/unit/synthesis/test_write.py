import json
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from cmrfed.core.errors import DataError
from cmrfed.data.labels import Phase
from cmrfed.data.synthetic import NOT_PRIVATE, Case, Manifest, PostProcessed
from cmrfed.synthesis.write import PREVIEWS, write_dataset
from tests.generator_world import SPACING_MM, blob_patient


def cases(patients):
    for i in range(patients):
        for volume in blob_patient(i).volumes:
            name = f"syn-{i + 1:04d}"
            yield Case(
                f"{name}_{volume.phase.name}", name, volume.phase, volume.image, volume.mask, SPACING_MM, "north"
            )


def manifest(patients=2):
    return Manifest(
        name="s",
        patients=patients,
        seed=3,
        generators={"mask": "a" * 64, "image": "b" * 64},
        size_px=16,
        spacing_mm=SPACING_MM,
        styles=("north",),
        privacy=NOT_PRIVATE,
        versions={"cmrfed": "0"},
    )


def test_image_and_mask_of_each_case_have_one_geometry(tmp_path):
    write_dataset(tmp_path / "s", cases(2), manifest())
    images = sorted((tmp_path / "s" / "images").iterdir())
    assert [path.name for path in images] == [f"syn-000{i}_{phase.name}.nii.gz" for i in (1, 2) for phase in Phase]
    for path in images:
        image, mask = nib.load(path), nib.load(tmp_path / "s" / "masks" / path.name)
        assert image.shape == mask.shape
        assert np.array_equal(image.affine, mask.affine)
        row, column, depth = SPACING_MM
        assert image.header.get_zooms() == pytest.approx((column, row, depth))


def test_table_and_manifest_say_what_is_there(tmp_path):
    dataset = write_dataset(tmp_path / "s", cases(2), manifest())
    assert dataset.rows[1] == {
        "case": "syn-0001_ES", "patient": "syn-0001", "phase": "ES", "slices": "3", "style": "north"
    }  # fmt: skip
    told = json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert (told["patients"], told["seed"], told["size_px"]) == (2, 3, 16)
    assert told["generators"] == {"mask": "a" * 64, "image": "b" * 64}
    assert told["spacing_mm"] == list(SPACING_MM)
    for read, made in zip(dataset.cases(), cases(2), strict=True):
        assert np.allclose(read.image, made.image)
        assert np.array_equal(read.mask, made.mask)


def test_the_first_patients_have_a_picture_each(tmp_path):
    write_dataset(tmp_path / "s", cases(PREVIEWS + 2), manifest(PREVIEWS + 2))
    names = sorted(path.name for path in (tmp_path / "s" / "previews").iterdir())
    assert names == [f"syn-{i + 1:04d}.png" for i in range(PREVIEWS)]
    picture = np.asarray(Image.open(tmp_path / "s" / "previews" / "syn-0001.png"))
    assert picture.shape == (4 * 34 - 2, 4 * 34 - 2, 3), "image and outlined rows for ED and ES, enlarged twice"
    assert len(np.unique(picture[:32, :32, 0])) > 5


@pytest.mark.parametrize("stop", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_nothing(tmp_path, stop):
    def broken():
        yield from cases(1)
        raise stop

    with pytest.raises(stop):
        write_dataset(tmp_path / "s", broken(), manifest())
    assert not list(tmp_path.iterdir())


def test_an_interrupted_write_leaves_the_old_data_set(tmp_path):
    write_dataset(tmp_path / "s", cases(1), manifest(1))
    with pytest.raises(ZeroDivisionError):
        write_dataset(tmp_path / "s", (1 / 0 for _ in range(1)), manifest())
    assert [path.name for path in tmp_path.iterdir()] == ["s"]
    assert len(list((tmp_path / "s" / "images").iterdir())) == 2


def test_post_processed_masks_are_counted_and_kept_as_they_were_drawn(tmp_path):
    def repaired():
        for i, case in enumerate(cases(2)):
            drawn = case.mask.copy()
            drawn[0, 0, 0] = 3 if i == 1 else drawn[0, 0, 0]
            yield replace(case, drawn=drawn)

    asked = manifest().model_copy(update={"post_processed": PostProcessed(method="largest_component")})
    dataset = write_dataset(tmp_path / "s", repaired(), asked)
    slices = sum(len(case.mask) for case in cases(2))
    assert dataset.manifest.post_processed == PostProcessed(method="largest_component", slices=slices, changed=1)
    for read, made in zip(dataset.cases(), repaired(), strict=True):
        assert np.array_equal(read.drawn, made.drawn)
        assert np.array_equal(read.mask, made.mask)
    (tmp_path / "s" / "masks_as_drawn" / "syn-0001_ES.nii.gz").unlink()
    with pytest.raises(DataError, match=r"masks_as_drawn/syn-0001_ES.nii.gz cannot be read"):
        list(dataset.cases())


def test_masks_that_nobody_changed_are_not_written_twice(tmp_path):
    dataset = write_dataset(tmp_path / "s", cases(1), manifest())
    assert dataset.manifest.post_processed is None
    assert not (tmp_path / "s" / "masks_as_drawn").exists()
    assert all(case.drawn is None for case in dataset.cases())
