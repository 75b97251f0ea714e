"""The commands of a deployment, as far as they need no network."""

from pathlib import Path

import pytest
import yaml

from cmrfed.deploy.approval import Approvals
from tests.unit.cli.test_main import is_one_paragraph


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    path = tmp_path / "federation.yaml"
    sites = [{"name": "hospital-a"}, {"name": "hospital-b"}]
    path.write_text(yaml.safe_dump({"name": "f", "coordinator": {"host": "127.0.0.1", "port": 1}, "sites": sites}))
    return path


def test_kits_are_made_and_their_digests_told(call, federation: Path, tmp_path: Path) -> None:
    status, out, err = call("provision", federation, "--out", tmp_path / "kits")
    assert status == 0
    assert [line.split()[0].rpartition("/")[2] for line in out.splitlines()] == [
        "coordinator",
        "hospital-a",
        "hospital-b",
    ]
    assert all("certificate valid for 365 days  SHA256SUMS " in line for line in out.splitlines())
    assert "off the network" in err


def test_the_example_federation_can_be_provisioned(call, tmp_path: Path) -> None:
    example = Path(__file__).parents[3] / "configs" / "federation.yaml"
    assert call("provision", example, "--out", tmp_path / "kits")[0] == 0


def test_revoking_says_what_to_copy(call, federation: Path, tmp_path: Path) -> None:
    call("provision", federation, "--out", tmp_path / "kits")
    status, _, err = call("provision", federation, "--out", tmp_path / "kits", "--revoke", "hospital-a")
    assert status == 0
    assert "revoked.crl to the coordinator" in " ".join(err.split())


def test_a_site_that_is_not_ready_exits_with_an_error_and_names_each_line(
    call, federation: Path, tmp_path: Path
) -> None:
    call("provision", federation, "--out", tmp_path / "kits")
    status, out, err = call("site", "check", tmp_path / "kits" / "hospital-a")
    assert status == 1
    lines = {line[6:].split()[0]: line for line in out.splitlines()}
    assert lines["keys"].startswith("ok")
    assert lines["data"].startswith("FAIL")
    assert lines["connection"].startswith("FAIL")
    assert is_one_paragraph(status, err)
    assert "FAIL at data, " in err


def test_code_is_approved_and_withdrawn(call, federation: Path, tmp_path: Path) -> None:
    call("provision", federation, "--out", tmp_path / "kits")
    kit = tmp_path / "kits" / "hospital-a"
    _, digest, _ = call("bundle")
    assert call("site", "approve", kit, digest.strip())[0] == 0
    assert Approvals(kit / "site").digests() == [digest.strip()]
    status, out, _ = call("site", "status", kit)
    assert status == 0
    assert f"approved: {digest.strip()}" in out
    call("site", "approve", kit, digest.strip(), "--withdraw")
    assert Approvals(kit / "site").digests() == []
    status, _, err = call("site", "approve", kit, "abc")
    assert is_one_paragraph(status, err)


def test_own_keys_say_what_to_send(call, tmp_path: Path) -> None:
    status, _, err = call("site", "keys", tmp_path / "mine", "--name", "hospital-c")
    assert status == 0
    assert "hospital-c.csr" in err
    assert "node.pub" in err


def test_a_process_that_does_not_serve_fails_its_health_check(call) -> None:
    status, _, err = call("health", "127.0.0.1:1")
    assert is_one_paragraph(status, err)


def test_the_coordinators_commands_explain_a_wrong_folder_and_a_superlink_that_is_not_there(
    call, federation: Path, tmp_path: Path
) -> None:
    status, _, err = call("coordinator", "status", tmp_path)
    assert is_one_paragraph(status, err.replace("a folder that `cmrfed provision` made.", "Do: x"))
    assert "is not a kit" in err
