"""What the coordinator decides, with Flower's answers given."""

from pathlib import Path
from typing import Any

import pytest

from cmrfed.config.experiment import resolve
from cmrfed.core.artifacts import read_json, write_json
from cmrfed.core.errors import ConfigError, DataError, InUse
from cmrfed.deploy import coordinator
from cmrfed.deploy.provision import provision
from tests.deployment_world import make_federation, write_recipe
from tests.support import content, other_owner


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    provision(make_federation(2), tmp_path / "kits")
    return tmp_path / "kits" / "coordinator"


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Flower's answers: what runs, and what was asked."""
    told: dict[str, Any] = {"runs": [], "asked": []}

    def answer(kit_folder: Path, *arguments: str) -> dict[str, Any]:
        told["asked"].append(arguments)
        if arguments[0] == "run":
            told["runs"].append({"run-id": f"{len(told['runs']) + 1}", "status": "running"})
            return told["runs"][-1]
        if arguments[:2] == ("supernode", "register"):
            return {"node-id": str(len(told["asked"]))}
        return {"runs": told["runs"], "nodes": []}

    monkeypatch.setattr(coordinator, "_flwr", answer)
    return told


def test_a_run_is_submitted_with_everything_that_it_needs(kit: Path, tmp_path: Path, flower: dict[str, Any]) -> None:
    assert coordinator.submit(kit, write_recipe(tmp_path / "r.yaml", 2), ["seed=3"]) == "tiny"
    about = read_json(kit / "runs" / "tiny" / "submission.json")
    assert about["flower_run"] == "1"
    assert len(about["bundle"]) == 64
    assert 'sites="site-0 site-1"' in flower["asked"][-1][-1]
    assert coordinator.resolve(kit / "runs" / "tiny" / "recipe.yaml").digest == about["digest"]


def test_a_second_start_is_refused_and_leaves_the_first_ones_certificates(kit: Path) -> None:
    (kit / "state" / "inner").mkdir(parents=True)
    (kit / "state" / "inner" / "server.crt").write_bytes(b"in use")
    with other_owner(kit / "state") as pid:
        before = content(kit)
        with pytest.raises(InUse, match=rf"the coordinator .* is in use.*pid {pid}"):
            coordinator.start(kit)
        assert content(kit) == before


def test_a_run_in_progress_is_not_submitted_again(kit: Path, tmp_path: Path, flower: dict[str, Any]) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", 2)
    coordinator.submit(kit, recipe, [])
    with other_owner(kit / "runs" / "tiny"):
        before, asked = content(kit), len(flower["asked"])
        with pytest.raises(InUse, match=r"run tiny, .* is in use"):
            coordinator.submit(kit, recipe, [])
        assert (content(kit), len(flower["asked"])) == (before, asked)
    coordinator.submit(kit, recipe, [])
    assert len(flower["asked"]) > asked


def test_a_recipe_for_another_number_of_sites_is_refused(kit: Path, tmp_path: Path, flower: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"Expected: 2: site-0, site-1. Do: --set data.partition.sites=2"):
        coordinator.submit(kit, write_recipe(tmp_path / "r.yaml", 3), [])
    assert not flower["asked"]


def write_record(folder: Path, changes: dict) -> None:
    experiment = resolve(folder / "recipe.yaml")
    record = {"experiment": experiment.model_dump(mode="json"), "digest": experiment.digest}
    write_json(folder / "run.json", record | changes)


def test_another_experiment_of_the_same_name_is_refused(kit: Path, tmp_path: Path, flower: dict[str, Any]) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", 2)
    coordinator.submit(kit, recipe, [])
    with pytest.raises(ConfigError, match="another run is called tiny"):
        coordinator.submit(kit, recipe, ["seed=9"])


@pytest.mark.parametrize(
    ("change", "record", "goes_on"),
    [
        ({}, {"finished": None, "problem": None}, True),
        ({}, {"finished": None, "problem": "too few sites"}, False),
        ({}, {"finished": "2030-01-01", "problem": None}, False),
        ({"stopped": True}, {"finished": None, "problem": None}, False),
    ],
)
def test_only_what_was_killed_goes_on_by_itself(
    kit: Path, tmp_path: Path, flower: dict[str, Any], change: dict, record: dict, goes_on: bool
) -> None:
    coordinator.submit(kit, write_recipe(tmp_path / "r.yaml", 2), [])
    folder = kit / "runs" / "tiny"
    assert coordinator.interrupted(kit) == []  # Flower still runs it
    flower["runs"][0]["status"] = "finished:failed"
    write_json(folder / "submission.json", read_json(folder / "submission.json") | change)
    write_record(folder, record)
    assert coordinator.interrupted(kit) == (["tiny"] if goes_on else [])


def test_a_run_that_finishes_while_flower_is_asked_is_not_begun_again(
    kit: Path, tmp_path: Path, flower: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    coordinator.submit(kit, write_recipe(tmp_path / "r.yaml", 2), [])

    def finish(kit_folder: Path) -> list[dict[str, str]]:
        write_record(kit / "runs" / "tiny", {"finished": "2030-01-01"})
        return [{"run-id": "1", "status": "finished:completed"}]

    monkeypatch.setattr(coordinator, "_runs", finish)
    assert coordinator.interrupted(kit) == []


def test_a_run_that_dies_again_and_again_is_left_alone(kit: Path, tmp_path: Path, flower: dict[str, Any]) -> None:
    coordinator.submit(kit, write_recipe(tmp_path / "r.yaml", 2), [])
    flower["runs"][0]["status"] = "finished:failed"
    tried = [coordinator.interrupted(kit) for _ in range(coordinator.RESUMES + 2)]
    assert tried == [["tiny"]] * coordinator.RESUMES + [[], []]


def test_new_and_changed_keys_are_registered_and_old_ones_struck_off(kit: Path, flower: dict[str, Any]) -> None:
    about = coordinator.read_coordinator_kit(kit)
    coordinator.register_sites(kit, about)
    assert [a[:2] for a in flower["asked"]] == [("supernode", "register")] * 2
    first = read_json(kit / "state" / "registered.json")["site-0"]["node"]
    coordinator.register_sites(kit, about)
    assert len(flower["asked"]) == 2  # nothing to do
    (kit / "sites" / "site-0.pub").write_bytes(b"another key")
    coordinator.register_sites(kit, about.model_copy(update={"sites": ("site-0",)}))
    done = [a[1:3] for a in flower["asked"][2:]]
    assert ("unregister", first) in done
    assert sum(what == "unregister" for what, _ in done) == 2  # site-1 is gone
    assert set(read_json(kit / "state" / "registered.json")) == {"site-0"}


def test_only_a_finished_run_is_fetched(kit: Path, tmp_path: Path, flower: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="there is no run tiny"):
        coordinator.fetch(kit, "tiny", tmp_path / "out")
    coordinator.submit(kit, write_recipe(tmp_path / "r.yaml", 2), [])
    with pytest.raises(DataError, match="run tiny is not finished"):
        coordinator.fetch(kit, "tiny", tmp_path / "out")
    assert not (tmp_path / "out").exists()
