"""`flwr run .` under Ray against the in-process grid: the same recipe and seed, the same bits."""

import os
from pathlib import Path

import pytest
import yaml

from cmrfed.core.artifacts import digest_folder, digest_state, load_state, read_json
from tests.federation_world import SIZE_PX, tiny_cohort, tiny_stage
from tests.flower_process import flwr_run


def write_recipe(folder: Path) -> Path:
    """A recipe of two sites and two rounds, its cohort named relative to the data root."""
    tiny_cohort(folder / "discs", 6)
    stage = tiny_stage()
    plain = {
        "generator": {"backbone": stage.generator.backbone.model_dump(mode="json")},
        "training": stage.training.model_dump(mode="json", exclude={"augment"}),
    }
    data = {"cohorts": ["discs"], "size_px": SIZE_PX, "partition": {"sites": 2}}
    recipe = {"name": "tiny", "data": data, "mask": plain, "image": plain}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def train_in_process(recipe: Path, run_dir: Path, **config: str) -> None:
    """What the ServerApp does, over the in-process grid."""
    from cmrfed.pipeline.context import begin
    from cmrfed.pipeline.server_app import read_experiment
    from cmrfed.pipeline.training import train

    experiment = read_experiment({"recipe": str(recipe), **config})
    train(begin(experiment, run_dir))


def digests(run_dir: Path) -> dict[str, str]:
    """Every weight that a run leaves on the server."""
    out = {}
    for stage in ("mask", "image"):
        for name in ("global", "ema"):
            out[f"{stage}/{name}"] = digest_state(load_state(run_dir / stage / "round-0002" / f"{name}.safetensors")[0])
        out[stage] = digest_folder(run_dir / "generators" / stage)
    return out


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="ends Flower's processes through /proc")
def test_ray_and_the_in_process_grid_give_the_same_weights(tmp_path: Path) -> None:
    config = {"data-root": str(tmp_path), "set": "seed=4 compute.threads=1"}
    recipe = write_recipe(tmp_path)
    told = flwr_run(2, {"recipe": str(recipe), "run-dir": str(tmp_path / "ray"), **config})
    assert (tmp_path / "ray" / "generators" / "image").is_dir(), told[-4000:]
    train_in_process(recipe, tmp_path / "local", **config)
    assert digests(tmp_path / "ray") == digests(tmp_path / "local")
    records = [read_json(tmp_path / name / "image" / "round-0002" / "metrics.json") for name in ("ray", "local")]
    losses = [{name: site["loss"] for name, site in record["sites"].items()} for record in records]
    assert losses[0] == losses[1]


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="ends Flower's processes through /proc")
def test_a_relative_run_dir_is_explained(tmp_path: Path) -> None:
    told = flwr_run(2, {"recipe": str(write_recipe(tmp_path)), "run-dir": "runs/x"})
    assert "the run config needs run-dir" in told
    assert "an absolute path" in told
