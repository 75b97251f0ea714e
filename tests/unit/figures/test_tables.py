"""Tables say what evaluation.json says, and nothing else."""

import csv
import io
import json

from cmrfed.evaluation.result import Metric
from cmrfed.figures.study import read_runs
from cmrfed.figures.tables import csv_text, markdown
from tests.unit.figures.study_world import METRICS, write_run


def test_every_number_is_that_of_evaluation_json(tmp_path):
    auc = Metric(axis="leakage", name="AUC, nearest (pixels)", value=0.6123456, low=0.5, high=0.7, n=20)
    folders = [write_run(tmp_path / "a", "DDPM"), write_run(tmp_path / "b", "FM", metrics=(*METRICS, auc))]
    rows = list(csv.DictReader(io.StringIO(csv_text(read_runs(folders)))))
    for folder, label in zip(folders, ("DDPM", "FM"), strict=True):
        said = json.loads((folder / "evaluation" / "evaluation.json").read_text())["metrics"]
        mine = {row["name"]: row for row in rows if row["run"] == label}
        for metric in said:
            if "against hold-out" in metric["name"]:
                assert metric["name"] not in mine
                continue
            row = mine[metric["name"]]
            assert {k: row[k] for k in metric} == {k: "" if v is None else str(v) for k, v in metric.items()}
        invented = set(mine) - {metric["name"] for metric in said}
        assert all(not mine[name]["value"] and "holds no such number" in mine[name]["unavailable"] for name in invented)


def test_readers_see_values_intervals_and_reasons(tmp_path):
    auc = Metric(axis="leakage", name="AUC, nearest (pixels)", value=0.6123456, low=0.5, high=0.7, n=20)
    folders = [write_run(tmp_path / "a", "DDPM"), write_run(tmp_path / "b", "FM", metrics=(*METRICS, auc))]
    text = markdown(read_runs(folders))
    cell = "0.123 [0.100, 0.200], n = 9"
    assert f"| KID (phantom-cnn-v1) ↓ | {cell} | {cell} | 0.0500 |" in text
    assert "| LPIPS, mask-paired | unavailable (" in text
    assert "no backbone. Do: give one." in text
    assert "| far away, LV: trained on synthetic only ↑ | 0.700 [0.600, 0.800], n = 4 |" in text
    assert "| AUC, nearest (pixels) | – (" in text
    assert "0.612 [0.500, 0.700], n = 20" in text
    assert "training against hold-out" not in text
