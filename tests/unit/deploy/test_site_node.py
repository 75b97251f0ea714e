"""Starting a site, without Flower."""

from pathlib import Path

import pytest

from cmrfed.core.errors import InUse
from cmrfed.deploy import site_node
from cmrfed.deploy.provision import provision
from tests.deployment_world import make_federation
from tests.support import content, other_owner


@pytest.fixture
def kit(tmp_path: Path) -> Path:
    provision(make_federation(2), tmp_path / "kits")
    return tmp_path / "kits" / "site-0"


def test_a_second_start_is_refused_and_touches_nothing(kit: Path) -> None:
    with other_owner(kit / "state") as pid:
        before = content(kit)
        with pytest.raises(InUse, match=rf"the site .* is in use.*pid {pid}"):
            site_node.start(kit)
        assert content(kit) == before


def test_a_second_node_of_one_kit_is_refused(kit: Path, call) -> None:
    with other_owner(kit / "state" / "node") as pid:
        before = content(kit)
        status, _, err = call("site", "node", kit, "--gate", "localhost:1")
        assert status == 1
        assert f"pid {pid}" in err
        assert content(kit) == before
