import hashlib
import stat
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec

from cmrfed.core.errors import ConfigError, SiteRefused
from cmrfed.deploy.certificates import Authority, days_left, public_key, read_certificate, read_key, write_key
from cmrfed.deploy.kit import Federation, read_coordinator_kit, read_site_kit
from cmrfed.deploy.provision import make_own_keys, provision, revoke
from cmrfed.federation.identity import Identity
from cmrfed.federation.site.site import Site
from cmrfed.privacy.ledger.place import assigned_folder
from cmrfed.privacy.policy import SitePolicy
from tests.deployment_world import make_federation


def private_files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and b"PRIVATE KEY" in path.read_bytes()]


def test_each_kit_holds_its_own_keys_and_nobody_elses(tmp_path: Path) -> None:
    provision(make_federation(3), tmp_path)
    keys = {path.relative_to(tmp_path).as_posix(): path for path in private_files(tmp_path)}
    sites = {f"site-{i}/{name}" for i in range(3) for name in ("tls/client.key", "node/node.key")}
    assert set(keys) == sites | {"authority/ca.key", "coordinator/tls/server.key"}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in keys.values())
    assert len({path.read_bytes() for path in keys.values()}) == len(keys)


def test_a_kit_says_who_it_is_and_what_to_type(tmp_path: Path) -> None:
    federation = make_federation(2)
    provision(federation, tmp_path)
    kit = read_site_kit(tmp_path / "site-1")
    assert (kit.name, kit.coordinator_port) == ("site-1", federation.coordinator.port)
    assert read_coordinator_kit(tmp_path / "coordinator").sites == ("site-0", "site-1")
    site = Site.open(tmp_path / "site-1" / "site")
    assert (site.record.name, site.record.style) == ("site-1", 1)
    policy = SitePolicy.load(tmp_path / "site-1" / "site" / "policy.yaml")
    assert policy.permitted_units == ("patient",)
    assert policy.epsilon_cap == 8
    assert not policy.may_leave.losses
    readme = (tmp_path / "site-1" / "README.md").read_text()
    for command in ("cmrfed prepare", "cmrfed site check .", "cmrfed site start ."):
        assert command in readme
    compose = yaml.safe_load((tmp_path / "site-1" / "compose.yaml").read_text())
    assert compose["services"]["node"]["networks"] == ["inside"]
    assert compose["networks"]["inside"]["internal"] is True
    for service in compose["services"].values():
        assert service["read_only"] is True


def test_the_ledger_of_the_cohort_is_mounted_beside_it_and_can_be_written(tmp_path: Path) -> None:
    """Whatever kit the containers are of, they pay into the ledger that lies beside the cohort."""
    provision(make_federation(2), tmp_path)
    node = yaml.safe_load((tmp_path / "site-1" / "compose.yaml").read_text())["services"]["node"]
    mounts = {target: (source, *mode) for source, target, *mode in map(_mount, node["volumes"])}
    cohort, ledger = mounts["/kit/site/cohort"], mounts["/kit/site/cohort.ledger"]
    assert cohort[1:] == ("ro",)
    assert ledger == (f"{cohort[0]}.ledger",), "writable, and named after the cohort"
    assert assigned_folder(tmp_path / "site-1" / "site").name == "cohort.ledger", "where the site looks for it"


def _mount(volume: str) -> list[str]:
    """Source, target and mode of a volume, whose source may have a colon in braces."""
    source, target = volume.split(":/kit", 1)
    return [source, *f"/kit{target}".split(":")]


def test_the_sites_folder_of_a_kit_is_its_owners_alone(tmp_path: Path) -> None:
    provision(make_federation(2), tmp_path)
    folder = tmp_path / "site-1" / "site"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder, *folder.iterdir())}
    assert modes == {"site": 0o700, "site.json": 0o600, "policy.yaml": 0o600}


def test_checksums_cover_what_was_provisioned(tmp_path: Path) -> None:
    made = provision(make_federation(1), tmp_path)
    for one in made:
        text = (one.folder / "SHA256SUMS").read_text()
        assert hashlib.sha256(text.encode()).hexdigest() == one.digest
        for line in text.splitlines():
            digest, name = line.split("  ")
            assert hashlib.sha256((one.folder / name).read_bytes()).hexdigest() == digest
    assert {"tls/client.crt", "kit.json", "gate.conf"} <= {line.split("  ")[1] for line in text.splitlines()}


def test_doing_it_again_adds_a_site_and_changes_no_key_and_no_policy(tmp_path: Path) -> None:
    federation = make_federation(2)
    first = federation.model_copy(update={"sites": federation.sites[:1]})
    provision(first, tmp_path)
    policy = tmp_path / "site-0" / "site" / "policy.yaml"
    policy.write_text(policy.read_text().replace("epsilon_cap: 8", "epsilon_cap: 2"))
    before = {path: path.read_bytes() for path in [*private_files(tmp_path), policy]}
    crt = (tmp_path / "site-0" / "tls" / "client.crt").read_bytes()
    provision(federation, tmp_path)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert (tmp_path / "site-0" / "tls" / "client.crt").read_bytes() == crt
    assert read_coordinator_kit(tmp_path / "coordinator").sites == ("site-0", "site-1")
    assert (tmp_path / "coordinator" / "sites" / "site-1.pub").exists()


def test_renewal_makes_new_certificates_for_the_same_keys(tmp_path: Path) -> None:
    federation = make_federation(1).model_copy(update={"validity_days": 5})
    provision(federation, tmp_path)
    path = tmp_path / "site-0" / "tls" / "client.crt"
    old, key = read_certificate(path).serial_number, public_key(path)
    assert 4.9 < days_left(path) < 5.1
    provision(federation.model_copy(update={"validity_days": 50}), tmp_path, renew=True)
    assert read_certificate(path).serial_number != old
    assert public_key(path) == key
    assert days_left(path) > 49


def test_a_site_may_keep_its_own_keys(tmp_path: Path) -> None:
    request, node = make_own_keys(tmp_path / "own", "site-0")
    federation = make_federation(1, request=request, node_key=node)
    provision(federation, tmp_path / "kits")
    kit = tmp_path / "kits" / "site-0"
    assert not private_files(kit)
    assert public_key(kit / "tls" / "client.crt") == read_key(tmp_path / "own" / "tls" / "client.key").public_key()
    assert (tmp_path / "kits" / "coordinator" / "sites" / "site-0.pub").read_bytes() == node.read_bytes()
    assert "your own keys" in (kit / "README.md").read_text()


def test_own_keys_are_never_replaced(tmp_path: Path) -> None:
    make_own_keys(tmp_path / "own", "site-0")
    with pytest.raises(ConfigError, match="is not empty"):
        make_own_keys(tmp_path / "own", "site-0")
    with pytest.raises(FileExistsError):
        write_key(tmp_path / "own" / "tls" / "client.key")


def test_a_request_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    request, node = make_own_keys(tmp_path / "own", "site-0")
    lines = request.read_text().splitlines()
    lines[3] = lines[3][::-1]
    request.write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"request .* (cannot be read|is not sound)"):
        provision(make_federation(1, request=request, node_key=node), tmp_path / "kits")


def test_a_revoked_certificate_is_on_the_list_of_the_coordinator(tmp_path: Path) -> None:
    from cryptography import x509

    provision(make_federation(2), tmp_path)
    revoked = revoke(tmp_path, "site-1")
    serial = read_certificate(tmp_path / "site-1" / "tls" / "client.crt").serial_number
    listed = x509.load_pem_x509_crl(revoked.read_bytes())
    assert [entry.serial_number for entry in listed] == [serial]
    with pytest.raises(ConfigError, match="has no kit of site-9"):
        revoke(tmp_path, "site-9")


def test_certificates_are_bound_to_their_purpose(tmp_path: Path) -> None:
    from cryptography import x509

    authority = Authority.open(tmp_path, "f")
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    for names, purpose in ((("localhost", "127.0.0.1"), "serverAuth"), ((), "clientAuth")):
        made = x509.load_pem_x509_certificate(authority.issue("x", key, 3, server_names=names))
        usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        assert [one._name for one in usage] == [purpose]
        assert made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sites": [{"name": "a"}, {"name": "A"}]}, "a name of its own"),
        ({"sites": [{"name": "coordinator"}]}, "not coordinator"),
        ({"sites": [{"name": "a", "request": "x.csr"}]}, "belong together"),
        ({"coordinator": {"host": "a b"}}, "coordinator.host"),
        ({"sitess": []}, "sitess"),
    ],
)
def test_a_wrong_federation_file_is_explained(tmp_path: Path, change: dict[str, object], words: str) -> None:
    path = tmp_path / "federation.yaml"
    tree = {"name": "f", "coordinator": {"host": "h.example"}, "sites": [{"name": "a"}]}
    path.write_text(yaml.safe_dump({**tree, **change}))
    with pytest.raises(ConfigError, match=words):
        Federation.read(path)


def test_paths_in_a_federation_file_are_relative_to_it(tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    site = {"name": "a", "request": "keys/a.csr", "node_key": "keys/a.pub"}
    path.write_text(yaml.safe_dump({"name": "f", "coordinator": {"host": "h.example"}, "sites": [site]}))
    assert Federation.read(path).sites[0].request == tmp_path / "keys" / "a.csr"


def test_a_folder_that_is_no_kit_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a kit"):
        read_site_kit(tmp_path)
    provision(make_federation(1), tmp_path)
    with pytest.raises(ConfigError, match="is not the kit of a coordinator"):
        read_coordinator_kit(tmp_path / "site-0")


def test_each_kit_has_the_public_keys_of_all_sites_and_a_new_site_reaches_every_kit(tmp_path: Path) -> None:
    provision(make_federation(2), tmp_path)
    statement = b"what is signed"
    signed = Identity.of_site(tmp_path / "site-1" / "site").sign(statement)
    Identity.of_site(tmp_path / "site-0" / "site").verify("site-1", statement, signed)
    with pytest.raises(SiteRefused, match="were not signed by site-0"):
        Identity.of_site(tmp_path / "site-0" / "site").verify("site-0", statement, signed)
    made = provision(make_federation(3), tmp_path)
    for one in made[1:]:
        assert {path.name for path in (one.folder / "peers").iterdir()} == {f"site-{i}.pub" for i in range(3)}
        assert "peers/site-2.pub" in (one.folder / "SHA256SUMS").read_text()
        assert hashlib.sha256((one.folder / "SHA256SUMS").read_bytes()).hexdigest() == one.digest
    provision(make_federation(2), tmp_path)
    assert not (tmp_path / "site-0" / "peers" / "site-2.pub").exists(), "a site that was taken out"
