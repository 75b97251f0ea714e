"""A federation as it is deployed: kits, proxies with mutual TLS, Flower's processes, and what can go wrong."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest

from cmrfed.config.experiment import resolve
from cmrfed.core.artifacts import digest_state, load_state, read_json
from cmrfed.deploy import coordinator as operator
from cmrfed.deploy.approval import Approvals
from cmrfed.deploy.bundle import installed_digest
from cmrfed.deploy.site_node import join
from cmrfed.federation.local_grid import LocalGrid
from cmrfed.pipeline.run import run_deployed
from cmrfed.pipeline.synthesis import synthesize_run
from cmrfed.privacy.ledger.journal import Journal
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from tests.deployment_world import Deployment, deployment, needs_nginx, write_recipe

pytestmark = [
    needs_nginx,
    pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="finds processes through /proc"),
    pytest.mark.timeout(3600),
]


def weights(run_dir: Path) -> dict[str, str]:
    """Digest of the last weights of both stages."""
    return {
        stage: digest_state(load_state(run_dir / stage / "round-0002" / "global.safetensors")[0])
        for stage in ("mask", "image")
    }


def test_from_kits_to_synthetic_patients_with_the_weights_of_one_process(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "recipe.yaml", sites=2)
    with deployment(tmp_path / "kits", sites=2) as made:
        made.approve()
        made.start_all()
        made.ready()
        assert operator.submit(made.coordinator, recipe, ["seed=4"]) == "tiny"
        made.wait(made.finished, 400)
        told = "\n".join(operator.status_lines(made.coordinator))
        assert "run tiny: finished" in told
        assert told.count("ok: no guarantee, loss") == 4
        fetched = operator.fetch(made.coordinator, "tiny", tmp_path / "fetched")
        for kit in made.sites:
            entries = list(Journal(kit / "site").read())
            assert all(e.sound for e in entries)
            assert sum(e.kind == "asked" and e.body["kind"] == "train" for e in entries) == 4
            assert sum(e.body["bytes"] for e in entries if e.kind == "left") > 4 * 4 * 5000
    dataset = synthesize_run(fetched, tmp_path / "synthetic", patients=1, seed=0)
    assert len(dataset) == 2
    # the same recipe over the same sites in one process
    twin = Deployment(tmp_path / "twin", sites=2)
    for kit in twin.sites:
        join(kit)
    experiment = resolve(recipe, ["seed=4"])
    grid = LocalGrid([kit / "site" for kit in twin.sites])
    run_deployed(experiment, tmp_path / "local", grid, [kit.name for kit in twin.sites])
    assert weights(tmp_path / "local") == weights(made.coordinator / "runs" / "tiny")


def test_nothing_is_lost_when_sites_proxy_and_coordinator_are_killed(tmp_path: Path) -> None:
    """site-2 has not approved the code at first; site-0 loses its power; the proxy dies; then the coordinator does."""
    recipe = write_recipe(tmp_path / "recipe.yaml", sites=3, rounds=3, min_sites=1, connect_timeout_s=60)
    with deployment(tmp_path / "kits") as made:
        for kit in made.sites[:2]:
            Approvals(kit / "site").approve(installed_digest())
        made.start_all()
        made.ready()
        operator.submit(made.coordinator, recipe, [])
        made.wait(lambda: made.rounds("mask") >= 1, 300)
        assert set(made.metrics("mask", 1)["sites"]) == {"site-0", "site-1"}
        refused = [e for e in Journal(made.sites[2] / "site").read() if e.kind == "refused"]
        assert refused
        assert refused[0].body["bundle"] == installed_digest()
        assert not (made.sites[2] / "site" / "state").exists()
        made.wait(lambda: "has not approved this code" in made.said("site-2"), 60)
        # unapproved until now: from here on site-2 may
        Approvals(made.sites[2] / "site").approve(installed_digest())
        # a power cut at site-0 while it trains
        made.wait(lambda: bool(made.worker("site-0", "flwr-clientapp")), 120)
        made.kill("site-0")
        for pid in made.worker("coordinator", "nginx: master") or made.worker("coordinator", "nginx"):
            os.kill(pid, signal.SIGKILL)
        made.start("site-0")
        done = made.rounds("mask")
        made.wait(lambda: made.rounds("mask") > done, 300)
        # the coordinator's machine goes down, and comes back
        made.kill("coordinator")
        time.sleep(5)
        made.start("coordinator")
        made.wait(made.finished, 600)
        assert "was interrupted and goes on" in made.said("coordinator")
        assert {"site-0", "site-1", "site-2"} == set(made.metrics("image", 3)["sites"])
        for kit in made.sites:
            check_ledger(kit / "site", made)


def check_ledger(site: Path, made: Deployment) -> None:
    """Every reply that was aggregated was paid for at the site, and its stored state is whole."""
    ledger = PrivacyLedger(site)
    paid = {(e.stage, e.round) for e in ledger.history().events}
    for stage in ("mask", "image"):
        for number in range(1, 4):
            rows = made.metrics(stage, number)["sites"]
            name = read_json(site / "site.json")["name"]
            if name in rows and rows[name]["status"] == "ok":
                assert (stage, number) in paid
    assert not list(site.glob("state/*/*/.round-*"))


def test_a_reply_that_was_lost_on_its_way_is_sent_again_and_paid_once(tmp_path: Path) -> None:
    """Every site is needed; site-0 dies when its reply is on its disk and before it left; the network is cut too."""
    recipe = write_recipe(tmp_path / "recipe.yaml", sites=2, min_sites=2, retries=4, round_timeout_s=90)
    with deployment(tmp_path / "kits", sites=2) as made:
        made.approve()
        made.start_all()
        made.ready()
        operator.submit(made.coordinator, recipe, [])
        site = made.sites[0] / "site"
        made.wait(lambda: bool(list(site.glob("state/*/mask/round-0001/reply.safetensors"))), 300)
        made.kill("site-0")
        assert made.rounds("mask") == 0
        made.start("site-0")
        made.wait(lambda: made.rounds("mask") >= 1, 420)  # if nobody noticed, the round asks again after 90 s
        # the network is cut for 20 s
        proxies = made.worker("coordinator", "nginx")
        for pid in proxies:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(20)
        for pid in proxies:
            os.kill(pid, signal.SIGCONT)
        made.wait(made.finished, 500)
        assert {row["status"] for row in made.metrics("image", 2)["sites"].values()} == {"ok"}
        events = [(e.stage, e.round) for e in PrivacyLedger(site).history().events]
        assert events.count(("mask", 1)) == 1


def test_a_wrong_key_is_refused_and_the_administrator_told(tmp_path: Path) -> None:
    with deployment(tmp_path / "kits", sites=2) as made:
        shutil.rmtree(made.sites[1] / "node")
        from cmrfed.deploy.certificates import write_key

        write_key(made.sites[1] / "node" / "node.key", openssh=True)
        made.start_all()
        made.ready()
        made.wait(lambda: "does not activate this node" in made.said("site-1"), 120)
        assert "the operator provisions the site again" in made.said("site-1")
