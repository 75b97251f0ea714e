from collections.abc import Callable
from pathlib import Path

import pytest

from cmrfed.config.experiment import Experiment, resolve
from cmrfed.core.artifacts import read_json, write_json
from cmrfed.core.errors import ConfigError, InUse
from cmrfed.data.preparation.prepare import PrepareConfig, prepare
from cmrfed.federation.local_grid import LocalGrid
from cmrfed.federation.site.site import Site
from cmrfed.pipeline.context import begin
from cmrfed.pipeline.data import open_data, write_sites
from cmrfed.pipeline.run import run, run_deployed
from tests.federation_world import tiny_cohort
from tests.source_files import acdc_patient
from tests.support import content, other_owner


def test_a_site_alone_keeps_its_name_and_patients_and_the_same_hold_out(tmp_path: Path) -> None:
    cohort = tiny_cohort(tmp_path / "cohort", 12)
    settings = {"phantom": None, "cohorts": [str(cohort.root)], "size_px": cohort.size_px}
    tree = {"name": "small", "data": settings, "image": {"generator": {"backbone": {"channels": [16, 32]}}}}
    together = open_data(resolve(tree), tmp_path / "together")
    experiment = resolve(tree, ["data.partition.only=1"])
    alone = open_data(experiment, tmp_path / "alone")
    assert (alone.names, together.names) == (["site-1"], ["site-0", "site-1", "site-2"])
    assert alone.train.patient_ids == alone.sites[0].patient_ids == together.sites[1].patient_ids
    assert alone.holdout.patient_ids == together.holdout.patient_ids
    (root,) = write_sites(alone, tmp_path / "alone", experiment)
    assert Site.open(root).record.name == "site-1"


def test_what_preparation_noted_is_recorded_as_counts(tmp_path: Path) -> None:
    for number in range(10):
        folder = acdc_patient(tmp_path / "scans" / f"patient{number:03d}", upside_down=number < 3)
        if number == 9:
            (folder / "patient009_frame01.nii.gz").write_bytes(b"")
    cohort = prepare(tmp_path / "scans", tmp_path / "cohort", "acdc", PrepareConfig(size_px=16))
    experiment = resolve({"name": "small", "data": {"cohorts": [str(cohort.root)], "size_px": 16}})
    begin(experiment, tmp_path / "run")
    found = read_json(tmp_path / "run" / "run.json")["data"]
    assert {k: v for k, v in found["account"].items() if v} == {"found": 10, "accepted": 9, "set_aside": 1}
    assert [n for note, n in found["notes"].items() if "apex" in note] == [3]
    assert "patient00" not in str(found)


@pytest.mark.parametrize(
    "start",
    [run, lambda experiment, run_dir: run_deployed(experiment, run_dir, LocalGrid([]), ["a", "b", "c"])],
    ids=["simulated", "deployed"],
)
def test_a_run_folder_that_another_process_owns_is_left_as_it_is(
    tmp_path: Path, start: Callable[[Experiment, Path], object]
) -> None:
    cohort = tiny_cohort(tmp_path / "cohort", 12)
    experiment = resolve({"name": "small", "data": {"cohorts": [str(cohort.root)], "size_px": cohort.size_px}})
    with other_owner(tmp_path / "run") as pid:
        before = content(tmp_path)
        with pytest.raises(InUse, match=rf"the run folder .*run is in use.*pid {pid} on"):
            start(experiment, tmp_path / "run")
        assert content(tmp_path) == before


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path: Path) -> None:
    cohort = tiny_cohort(tmp_path / "cohort", 12)
    experiment = resolve({"name": "small", "data": {"cohorts": [str(cohort.root)], "size_px": 2 * cohort.size_px}})
    with pytest.raises(Exception, match="is of another size"):
        run(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_of_a_version_that_placed_patients_otherwise_is_not_carried_on(tmp_path: Path) -> None:
    cohort = tiny_cohort(tmp_path / "cohort", 12)
    experiment = resolve({"name": "small", "data": {"cohorts": [str(cohort.root)], "size_px": cohort.size_px}})
    data = open_data(experiment, tmp_path)
    data.split.write(tmp_path)
    assert open_data(experiment, tmp_path).split == data.split
    write_json(
        tmp_path / "split.json", {k: v for k, v in read_json(tmp_path / "split.json").items() if k != "placement"}
    )
    with pytest.raises(ConfigError, match=r"chose hold-out and sites in another way.*placement 1.*another --run-dir"):
        open_data(experiment, tmp_path)
