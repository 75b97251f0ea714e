from pathlib import Path

from cmrfed.experiment import resolve
from cmrfed.federation.site import Site
from cmrfed.pipeline import open_data, write_sites
from tests.federation_world import tiny_cohort


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
