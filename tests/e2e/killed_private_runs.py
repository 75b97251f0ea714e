"""Kills a private run, sites included, at random moments, goes on with it, and counts what left beside the ledgers.

Runs as a program of its own, single-threaded, so that it can fork: ``python -m tests.e2e.killed_private_runs FOLDER
KILLS``. The first half of the runs is killed before a random operation on the disk, the second half at a random time.
Prints JSON: {"kills": [what each site had paid and released after it, …], "finished": [the same at the end, …]}.
"""

import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from cmrfed.core.artifacts import digest_state, load_state
from cmrfed.federation.messages import StageJob, State, TrainReply
from cmrfed.federation.site.site import Site
from cmrfed.generators.generator import Generator
from cmrfed.privacy.accountant import epsilon
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from cmrfed.privacy.policy import SitePolicy
from cmrfed.privacy.settings import STRICT_DELTA, PrivateTraining
from tests.e2e.killed_runs import count_operations
from tests.federation_world import federated_run, make_sites, site_roots, tiny_stage

ROUNDS, STEPS, SITES, KILLS_EACH = 3, 2, 2, 6
ASKED = PrivateTraining(
    unit="patient", noise_multiplier=2.0, sampling_rate=0.5, noise_multiplicity=1, declared_patients=3, clip_norm=0.5
)
POLICY = SitePolicy(epsilon_cap=200.0, delta=1e-2, smallest_cohort=1)

Release = tuple[str, str]
"""Request and digest of the weights that answered it."""


def train(run_dir: Path) -> None:
    stage = replace(tiny_stage(rounds=ROUNDS, steps=STEPS), privacy=ASKED)
    federated_run(run_dir, stage, sites=SITES, weighting="equal").start_or_resume()


# --- the observer -------------------------------------------------------------------------------
def note_what_leaves(run_dir: Path) -> None:
    """From here on every reply is noted outside the site before it leaves it."""
    original = Site.train_round

    def train_round(self: Site, job: StageJob, arrays: State, codec: State | None = None) -> TrainReply:
        reply = original(self, job, arrays, codec)
        note = json.dumps([self.root.name, job.key, digest_state(reply.arrays or {})]) + "\n"
        handle = os.open(run_dir / "left", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(handle, note.encode())
        os.fsync(handle)
        os.close(handle)
        return reply

    Site.train_round = train_round  # type: ignore[method-assign]


def left(run_dir: Path) -> list[tuple[str, Release]]:
    """Site and release of every reply that left its site, in order."""
    path = run_dir / "left"
    notes = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [(site, (key, digest)) for site, key, digest in notes]


def stored(root: Path) -> set[Release]:
    """Replies on the disk of a site, those in folders that were never finished included."""
    found = set()
    for path in root.glob("state/*/*/*/reply.safetensors"):
        arrays, told = load_state(path)
        found.add((told["key"], digest_state(arrays)))
    return found


def cost(releases: int, delta: float = POLICY.delta) -> float:
    """ε of so many rounds, from what was asked alone."""
    asked = {"noise_multiplier": ASKED.noise_multiplier, "sampling_rate": ASKED.sampling_rate, "steps": STEPS}
    event = PrivacyEvent(**asked, run="", stage="", round=1, digest="")
    return epsilon([event] * releases, delta).prv


def paid(root: Path) -> tuple[float, int]:
    """ε and number of reservations in the ledger of a site, read from a copy: reading finishes what a crash cut off."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("ledger.jsonl", "ledger.head"):
            shutil.copy(root / name, folder)
        history = PrivacyLedger(Path(folder)).history()
    return history.epsilon(POLICY.delta).prv, len(history.events)


class Observer:
    """Remembers all that was ever visible of one run."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.visible: dict[str, set[Release]] = {root.name: set() for root in site_roots(run_dir, SITES)}

    def look(self) -> dict[str, dict[str, Any]]:
        """Per site: what its ledger says, and what an uninterrupted observer counts."""
        for site, release in left(self.run_dir):
            self.visible[site].add(release)
        seen = {}
        for root in site_roots(self.run_dir, SITES):
            self.visible[root.name] |= stored(root)
            spent, reservations = paid(root)
            releases = len(self.visible[root.name])
            seen[root.name] = {
                "spent": spent,
                "observed": cost(releases),
                "reservations": reservations,
                "releases": releases,
            }
        return seen

    def answered_twice(self) -> int:
        """Requests to which two different updates left."""
        out = {(site, key): set() for site, (key, _) in left(self.run_dir)}
        for site, (key, digest) in left(self.run_dir):
            out[site, key].add(digest)
        return sum(len(digests) > 1 for digests in out.values())


# --- killing ------------------------------------------------------------------------------------
def in_child(run_dir: Path, kill_before: int | None = None, kill_after_s: float | None = None) -> bool:
    """Train in a forked process; return whether it was killed before it was done."""
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

        def before_each(number: int) -> None:
            if number == kill_before:
                os.kill(os.getpid(), signal.SIGKILL)

        count = count_operations(before_each)
        note_what_leaves(run_dir)
        train(run_dir)
        (run_dir / "operations").write_text(str(count[0]))
        os._exit(0)
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, -signal.SIGKILL), f"the run failed by itself: {code}"
    return code != 0


def outcome(run_dir: Path) -> dict[str, bool]:
    """Whether the weights of a finished run are finite and load."""
    last = load_state(run_dir / "image" / f"round-{ROUNDS:04d}" / "global.safetensors")[0]
    network = Generator.load(run_dir / "generators" / "image").network
    tensors = [*last.values(), *network.state_dict().values()]
    return {
        "finite": all(bool(torch.isfinite(t).all()) for t in tensors),
        "whole": set(last) == set(network.state_dict()),
    }


def kill_and_finish(run_dir: Path, moment: Callable[[], dict[str, Any]], most: int) -> tuple[list, dict]:
    """Kill a run up to ``most`` times at random moments, then let it finish."""
    observer, kills = Observer(run_dir), []
    for _ in range(most):
        when = moment()
        if not in_child(run_dir, **when):
            break
        kills.append({"run": run_dir.name, **when, "sites": observer.look()})
    assert not in_child(run_dir)
    return kills, {
        "run": run_dir.name,
        "sites": observer.look(),
        "answered twice": observer.answered_twice(),
        **outcome(run_dir),
    }


def main(folder: Path, wanted: int) -> None:
    chance = random.Random(20)
    make_sites(folder / "fresh", SITES, POLICY)
    for releases in range(ROUNDS + KILLS_EACH + 1):  # forked processes inherit what was computed once
        cost(releases), cost(releases, STRICT_DELTA)
    start = time.monotonic()
    shutil.copytree(folder / "fresh", folder / "whole")
    assert not in_child(folder / "whole")
    seconds, operations = time.monotonic() - start, int((folder / "whole" / "operations").read_text())

    def before_some_operation() -> dict[str, Any]:
        return {"kill_before": chance.randrange(operations // 2)}

    def some_time() -> dict[str, Any]:
        return {"kill_after_s": chance.uniform(0, seconds / 2)}

    kills: list[dict] = []
    finished: list[dict] = []
    while len(kills) < wanted:
        run_dir = folder / f"run-{len(finished)}"
        shutil.copytree(folder / "fresh", run_dir)
        moment = before_some_operation if len(kills) < wanted / 2 else some_time
        more, end = kill_and_finish(run_dir, moment, min(KILLS_EACH, wanted - len(kills)))
        kills, finished = kills + more, [*finished, end]
        shutil.rmtree(run_dir)
    print(json.dumps({"kills": kills, "finished": finished, "operations": operations, "seconds": seconds}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
