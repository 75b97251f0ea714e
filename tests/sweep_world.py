"""A sweep whose points are stubs: each leaves a run folder in a moment, with made-up numbers and real site ledgers."""

import json
import sys
from pathlib import Path

from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from cmrfed.sweep.paid import planned_events
from cmrfed.sweep.points import Sweep, read_sweep

BASE = """
name: stub
data:
  phantom: {patients: 9, sites: 3}
  size_px: 16
  partition: {sites: 3}
mask: &stage
  generator: {backbone: {channels: [8], norm_groups: 4, patch_px: 4}}
  training: {rounds: 2, local_steps: 3, batch_size: 2}
image: *stage
federation: {weighting: equal}
privacy:
  delta: 0.01
  declared_patients: 20
  mask: {sampling_rate: 0.5}
  image: {sampling_rate: 0.5}
"""
GRID = """
name: stubs
recipe: base.yaml
grid:
  family: {ddpm: {image.generator.process.kind: ddpm, image.generator.sampler: {name: dpm++, steps: 2}}, fm: {}}
  epsilon: [inf, 8, 2]
  seed: [0, 1]
"""
RUNNER = """
import json, os, shutil, sys, time
from pathlib import Path
import yaml
recipe = Path(sys.argv[1])
folder, tree = recipe.parent, yaml.safe_load(recipe.read_text())
orders = json.loads((folder.parent.parent / "orders.json").read_text()).get(folder.name, {})
with (folder.parent.parent / "calls.txt").open("a") as calls:
    calls.write(folder.name + chr(10))
time.sleep(orders.get("seconds", 0))
if "error" in orders:
    print("Traceback of something else")
    Path(os.environ["CMRFED_ERROR_FILE"]).write_text(json.dumps({"error": orders["error"], "code": None}))
    sys.exit(1)
shutil.copytree(orders["sites"], folder / "sites", dirs_exist_ok=True)
epsilon = tree["privacy"]["epsilon"]
value = 0.8 - (0.6 / epsilon if epsilon else 0) + 0.01 * tree["seed"]
metrics = [
    {"axis": "utility", "measure": "dice", "arm": "synthetic", "test": "holdout", "name": "Dice of synthetic",
     "value": value, "reference": 0.9, "low": value - 0.02, "high": value + 0.02, "n": 5, "unit": "dice"},
    {"axis": "fidelity", "measure": "kid", "arm": "synthetic", "space": "phantom-cnn-v1", "name": "KID",
     "value": 1 - value, "low": 0.9 - value, "high": 1.1 - value},
    {"axis": "leakage", "measure": "membership", "space": "black-box", "name": "Membership",
     "unavailable": "too few. Do: hold out more"},
]
(folder / "evaluation").mkdir(exist_ok=True)
(folder / "evaluation" / "evaluation.json").write_text(json.dumps({"schema_version": 2, "metrics": metrics}))
noise = 8 / (epsilon or 1)
plan = [
    {"stage": s, "noise_multiplier": 2 * noise, "noise_to_signal": noise, "sampling_rate": 0.5, "steps": 6, "draws": 8,
     "clip_norm": 1.0, "trained_parameters": 9, "released_numbers": 9, "epsilon_alone": 1.0}
    for s in ("mask", "image")
]
(folder / "run.json").write_text(json.dumps({
    "experiment": tree, "digest": "0" * 64, "versions": {"cmrfed": "0", "torch": "1"},
    "started": "2026-01-01T00:00:00+00:00", "finished": "2026-01-01T00:01:00+00:00",
    "timings_s": {"image": 1.5}, "peak_memory_mb": 7,
    "privacy_plan": plan if epsilon else [],
}))
"""


def stub(recipe: Path) -> list[str]:
    """The command of a stub: no library of the project, so it takes a moment."""
    return [sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}\n{RUNNER}", str(recipe)]


def nothing_shared(*_: object) -> dict[str, str]:
    return {}


def make_sweep(folder: Path, text: str = GRID, base: str = BASE) -> Sweep:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "base.yaml").write_text(base)
    (folder / "sweep.yaml").write_text(text)
    return read_sweep(folder / "sweep.yaml")


def write_sites(root: Path, events: list[PrivacyEvent], sites: int = 3) -> None:
    """Ledgers of sites that have all paid for the same."""
    for number in range(sites):
        ledger = PrivacyLedger.create(root / f"{number:02d}")
        for event in events:
            ledger.commit(ledger.reserve(event, again=True))


def give_orders(sweep: Sweep, folder: Path, **by_name: dict[str, object]) -> None:
    """What each stub shall do: the ledgers that it leaves, and by the name of a point ``error`` or ``seconds``."""
    orders: dict[str, dict[str, object]] = {}
    for point in sweep.points:
        sites = folder / "prepared" / point.name
        if not sites.exists():
            write_sites(sites, planned_events(point.experiment, "run"))
        orders[point.name] = {"sites": str(sites)} | by_name.get(point.name, {})
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "orders.json").write_text(json.dumps(orders))


def calls(folder: Path) -> list[str]:
    """Points that were started, in order."""
    return (folder / "calls.txt").read_text().split() if (folder / "calls.txt").exists() else []
