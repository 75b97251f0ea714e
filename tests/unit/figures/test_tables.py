"""Tables say what evaluation.json says, and nothing else."""

import csv
import io
import json

from cmrfed.evaluation.results.catalogue import metric
from cmrfed.evaluation.results.result import Estimate
from cmrfed.figures.study import read_runs
from cmrfed.figures.tables import csv_text, markdown
from tests.unit.figures.study_world import METRICS, write_run

AUC = metric("leakage.auc", Estimate(0.6123456, 0.5, 0.7), {"attack": "nearest-neighbour", "space": "pixels"}, n=20)


def test_every_number_is_that_of_evaluation_json(tmp_path):
    folders = [write_run(tmp_path / "a", "DDPM"), write_run(tmp_path / "b", "FM", metrics=(*METRICS, AUC))]
    rows = list(csv.DictReader(io.StringIO(csv_text(read_runs(folders)))))
    for folder, label in zip(folders, ("DDPM", "FM"), strict=True):
        said = json.loads((folder / "evaluation" / "evaluation.json").read_text())["metrics"]
        mine = {row["id"]: row for row in rows if row["run"] == label}
        for found in said:
            if found["arm"] == "training":
                assert found["id"] not in mine
                continue
            row = mine[found["id"]]
            assert {k: row[k] for k in found} == {k: "" if v is None else str(v) for k, v in found.items()}
        invented = set(mine) - {found["id"] for found in said}
        assert all(not mine[key]["value"] and "holds no such number" in mine[key]["unavailable"] for key in invented)


def test_readers_see_values_intervals_and_reasons(tmp_path):
    folders = [write_run(tmp_path / "a", "DDPM"), write_run(tmp_path / "b", "FM", metrics=(*METRICS, AUC))]
    text = markdown(read_runs(folders))
    cell = "0.123 [0.100, 0.200], n = 9"
    assert f"| KID (phantom-cnn-v1), squared MMD ↓ | {cell} | {cell} | 0.0500 |" in text
    assert "| LPIPS, mask-paired | unavailable (" in text
    assert "no backbone. Do: give one." in text
    assert "| Dice, trained on synthetic only, tested on far away: LV ↑ | 0.700 [0.600, 0.800], n = 4 |" in text
    assert "| AUC, nearest neighbour (pixels) | – (" in text
    assert "0.612 [0.500, 0.700], n = 20" in text
    assert "training against hold-out" not in text
