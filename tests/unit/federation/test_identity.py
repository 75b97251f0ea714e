import json
import stat

import pytest

from cmrfed.federation.identity import Identity, make_identities


@pytest.fixture
def sites(tmp_path):
    roots = [tmp_path / name for name in ("a", "b")]
    for root in roots:
        root.mkdir()
        (root / "site.json").write_text(json.dumps({"name": root.name}), encoding="utf-8")
    return roots


def keys(roots):
    return [(root / "identity" / "node" / "node.key").read_bytes() for root in roots]


def test_keys_are_the_owners_alone_and_stay(sites):
    make_identities(sites)
    first = keys(sites)
    make_identities(sites)
    assert keys(sites) == first
    for root in sites:
        assert stat.S_IMODE((root / "identity" / "node" / "node.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("kept", [0, 40])
def test_a_key_that_a_killed_process_had_only_begun_is_made_anew(sites, kept):
    make_identities(sites)
    (whole, other), path = keys(sites), sites[0] / "identity" / "node" / "node.key"
    path.write_bytes(whole[:kept])
    make_identities(sites)
    assert keys(sites)[0] not in (whole, whole[:kept])
    assert keys(sites)[1] == other
    a, b = map(Identity.of_site, sites)
    b.verify("a", b"statement", a.sign(b"statement"))
