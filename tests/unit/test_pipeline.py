from collections.abc import Callable
from pathlib import Path

import pytest

from cmrfed.errors import InUse
from cmrfed.experiment import Experiment, resolve
from cmrfed.federation.local_grid import LocalGrid
from cmrfed.federation.site import Site
from cmrfed.pipeline import open_data, run, run_deployed, write_sites
from tests.federation_world import tiny_cohort
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
