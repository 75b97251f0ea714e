"""What `cmrfed site check` says of a site's ledger, and what a start refuses."""

import shutil
from pathlib import Path

import pytest

from cmrfed.core.errors import ConfigError, DataError, PrivacyError
from cmrfed.deploy.checks import _data, _ledger
from cmrfed.deploy.provision import provision
from cmrfed.deploy.site_node import join
from cmrfed.federation.site.site import Site
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from tests.deployment_world import make_federation
from tests.federation_world import tiny_cohort


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    provision(make_federation(1), tmp_path)
    tiny_cohort(tmp_path / "site-0" / "site" / "cohort", 3)
    return tmp_path / "site-0"


def test_the_ledger_is_made_at_the_first_start_and_not_by_a_check(kit: Path) -> None:
    assert _ledger(kit / "site") == f"none yet: it is made at the first start, in {kit}/site/cohort.ledger"
    assert not PrivacyLedger.exists(kit / "site")
    join(kit)
    assert _ledger(kit / "site") == f"whole: {kit}/site/cohort.ledger"


def test_a_ledger_that_is_gone_is_no_new_one(kit: Path) -> None:
    join(kit)
    shutil.rmtree(kit / "site" / "cohort.ledger")
    with pytest.raises(PrivacyError, match=r"ledger is gone.*--repair"):
        _ledger(kit / "site")
    assert not PrivacyLedger.exists(kit / "site")


def test_a_kit_without_a_cohort_starts_and_has_no_ledger_yet(kit: Path) -> None:
    shutil.rmtree(kit / "site" / "cohort")
    join(kit)
    assert not (kit / "site" / "cohort.ledger").exists()


def test_a_kit_cannot_call_itself_simulated(kit: Path) -> None:
    record = Site.open(kit / "site").record
    record.model_copy(update={"simulated": True}).save(kit / "site")
    for look in (join, lambda folder: _ledger(folder / "site")):
        with pytest.raises(ConfigError, match="says that the site is simulated"):
            look(kit)


def test_scans_in_the_place_of_the_cohort_are_known_as_dicom(kit: Path) -> None:
    cohort = kit / "site" / "cohort"
    (cohort / "cohort.json").unlink()
    (cohort / "IM0001").write_bytes(bytes(128) + b"DICM")
    with pytest.raises(DataError, match=r"there is no cohort.*Got: DICOM files.*--source dicom,"):
        _data(kit / "site")
