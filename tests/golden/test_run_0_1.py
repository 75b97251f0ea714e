"""The runs, recipes and generators of version 0.1 open."""

import shutil
from pathlib import Path

import pytest
import torch

from cmrfed.config.experiment import resolve
from cmrfed.core.artifacts import read_json, save_state
from cmrfed.core.errors import ConfigError, DataError
from cmrfed.data.partition import read_split
from cmrfed.federation.local_grid import LocalGrid
from cmrfed.federation.server.checkpoint import RoundStore
from cmrfed.figures.make import make_figures
from cmrfed.generators.generator import Generator
from cmrfed.pipeline.data import _split
from cmrfed.pipeline.files.record import RecordWriter, read_run
from cmrfed.pipeline.privacy.guarantee import read_audit
from cmrfed.pipeline.run import run_deployed
from cmrfed.pipeline.synthesis import synthesize_run
from cmrfed.pipeline.tracking import scalars_of
from cmrfed.report.html import write_report
from tests.federation_world import tiny_cohort
from tests.generator_world import random_condition

OLD = Path(__file__).parent / "run-0.1"


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return Path(shutil.copytree(OLD, tmp_path / "run"))


def test_its_recipe_is_the_experiment_that_it_was() -> None:
    record = read_run(OLD)
    assert "schema_version" not in read_json(OLD / "run.json")
    assert resolve(OLD / "recipe.yaml").digest == record.experiment.digest == record.digest


def test_nothing_of_its_records_is_lost() -> None:
    told, record = read_json(OLD / "run.json"), read_run(OLD).as_json()
    same = set(told) - {"experiment"}
    assert {name: record[name] for name in same} == {name: told[name] for name in same}
    for stage, rounds in (("mask", 1), ("image", 2)):
        store = RoundStore(OLD / stage, record["digest"])
        assert store.latest() == rounds
        for number, metrics in enumerate(store.metrics(), 1):
            before = read_json(store.folder(number) / "metrics.json")
            assert metrics.model_dump(mode="json") == before | {"schema_version": 2}
    for row, before in zip(read_audit(OLD), read_json(OLD / "audit.json"), strict=True):
        assert before.items() <= row.model_dump(mode="json").items()
    assert (read_split(OLD).placement, len(read_split(OLD).train)) == (1, 6)


def test_it_is_reported_and_tracked(run_dir: Path) -> None:
    page = write_report(run_dir).read_text(encoding="utf-8")
    assert "add or remove one patient, ε ≤ 5.99 at δ = 0.01" in page
    assert "µ = 4.045" in page
    tags = {scalar.tag for scalar in scalars_of(run_dir)}
    assert "image/epsilon, largest of the sites so far" in tags


def test_figures_are_drawn_of_it_once_its_data_set_says_that_nothing_in_it_is_real(
    run_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"does not say whether.*synthesise again"):
        make_figures([run_dir], tmp_path / "out", None)
    synthesize_run(run_dir, run_dir / "synthetic", patients=1, seed=0)
    made = make_figures([run_dir], tmp_path / "out", None)
    assert {"pipeline", "denoising", "tables.md"} <= set(made)


@pytest.mark.parametrize("stage", ["mask", "image"])
def test_its_generators_open_and_sample(stage: str) -> None:
    generator = Generator.load(OLD / "generators" / stage)
    size = generator.config.size_px
    drawn = generator.sample(random_condition(2, size=size, masks=generator.config.condition_masks), range(2))
    assert drawn.shape[0] == 2
    assert drawn.shape[-2:] == (size, size)
    assert bool(torch.isfinite(drawn.float()).all())


def test_a_data_set_is_drawn_from_it(run_dir: Path, tmp_path: Path) -> None:
    drawn = synthesize_run(run_dir, tmp_path / "out", patients=1, seed=0)
    assert drawn.manifest.experiment_digest == read_run(OLD).digest
    assert drawn.manifest.styles == ("site-0", "site-1")


def test_deployed_it_resumes_where_it_was_and_is_written_in_this_version(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cmrfed.pipeline.training.audit_experiment", lambda _: read_audit(OLD))  # takes a minute
    for stage, number in (("mask", 1), ("image", 2)):  # weights of rounds are not kept here: take the averaged ones
        weights = Generator.load(run_dir / "generators" / stage).network.state_dict()
        for name in ("global", "ema", "strategy"):
            folder = run_dir / stage / f"round-{number:04d}"
            save_state(folder / f"{name}.safetensors", {} if name == "strategy" else weights)
    record = read_run(run_dir)
    run_deployed(record.experiment, run_dir, LocalGrid([]), [site.name for site in record.sites])
    again = read_json(run_dir / "run.json")
    assert again["schema_version"] == 2
    assert again["finished"]
    assert (again["started"], again["digest"]) == (record.started, record.digest)


def test_simulated_it_says_in_one_paragraph_why_it_is_not_carried_on(run_dir: Path, tmp_path: Path) -> None:
    experiment = read_run(run_dir).experiment
    assert RecordWriter(run_dir, experiment).content.started == read_run(OLD).started
    with pytest.raises(ConfigError, match=r"chose hold-out and sites in another way.*another --run-dir"):
        _split(experiment, tiny_cohort(tmp_path / "cohort", 9), run_dir)
