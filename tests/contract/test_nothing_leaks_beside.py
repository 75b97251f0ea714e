"""Beside the noised updates nothing that depends on the patients leaves a site: one test for each way out.

Other ways are closed elsewhere:

- a public denominator, and modules whose forward pass keeps statistics: `test_mechanism`
- losses, counts and words about the data stay at the site: `test_private_site`
- retries and resumes: `test_private_site`, `test_killed_private_runs`
- several runs on the same patients add up: `test_private_site`; what may be claimed then, and that a recipe cannot ask
  for weights by patients: `test_guarantee`
"""

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

from cmrfed.core.artifacts import load_state, read_json
from cmrfed.core.device import HOST
from cmrfed.core.errors import FederationError
from cmrfed.data.cohort import Cohort
from cmrfed.data.draws import gather
from cmrfed.data.preparation.prepare import PrepareConfig, prepare
from cmrfed.federation.messages import StageJob, TrainReply, decode_reply, encode_job, to_array_record, to_state
from cmrfed.federation.server.run import FederatedRun, StageSpec
from cmrfed.federation.site.audit import audit_site
from cmrfed.federation.site.folder import SiteRecord
from cmrfed.federation.site.site import Site, answer_train
from cmrfed.generators.card import model_card
from cmrfed.generators.codec import make_codec
from cmrfed.generators.generator import Generator
from cmrfed.generators.settings import FlowConfig
from cmrfed.generators.trainable import weight_layout
from cmrfed.privacy.dpsgd import mechanism
from cmrfed.privacy.event import PrivacyEvent
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from cmrfed.privacy.policy import SitePolicy
from cmrfed.privacy.settings import PrivateTraining
from cmrfed.synthesis.settings import SynthesisConfig
from cmrfed.synthesis.two_stage import synthesize
from cmrfed.training.private import PrivateTrainer
from cmrfed.training.settings import TrainingConfig
from tests.federation_world import FaultyGrid, federated_run, make_sites, site_roots, tiny_cohort, tiny_stage
from tests.generator_world import same_weights, tiny_generator
from tests.source_files import acdc_patient, save, short_axis

CLOSED = SitePolicy(epsilon_cap=50.0, delta=1e-2, smallest_cohort=1)
ASKED = PrivateTraining(
    unit="patient", noise_multiplier=2.0, sampling_rate=1.0, noise_multiplicity=1, declared_patients=3, clip_norm=0.5
)
TELLING = {"loss", "first_loss", "last_loss", "items", "seconds", "patients", "sampled", "clipped"}


def private_stage(name: str = "image", rounds: int = 1, steps: int = 2, **training: object) -> StageSpec:
    return replace(tiny_stage(name, rounds, steps, **training), privacy=ASKED)


def private_run(run_dir: Path, *stages: StageSpec, **settings: object) -> FederatedRun:
    return federated_run(run_dir, *(stages or (private_stage(),)), weighting="equal", **settings)


def server_files(run_dir: Path) -> list[Path]:
    """All that the server keeps."""
    found = (p.relative_to(run_dir) for p in run_dir.rglob("*") if p.is_file())
    return sorted(p for p in found if p.parts[0] not in ("sites", "cohort"))


# --- weights of the mean ------------------------------------------------------------------------
def test_sites_of_unlike_size_count_the_same_and_none_tells_its_size(tmp_path: Path) -> None:
    roots = make_sites(tmp_path, 3, CLOSED)
    run = private_run(tmp_path)
    run.start_or_resume()
    assert {info.patients for info in run.roster.sites.values()} == {None}
    replies = [load_state(*root.glob("state/*/image/round-0001/reply.safetensors"))[0] for root in roots]
    new = load_state(tmp_path / "image" / "round-0001" / "global.safetensors")[0]
    for name, weight in new.items():
        mean = torch.stack([reply[name].double() for reply in replies]).mean(0)
        assert torch.allclose(weight.double(), mean, atol=1e-6), name


def test_a_server_that_needs_the_sizes_gets_none_and_no_patient_pays_for_its_question(tmp_path: Path) -> None:
    roots = make_sites(tmp_path, 3, CLOSED)
    run = federated_run(tmp_path, private_stage(), weighting="patients")
    with pytest.raises(FederationError, match=r"keeps its number of patients to itself.*federation\.weighting=equal"):
        run.start_or_resume()
    assert [PrivacyLedger(root).history().events for root in roots] == [(), (), ()]


# --- statistics of a cohort ---------------------------------------------------------------------
def seen_in_training(cohort: Cohort) -> dict[str, list[np.ndarray]]:
    """By patient: all that a step can see of them."""
    out = {}
    for number, record in enumerate(cohort.patients):
        rows = np.asarray(cohort.rows_of[number])
        batch = gather(cohort, rows)
        fields = (batch.image, batch.mask, batch.basal, batch.ed, batch.phase, batch.position)
        out[record.patient_id] = [np.asarray(cohort.images[rows]), *(field.numpy() for field in fields)]
    return out


@pytest.mark.parametrize("name", ["a_first", "p2", "z_last"])
def test_preparing_a_cohort_without_one_patient_leaves_every_other_bit_as_it_is(tmp_path: Path, name: str) -> None:
    for other in ("p1", "p3", "p4"):
        acdc_patient(tmp_path / "ward" / other)
    few = prepare(tmp_path / "ward", tmp_path / "few", "acdc", PrepareConfig(size_px=32))
    odd = acdc_patient(tmp_path / "ward" / name, "DCM", spacing=(0.7, 0.7, 5.0))
    for frame, squeeze in ((1, 1.0), (9, 0.5)):
        image, _ = short_axis(squeeze=squeeze)
        save(odd / f"{name}_frame{frame:02d}.nii.gz", 1000 * image - 5000, (0.7, 0.7, 5.0))
    many = prepare(tmp_path / "ward", tmp_path / "many", "acdc", PrepareConfig(size_px=32))
    without, with_one = seen_in_training(few), seen_in_training(many)
    assert set(with_one) - set(without) == {name}
    for patient, arrays in without.items():
        assert [a.tobytes() for a in arrays] == [b.tobytes() for b in with_one[patient]]
    records = {record.patient_id: record for record in many.patients}
    assert all(records[record.patient_id] == record for record in few.patients)


# --- losses, times, counts ----------------------------------------------------------------------
def told_in(value: Any, key: str = "") -> Iterator[str]:
    """Names of the telling entries of a JSON tree that hold something."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from told_in(inner, name)
    elif isinstance(value, list):
        for inner in value:
            yield from told_in(inner, key)
    elif key in TELLING and value is not None:
        yield key


def test_the_files_of_the_server_hold_no_losses_times_or_counts(tmp_path: Path) -> None:
    make_sites(tmp_path, 3, CLOSED)
    stages = [private_stage("mask", rounds=2), private_stage(rounds=2)]
    private_run(tmp_path, *stages).start_or_resume()
    for stage in stages:  # a card follows from the settings alone
        card = tmp_path / "generators" / stage.name / "README.md"
        assert card.read_text() == model_card(Generator(stage.generator))
        card.unlink()
    files = [path for path in server_files(tmp_path) if path.suffix != ".safetensors"]
    assert sum(path.name == "metrics.json" for path in files) == 4
    for path in files:
        assert list(told_in(read_json(tmp_path / path))) == [], path
    safetensors = (path for path in server_files(tmp_path) if path.suffix == ".safetensors")
    assert all(TELLING.isdisjoint(load_state(tmp_path / path)[1]) for path in safetensors)


def test_a_run_without_privacy_tells_them_so_the_search_finds_them(tmp_path: Path) -> None:
    make_sites(tmp_path, 3)
    federated_run(tmp_path, tiny_stage(rounds=1)).start_or_resume()
    found = set(told_in(read_json(tmp_path / "image" / "round-0001" / "metrics.json")))
    assert found == {"loss", "first_loss", "last_loss", "items", "seconds"}


class Noon:
    """A clock that stands still: the lines of a ledger say when they were written."""

    @staticmethod
    def now(zone: object) -> datetime:
        return datetime(2026, 1, 1, 12, tzinfo=UTC)


class SameNonce:
    """In place of `secrets`: hashes of ledgers can then be compared."""

    @staticmethod
    def token_hex(count: int) -> str:
        return "00" * count


def outline(content: RecordDict) -> dict[str, Any]:
    """All of a message but the values of its arrays."""
    shapes = {
        key: {name: (weight.dtype, tuple(weight.shape)) for name, weight in to_state(record).items()}
        for key, record in content.array_records.items()
    }
    told = {key: dict(record) for key, record in [*content.config_records.items(), *content.metric_records.items()]}
    return {"arrays": shapes, "told": told}


def all_that_reaches_the_server(run_dir: Path, patients: int) -> tuple[list, list]:
    """Messages and files of a run of both stages in which site-2 has so many patients."""
    make_sites(run_dir, 3, CLOSED)
    root = site_roots(run_dir, 3)[2]
    record = Site.open(root).record
    record.model_copy(update={"patients": (record.patients or ())[:patients]}).save(root)
    messages: list = []

    def listen(number: int, kind: str, content: RecordDict) -> RecordDict:
        messages.append((number, kind, outline(content)))
        return content

    stages = (private_stage("mask"), private_stage())
    private_run(run_dir, *stages, grid=FaultyGrid(run_dir, 3, listen)).start_or_resume()
    files = [
        (str(p), None if p.suffix == ".safetensors" else (run_dir / p).read_bytes()) for p in server_files(run_dir)
    ]
    return messages, files


def test_two_cohorts_that_differ_by_one_patient_look_the_same_but_for_the_arrays(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("cmrfed.privacy.ledger.chain.datetime", Noon)
    monkeypatch.setattr("cmrfed.privacy.ledger.chain.secrets", SameNonce)
    messages, files = all_that_reaches_the_server(tmp_path / "three", 3)
    fewer_messages, fewer_files = all_that_reaches_the_server(tmp_path / "two", 2)
    assert len(messages) == 3 + 2 * 3, "introductions, and a reply of each site in each stage"
    assert messages == fewer_messages
    assert files == fewer_files
    assert any("metrics.json" in name for name, _ in files)


# --- what is learned outside the steps ----------------------------------------------------------
@pytest.mark.parametrize("name", ["mask", "image"])
def test_everything_that_learns_is_in_the_network_that_the_steps_train(name: str) -> None:
    generator = Generator(tiny_stage(name).generator)
    assert all(key.startswith("network.") for key in generator.state_dict())
    codec = make_codec(generator.config)
    assert not isinstance(codec, nn.Module)
    assert vars(codec).keys() <= {"shrink"}, "a codec that were fitted to patients would keep something"


def test_the_autoencoder_of_a_latent_generator_learns_nothing_from_private_steps(tmp_path: Path) -> None:
    generator = tiny_generator("latent", FlowConfig())
    public = {name: weights.clone() for name, weights in generator.codec.weights.items()}
    event = PrivacyEvent(noise_multiplier=1.0, sampling_rate=1.0, steps=2, run="r", stage="image", round=1, digest="d")
    config = TrainingConfig(precision="fp32", rounds=1, local_steps=2, warmup_steps=0)
    before = {name: weights.clone() for name, weights in generator.network.state_dict().items()}
    trainer = PrivateTrainer(generator, tiny_cohort(tmp_path / "c", 3), "image", 0, config, ASKED, event)
    trainer.run(0, 2)
    assert same_weights(public, generator.codec.weights)
    assert not same_weights(before, generator.network.state_dict())
    assert all(name.startswith("unet.") for name in generator.network.state_dict()), "nothing of it is sent"


def test_synthesis_needs_no_patient_and_no_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_sites(tmp_path, 3, CLOSED)
    trained = private_run(tmp_path, private_stage("mask"), private_stage()).start_or_resume()
    for folder in ("cohort", "sites"):
        shutil.rmtree(tmp_path / folder)
    monkeypatch.setattr(Cohort, "__init__", lambda *_: pytest.fail("it opened a cohort"))
    mask, image = (Generator.load(trained.generators[stage]) for stage in ("mask", "image"))
    config = SynthesisConfig(slices=(2, 2), precision="fp32")
    cases = list(synthesize(mask, image, config, patients=2, seed=1, spacing_mm=None, style_names=("a", "b")))
    assert len(cases) == 4
    assert all(np.isfinite(case.image).all() and case.mask.shape == (2, 16, 16) for case in cases)


# --- batch statistics ---------------------------------------------------------------------------
class WithBatchNorm(Generator):
    """A generator whose network has a module that mixes patients."""

    def __init__(self, *settings: Any, **more: Any) -> None:
        super().__init__(*settings, **more)
        self.network.extra = nn.BatchNorm2d(4)


def request(site: Site, stage: StageSpec, weights: dict[str, torch.Tensor]) -> StageJob:
    return federated_run(site.root.parent, stage, sites=2)._job(stage, 1, weights)


def answer(site: Site, stage: StageSpec, weights: dict[str, torch.Tensor]) -> TrainReply:
    job = request(site, stage, weights)
    context = Context(1, 2, {"site-root": str(site.root)}, RecordDict(), {})
    return decode_reply(answer_train(context, encode_job(job, to_array_record(weights))))


def ward(folder: Path) -> Site:
    """A site of six patients."""
    cohort = tiny_cohort(folder / "cohort", 6)
    return Site.register(folder / "site", SiteRecord(name="ward", cohort=str(cohort.root)), CLOSED)


def test_a_network_with_batchnorm_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmrfed.generators.trainable.Generator", WithBatchNorm)
    uncached = weight_layout.__wrapped__
    monkeypatch.setattr("cmrfed.federation.site.limits.weight_layout", uncached)
    stage = private_stage()
    site = ward(tmp_path)
    reply = answer(site, stage, dict(WithBatchNorm(stage.generator).network.state_dict()))
    assert (reply.status, reply.arrays) == ("refused", None)
    assert "BatchNorm2d cannot be trained privately" in reply.reason
    assert "statistics of the patients without noise" in reply.reason
    assert PrivacyLedger(site.root).history().events == (), "nobody paid for it"


# --- seeds --------------------------------------------------------------------------------------
def seed_everything() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def two_equal_sites(tmp_path: Path, stage: StageSpec) -> list[Site]:
    """Two identical sites that have audited the private step of a stage."""
    sites = [ward(tmp_path / name) for name in ("north", "south")]
    for site in sites:
        audit_site(site.root, request(site, stage, initial_weights(stage)), HOST)
    return sites


def initial_weights(stage: StageSpec) -> dict[str, torch.Tensor]:
    return dict(Generator(stage.generator, 3).network.state_dict())


def replies_of(sites: list[Site], stage: StageSpec) -> list[TrainReply]:
    """Replies of the sites to one request, every seed that a program can set being the same."""
    replies = []
    for site in sites:
        seed_everything()
        replies.append(answer(site, stage, initial_weights(stage)))
    assert replies[0].key == replies[1].key
    return replies


@pytest.mark.usefixtures("kept_audits")
def test_equal_requests_at_equal_sites_get_unlike_noise_whatever_the_seeds(tmp_path: Path) -> None:
    nobody = ASKED.model_copy(update={"sampling_rate": 1e-9})
    stage = replace(private_stage(), privacy=nobody)
    north, south = replies_of(two_equal_sites(tmp_path, stage), stage)
    for name, weight in (north.arrays or {}).items():
        assert not torch.equal(weight, (south.arrays or {})[name]), name


@pytest.mark.usefixtures("kept_audits")
def test_equal_requests_at_equal_sites_take_unlike_patients_whatever_the_seeds(tmp_path: Path, monkeypatch) -> None:
    taken, original = [], mechanism.poisson_sample

    def sample(count: int, rate: float) -> list[int]:
        taken.append(original(count, rate))
        return taken[-1]

    stage = replace(private_stage(steps=12), privacy=ASKED.model_copy(update={"sampling_rate": 0.5}))
    sites = two_equal_sites(tmp_path, stage)
    monkeypatch.setattr(mechanism, "poisson_sample", sample)
    replies_of(sites, stage)
    assert len(taken) == 24
    assert taken[:12] != taken[12:], "72 coins fall alike once in 10^21 times"


def test_slices_times_and_noise_of_the_draws_differ_whatever_the_seeds(tmp_path: Path) -> None:
    """The mechanism's own noise is next to nothing here, so what differs is what the gradients were taken of."""
    cohort, stage, ends = tiny_cohort(tmp_path / "cohort", 6), private_stage(optimizer="sgd", learning_rate=1.0), []
    asked = ASKED.model_copy(update={"noise_multiplier": 1e-9})
    event = PrivacyEvent(noise_multiplier=1e-9, sampling_rate=1.0, steps=1, run="r", stage="image", round=1, digest="")
    for _ in range(2):
        seed_everything()
        trainer = PrivateTrainer(Generator(stage.generator, 3), cohort, "image", 0, stage.training, asked, event)
        trainer.run(0, 1)
        ends.append(torch.cat([p.detach().flatten() for p in trainer.generator.network.parameters()]))
    assert float((ends[0] - ends[1]).norm()) > 1e-4
