"""A whole run with the fake accelerator as its device, up to the report."""

import json

import torch
import yaml

from cmrfed.config.experiment import resolve
from cmrfed.core.artifacts import load_state, read_json
from cmrfed.data.synthetic import SyntheticDataset
from cmrfed.pipeline.run import run
from tests.e2e.test_main_job import RECIPE
from tests.fake_device import STATE

PRETRAIN = {"patients": 3, "scanners": 1, "mask": {"rounds": 1, "local_steps": 2, "batch_size": 2}, "image": None}


def test_a_run_computes_on_its_device_up_to_the_report(fake_device, tmp_path, monkeypatch):
    STATE.count, used = 2, set()
    original = torch.nn.Conv2d.forward
    monkeypatch.setattr(torch.nn.Conv2d, "forward", lambda layer, x: (used.add(str(x.device)), original(layer, x))[1])
    recipe = yaml.safe_load(RECIPE) | {"pretrain": PRETRAIN, "compute": {"threads": 1, "device": "fake"}}
    folder = tmp_path / "run"
    run(resolve(recipe), folder)
    assert {"fake:0", "fake:1"} <= used
    assert [read_json(folder / "sites" / f"{i:02d}" / "site.json")["device"] for i in range(3)] == [
        "fake:0",
        "fake:1",
        "fake:0",
    ]
    weights, _ = load_state(sorted((folder / "image").glob("round-*"))[-1] / "global.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())
    assert len(SyntheticDataset.open(folder / "synthetic")) == 6
    numbers = json.loads((folder / "evaluation" / "evaluation.json").read_text(encoding="utf-8"))
    assert any(metric["axis"] == "fidelity" and metric["value"] is not None for metric in numbers["metrics"])
    assert (folder / "report.html").exists()
