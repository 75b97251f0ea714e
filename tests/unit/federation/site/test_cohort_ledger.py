"""One ledger for the patients of a cohort, whatever happens to sites, kits and folders."""

import json
import shutil
import stat
from pathlib import Path

import pytest

from cmrfed.core.errors import ConfigError, DataError, PrivacyError, SiteRefused
from cmrfed.federation.site.folder import SiteRecord
from cmrfed.federation.site.site import Site
from cmrfed.privacy.accountant import epsilon
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.ledger.chain import Chain
from cmrfed.privacy.ledger.journal import Journal
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from cmrfed.privacy.ledger.memory import COPY, MARKER, Memory
from cmrfed.privacy.policy import SitePolicy
from tests.federation_world import tiny_cohort, tiny_patient, write_cohort

POLICY = SitePolicy(epsilon_cap=8.0, delta=1e-2, smallest_cohort=1)
FILES = ("ledger.jsonl", "ledger.head")


def event(number: int = 1, sigma: float = 5.0) -> PrivacyEvent:
    return PrivacyEvent(
        noise_multiplier=sigma, sampling_rate=1.0, steps=2, run="r", stage="image", round=number, digest=f"d{number}"
    )


def kit(root: Path, cohort: Path | str, **changes: object) -> Site:
    record = SiteRecord(**{"name": root.name, "cohort": str(cohort), **changes})
    return Site.register(root, record, POLICY)


def pay(site: Site, *numbers: int) -> None:
    """Pay as a site does, without training."""
    for number in numbers:
        ledger = site.open_ledger()
        ledger.commit(ledger.reserve(event(number), again=True))


def spent(site: Site) -> float:
    return site.open_ledger().history().epsilon(1e-2).prv


def cost(rounds: int) -> float:
    return epsilon([event(n) for n in range(rounds)], 1e-2).prv


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return tiny_cohort(tmp_path / "data" / "ward", 4).root


@pytest.fixture
def site(tmp_path: Path, cohort: Path) -> Site:
    return kit(tmp_path / "kit", cohort)


# --- where it is ----------------------------------------------------------------------------------
def test_it_lies_beside_the_cohort_and_its_owner_alone_may_enter(site: Site, cohort: Path) -> None:
    pay(site, 1)
    folder = cohort.with_name("ward.ledger")
    assert PrivacyLedger(site.root).folder == folder
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder, site.root)] == [0o700, 0o700]
    files = [*(folder / name for name in FILES), *(site.root / n for n in (COPY, "policy.yaml", "site.json"))]
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}


def test_two_kits_on_one_cohort_pay_into_one_ledger(site: Site, tmp_path: Path, cohort: Path) -> None:
    pay(site, 1, 2)
    (tmp_path / "link").symlink_to(cohort)
    other = kit(tmp_path / "other", tmp_path / "link")
    assert spent(other) == pytest.approx(cost(2))
    pay(other, 1)
    assert spent(site) == spent(other) == pytest.approx(cost(3))


def test_a_second_kit_that_was_copied_from_the_first_goes_on_with_the_same(site: Site, tmp_path: Path) -> None:
    pay(site, 1)
    copied = Site.open(Path(shutil.copytree(site.root, tmp_path / "copied")))
    pay(site, 2)
    pay(copied, 3)
    assert spent(site) == spent(copied) == pytest.approx(cost(3))


def test_half_of_the_cohort_at_each_of_two_sites_is_one_ledger_too(tmp_path: Path, cohort: Path) -> None:
    one, two = (kit(tmp_path / f"k{i}", cohort, patients=(f"p0{i}", f"p0{i + 2}")) for i in range(2))
    pay(one, 1)
    assert spent(two) == pytest.approx(cost(1))


def test_a_simulated_site_keeps_its_own(tmp_path: Path, cohort: Path) -> None:
    pay(kit(tmp_path / "real", cohort), 1)
    simulated = kit(tmp_path / "run" / "00", cohort, simulated=True)
    assert spent(simulated) == 0
    assert (simulated.root / "ledger.jsonl").is_file()


def test_a_ledger_that_is_named_is_used(tmp_path: Path, cohort: Path) -> None:
    named = kit(tmp_path / "kit", cohort, ledger="../ledgers/ward")
    pay(named, 1)
    assert (tmp_path / "ledgers" / "ward" / "ledger.jsonl").is_file()
    assert not cohort.with_name("ward.ledger").exists()


@pytest.mark.parametrize("place", ["{cohort}/ledger", "{cohort}/.ledger"])
def test_a_ledger_inside_the_cohort_is_refused_since_preparing_deletes_it(
    tmp_path: Path, cohort: Path, place: str
) -> None:
    with pytest.raises(DataError, match="lies inside the cohort"):
        kit(tmp_path / "kit", cohort, ledger=place.format(cohort=cohort))
    (cohort / ".ledger").mkdir()  # what a slash at the end of a variable in compose.yaml makes
    with pytest.raises(DataError, match="lies inside the cohort"):
        kit(tmp_path / "other", cohort)


# --- what happens to cohorts ----------------------------------------------------------------------
def test_a_cohort_that_is_prepared_again_goes_on_with_its_ledger(site: Site, tmp_path: Path, cohort: Path) -> None:
    pay(site, 1)
    tiny_cohort(cohort, 5)  # with one more patient, in place of the first folder
    fresh = kit(tmp_path / "fresh", cohort)
    assert spent(fresh) == pytest.approx(cost(1))
    lines = [line for line in fresh.open_ledger().lines() if line.kind == "patients"]
    assert [len(line.body["patients"]) for line in lines] == [4, 1], "the one more alone is new"
    assert not any(name in line.raw.decode() for line in lines for name in ("p00", "p04")), "names are not in it"


def test_a_second_kit_cannot_name_a_fresh_ledger_for_the_same_patients(
    site: Site, tmp_path: Path, cohort: Path
) -> None:
    pay(site, 1)
    for place in ("own", str(cohort.with_name("fresh.ledger")), "../fresh"):
        with pytest.raises((DataError, PrivacyError), match=r"paid in another ledger|ledger is gone"):
            kit(tmp_path / "other", cohort, ledger=place)
    (cohort / MARKER).unlink()  # as in a cohort on a disk that cannot be written
    with pytest.raises(DataError, match="4 of 4 patients are known in"):
        kit(tmp_path / "third", cohort, ledger="own")


def test_a_renamed_cohort_is_refused_until_its_ledger_comes_along(site: Site, tmp_path: Path, cohort: Path) -> None:
    pay(site, 1)
    renamed = cohort.rename(cohort.with_name("heart"))
    for folder in (site.root, tmp_path / "new"):
        with pytest.raises((DataError, PrivacyError), match=r"paid in another ledger|ledger is gone"):
            kit(folder, renamed)
    cohort.with_name("ward.ledger").rename(cohort.with_name("heart.ledger"))
    assert spent(kit(tmp_path / "new", renamed)) == pytest.approx(cost(1))


def test_a_copy_of_the_cohort_elsewhere_asks_for_its_ledger(site: Site, tmp_path: Path, cohort: Path) -> None:
    pay(site, 1)
    copy = Path(shutil.copytree(cohort, tmp_path / "elsewhere" / "ward"))
    with pytest.raises(PrivacyError, match=r"ledger is gone.*the cohort's folder"):
        kit(tmp_path / "other", copy)


def test_some_of_its_patients_in_another_cohort_beside_are_found(site: Site, tmp_path: Path, cohort: Path) -> None:
    pay(site, 1)
    few = tiny_cohort(cohort.with_name("few"), 1).root
    with pytest.raises(DataError, match=r"1 of 1 patients are known in .*ward\.ledger"):
        kit(tmp_path / "other", few)
    assert not few.with_name("few.ledger").exists()
    shared = kit(tmp_path / "other", few, ledger=str(cohort.with_name("ward.ledger")))
    assert spent(shared) == pytest.approx(cost(1))


def other_pictures(path: Path, patients: int) -> Path:
    """Patients of the same names whose pixels differ, as at another size."""
    made = [tiny_patient(i) for i in range(patients)]
    for patient in made:
        for volume in patient.volumes:
            volume.image[:] *= 0.5
    return write_cohort(path, made, name="d", source="t", size_px=16, labels=(2, 3), preparation={}).root


def test_the_same_names_in_other_pictures_need_a_word_of_the_owner(site: Site, tmp_path: Path, cohort: Path) -> None:
    pay(site, 1)
    again = other_pictures(cohort.with_name("ward128"), 4)
    with pytest.raises(DataError, match=r"set \"ledger\": \".*ward128\.ledger\""):
        kit(tmp_path / "other", again)
    assert spent(kit(tmp_path / "other", again, ledger=str(again.with_name("ward128.ledger")))) == 0


def test_a_patient_who_moves_into_a_cohort_with_a_ledger_of_its_own_is_refused(tmp_path: Path, cohort: Path) -> None:
    pay(kit(tmp_path / "one", cohort), 1)
    other = write_cohort(
        cohort.with_name("other"), [tiny_patient(9)], name="d", source="t", size_px=16, labels=(2, 3), preparation={}
    )
    two = kit(tmp_path / "two", other.root)
    pay(two, 1)
    patients = [tiny_patient(9), tiny_patient(0)]
    write_cohort(other.root, patients, name="d", source="t", size_px=16, labels=(2, 3), preparation={})
    with pytest.raises(DataError, match="paid in another ledger"):
        Site.open(two.root).open_ledger()


# --- ledgers that are gone or older -----------------------------------------------------------------
def backup(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in folder.iterdir() if path.is_file()}


def restore(saved: dict[Path, bytes], *names: str) -> None:
    for path, data in saved.items():
        if path.name in names:
            path.write_bytes(data)


def test_what_is_restored_is_noticed_and_the_sites_copy_puts_the_rest_back(site: Site, cohort: Path) -> None:
    pay(site, 1)
    saved = backup(cohort.with_name("ward.ledger"))
    pay(site, 2)
    restore(saved, *FILES)
    with pytest.raises(PrivacyError, match=r"older than what the site remembers.*own copy.*--repair"):
        site.open_ledger()
    history = PrivacyLedger(site.root).repair("restored Monday's backup")
    assert (history.unbounded, len(history.events)) == (0, 2)
    assert spent(site) == pytest.approx(cost(2))


@pytest.mark.parametrize("name", FILES)
def test_one_restored_file_is_noticed_and_nothing_is_lost(site: Site, cohort: Path, name: str) -> None:
    pay(site, 1)
    saved = backup(cohort.with_name("ward.ledger"))
    pay(site, 2)
    restore(saved, name)
    with pytest.raises(PrivacyError, match=r"is damaged|older than"):
        site.open_ledger()
    assert PrivacyLedger(site.root).repair("one file came back").unbounded == 0
    assert spent(site) == pytest.approx(cost(2))


@pytest.mark.parametrize("lost", [("ledger.jsonl",), ("ledger.head",), FILES, ("ward.ledger",)])
def test_what_is_deleted_is_put_back_from_the_copy(site: Site, cohort: Path, lost: tuple[str, ...]) -> None:
    pay(site, 1, 2)
    folder = cohort.with_name("ward.ledger")
    for name in lost:
        shutil.rmtree(folder) if name == "ward.ledger" else (folder / name).unlink()
    if lost != ("ledger.jsonl",):  # its head follows... nothing: an interrupted append is finished where it can be
        with pytest.raises(PrivacyError):
            site.open_ledger()
    PrivacyLedger(site.root).repair("deleted by mistake")
    assert site.open_ledger().history().unbounded == 0
    assert spent(site) == pytest.approx(cost(2))


def test_a_ledger_that_is_restored_with_the_copy_is_noticed_by_journal_and_replies(site: Site, cohort: Path) -> None:
    journal = Journal(site.root)
    journal.start()
    pay(site, 1)
    saved = backup(cohort.with_name("ward.ledger"), site.root)
    pay(site, 2)
    journal.write("trained", round=2, ledger=site.open_ledger().lines()[-1].hash)
    restore(saved, *FILES, COPY)
    with pytest.raises(PrivacyError, match=r"1 line\(s\) missing that are named in the journal"):
        site.open_ledger()
    assert PrivacyLedger(site.root).repair("restored").unbounded == 1
    assert spent(site) == float("inf")


def test_deleting_ledger_copy_and_state_leaves_traces_and_the_repair_is_unbounded(site: Site, cohort: Path) -> None:
    Journal(site.root).start()
    pay(site, 1)
    Journal(site.root).write("trained", round=1)
    shutil.rmtree(cohort.with_name("ward.ledger"))
    (site.root / COPY).unlink()
    for trace in ("the journal", "the cohort's folder"):
        with pytest.raises(PrivacyError, match=f"ledger is gone.*{trace}"):
            Site.register(site.root, site.record, POLICY)
    assert PrivacyLedger(site.root).repair("all is gone").unbounded >= 1
    assert spent(site) == float("inf")


def test_two_sites_with_a_gap_between_their_copies_are_unbounded_after_a_restore(
    site: Site, tmp_path: Path, cohort: Path
) -> None:
    pay(site, 1)
    saved = backup(cohort.with_name("ward.ledger"))
    other = kit(tmp_path / "other", cohort)
    pay(other, 2)
    pay(site, 3)
    pay(other, 4)
    restore(saved, *FILES)
    PrivacyLedger(site.root).repair("restored")  # whose copy ends with round 3
    assert spent(site) == float("inf")


def test_a_later_state_that_a_coordinator_was_told_of_is_demanded(site: Site, cohort: Path) -> None:
    """All of the site's own folders are restored: nothing there can know better."""
    pay(site, 1)
    folders = (cohort.with_name("ward.ledger"), site.root)
    saved = backup(*folders)
    pay(site, 2)
    told = site.open_ledger().lines()[-1].hash
    restore(saved, *(path.name for path in saved))
    site.open_ledger().demand(site.open_ledger().lines()[-1].hash)
    with pytest.raises(PrivacyError, match=f"received a later state of this site.*--missing {told}"):
        site.open_ledger().demand(told)
    with pytest.raises(PrivacyError, match="nothing to repair"):
        PrivacyLedger(site.root).repair("restored")
    assert PrivacyLedger(site.root).repair("restored", [told]).unbounded == 1
    site.open_ledger().demand(told)
    assert spent(site) == float("inf")


@pytest.mark.parametrize("name", ["x; rm -rf /", "", "A" * 64, "f" * 63, "f" * 65, "f" * 64 + "\n"])
def test_what_is_no_hash_is_in_no_advice(site: Site, name: str) -> None:
    """A message that tells the owner what to type holds nothing that a coordinator made up."""
    with pytest.raises(SiteRefused, match="names no state of a privacy ledger") as caught:
        site.open_ledger().demand(name)
    assert name == "" or name not in str(caught.value)
    with pytest.raises(ConfigError, match="named by its hash"):
        PrivacyLedger(site.root).repair("restored", [name])


def test_sites_that_start_at_once_make_one_ledger(
    tmp_path: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PrivacyLedger.create

    def overtaken(root: Path) -> PrivacyLedger:
        monkeypatch.setattr(PrivacyLedger, "create", original)
        kit(tmp_path / "first", cohort)
        return original(root)

    monkeypatch.setattr(PrivacyLedger, "create", overtaken)
    pay(kit(tmp_path / "second", cohort), 1)
    assert spent(Site.open(tmp_path / "first")) == pytest.approx(cost(1))


# --- earlier versions -------------------------------------------------------------------------------
def earlier_version(root: Path, cohort: Path, *numbers: int) -> list[str]:
    """A site whose ledger lies in its own folder; hashes of its lines."""
    root.mkdir(parents=True)
    ledger = PrivacyLedger.create(root)
    for number in numbers:
        ledger.commit(ledger.reserve(event(number)))
    (root / "site.json").write_text(json.dumps({"name": root.name, "cohort": str(cohort)}))
    POLICY.save(root / "policy.yaml")
    (root / "state" / "r" / "image" / "round-0001").mkdir(parents=True)
    return [line.hash for line in ledger.lines()]


def test_the_ledger_of_an_earlier_version_is_moved_once(tmp_path: Path, cohort: Path) -> None:
    root = tmp_path / "kit"
    hashes = earlier_version(root, cohort, 1, 2)
    (root / COPY).unlink(missing_ok=True)
    assert PrivacyLedger(root).history().epsilon(1e-2).prv == pytest.approx(cost(2)), "before it is moved"
    for _ in range(2):
        site = kit(root, cohort)
        assert spent(site) == pytest.approx(cost(2))
        assert [p.committed for p in site.open_ledger().history().payments] == [True, True]
    site.open_ledger().demand(hashes[-1])
    assert not (root / "ledger.jsonl").exists()
    assert (root / "ledger.moved.jsonl").exists()


def test_two_kits_of_an_earlier_version_are_joined(tmp_path: Path, cohort: Path) -> None:
    for name in ("a", "b"):
        earlier_version(tmp_path / name, cohort, 1, 2)
    for name in ("a", "b", "a"):
        site = kit(tmp_path / name, cohort)
    assert spent(site) == pytest.approx(cost(4))


@pytest.mark.parametrize("done", [0, 1, 2, 3, 4])
def test_a_crash_while_it_is_moved_loses_and_doubles_nothing(
    tmp_path: Path, cohort: Path, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    root = tmp_path / "kit"
    earlier_version(root, cohort, 1, 2)
    left = [done]

    def crash_later(original):
        def act(*args, **kwargs):
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return original(*args, **kwargs)

        return act

    with monkeypatch.context() as dying:
        for kind, name in ((Chain, "append"), (Memory, "follow")):
            dying.setattr(kind, name, crash_later(getattr(kind, name)))
        with pytest.raises(KeyboardInterrupt):
            kit(root, cohort)
    assert spent(kit(root, cohort)) == pytest.approx(cost(2))
