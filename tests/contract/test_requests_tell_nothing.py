"""Whatever a coordinator asks within its bounds, what it gets tells of the patients by the noised weights alone."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from cmrfed.core.artifacts import digest_state
from cmrfed.core.errors import FederationError
from cmrfed.data.cohort import Cohort, PatientRecord, PreparedPatient, Volume, write_cohort
from cmrfed.data.draws import SliceBatch
from cmrfed.federation.messages import StageJob, encode_job, to_array_record, to_state
from cmrfed.federation.site import site as site_module
from cmrfed.federation.site.folder import SiteRecord
from cmrfed.federation.site.site import Site, answer_train
from cmrfed.federation.site.timing import EXCEEDED, largest_passes, remaining
from cmrfed.generators.generator import Generator
from cmrfed.privacy.dpsgd import mechanism
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from cmrfed.privacy.policy import Limits, SitePolicy
from cmrfed.privacy.settings import PrivateTraining, Subspace
from cmrfed.training import private, subspace
from tests.federation_world import SIZE_PX, tiny_cohort, tiny_patient, tiny_request, tiny_stage

POLICY = SitePolicy(epsilon_cap=1e5, delta=1e-2, smallest_cohort=1, hide_round_time=False)
ASKED = PrivateTraining(
    unit="patient", noise_multiplier=2.0, sampling_rate=0.5, noise_multiplicity=2, declared_patients=6, clip_norm=0.5
)
FEW = Subspace(rank=2, patients=4, scanners=2, draws=2)


def ward(folder: Path, cohort: Cohort, policy: SitePolicy = POLICY) -> Site:
    """A site that is not audited: samples are planted here, which an audit would notice, and rightly."""
    return Site.register(folder, SiteRecord(name="ward", cohort=str(cohort.root), simulated=True), policy)


def seen(site: Site, job: StageJob, weights: dict[str, torch.Tensor]) -> dict[str, Any]:
    """All that reaches the server but the values of the weights and the hash of the ledger, and what was paid."""
    context = Context(1, 2, {"site-root": str(site.root)}, RecordDict(), {})
    try:
        content = answer_train(context, encode_job(job, to_array_record(weights)))
    except FederationError as error:
        return {"failed": str(error), "paid": len(PrivacyLedger(site.root).history().payments)}
    told = dict(content.config_records["reply"])
    if "spent" in told:
        told["spent"] = {k: v for k, v in json.loads(str(told["spent"])).items() if k != "ledger_hash"}
    arrays = content.array_records.get("arrays")
    shapes = {n: (w.dtype, tuple(w.shape)) for n, w in to_state(arrays).items()} if arrays else None
    size = arrays.count_bytes() if arrays else 0
    metrics = dict(content.metric_records.get("metrics") or {})
    payments = PrivacyLedger(site.root).history().payments
    return {"told": told, "shapes": shapes, "bytes": size, "metrics": metrics, "paid": [p.committed for p in payments]}


def outcome(found: dict[str, Any]) -> str:
    return "failed" if "failed" in found else str(found["told"]["status"])


def sample(monkeypatch: pytest.MonkeyPatch, choose: Callable[[int], list[int]]) -> None:
    monkeypatch.setattr(mechanism, "poisson_sample", lambda count, rate: choose(count))


def nobody(count: int) -> list[int]:
    return []


def everybody(count: int) -> list[int]:
    return list(range(count))


# --- requests over the whole range --------------------------------------------------------------
def extreme(least: float, largest: float) -> st.SearchStrategy[float]:
    return st.one_of(st.sampled_from([least, largest, 1.0]), st.floats(least, largest))


@st.composite
def requests(draw: st.DrawFn) -> tuple[StageJob, dict[str, torch.Tensor]]:
    """A request anywhere within its bounds, whose weights may be anything finite."""
    asked = PrivateTraining(
        unit=draw(st.sampled_from(["patient", "patient", "slice"])),
        noise_multiplier=draw(extreme(0.01, 1e4)),
        sampling_rate=draw(extreme(1e-9, 1.0)),
        clip_norm=draw(extreme(1e-6, 1e6)),
        noise_multiplicity=draw(st.sampled_from([1, 2, 5, 1024, 1025, 4096])) if draw(st.booleans()) else 2,
        declared_patients=draw(st.sampled_from([1, 2, 6, 100, 101, 10_000_000])),
        trained=draw(st.sampled_from([("*",), ("*bias",), ("*norm*", "*conv_out*"), ("nothing",)])),
    )
    name = draw(st.sampled_from(["image", "mask"]))
    training = {
        "learning_rate": draw(extreme(1e-30, 1000.0)),
        "weight_decay": draw(st.sampled_from([0.0, 100.0])),
        "optimizer": draw(st.sampled_from(["adamw", "sgd"])),
        "local_steps": draw(st.sampled_from([1, 2])),
        "precision": draw(st.sampled_from(["fp32", "bf16"])),
        "rounds": draw(st.sampled_from([1, 100_000])),
    }
    if draw(st.booleans()):
        training["augment"] = None
    stage = tiny_stage(name, **{"steps": training.pop("local_steps"), **training})
    size = draw(st.sampled_from([0.0, 1e-38, 1.0, 1.0, 1e6, 1e30, 3e38]))
    weights = {n: (w * size).clamp(-3e38, 3e38) for n, w in Generator(stage.generator).network.state_dict().items()}
    job, _ = tiny_request(stage=name, generator=stage.generator, training=stage.training, privacy=asked)
    return job.model_copy(update={"model_digest": digest_state(weights)}), weights


def test_an_empty_sample_and_a_full_one_look_the_same(tmp_path_factory: pytest.TempPathFactory) -> None:
    outcomes = set()

    @settings(max_examples=25, derandomize=True)
    @given(asked=requests())
    def look(asked: tuple[StageJob, dict[str, torch.Tensor]]) -> None:
        folder = tmp_path_factory.mktemp("w")
        cohort, found = tiny_cohort(folder / "cohort", 3), []
        for choose in (nobody, everybody):
            with pytest.MonkeyPatch.context() as patch:
                sample(patch, choose)
                found.append(seen(ward(folder / choose.__name__, cohort), *asked))
        assert found[0] == found[1]
        outcomes.add(outcome(found[0]))

    look()
    assert outcomes == {"ok", "refused"}


# --- one patient more or less -------------------------------------------------------------------
def corrupted(folder: Path, fault: str) -> Cohort:
    """Four patients, the last of whom is not as they should be."""
    patients = [tiny_patient(number) for number in range(4)]
    if fault == "no mask":
        patients[3] = tiny_patient(3, has_mask=False)
    if fault == "no slices":
        patients[3] = PreparedPatient(PatientRecord(patient_id="p03"), ())
    if fault == "one slice":
        volume = patients[3].volumes[0]
        patients[3] = PreparedPatient(
            patients[3].record, (Volume("p03", volume.phase, volume.image[:1], volume.mask[:1], None),)
        )
    cohort = write_cohort(folder, patients, name="discs", source="t", size_px=SIZE_PX, labels=(2, 3), preparation={})
    last = slice(-len(cohort.rows_of[3]) or len(cohort.rows), None)
    if fault in ("nan", "inf", "huge"):
        images = np.load(folder / "images.npy", mmap_mode="r+")
        images[last] = {"nan": np.nan, "inf": np.inf, "huge": 6e4}[fault]
    if fault == "labels":
        np.load(folder / "masks.npy", mmap_mode="r+")[last] = 200
    if fault in ("phase", "index"):
        table = np.load(folder / "slices.npy", mmap_mode="r+")
        table[fault][last] = 99
    return Cohort.open(folder)


@pytest.mark.parametrize("name", ["image", "mask"])
@pytest.mark.parametrize(
    "fault", ["none", "no mask", "no slices", "one slice", "nan", "inf", "huge", "labels", "phase", "index"]
)
def test_one_patient_more_changes_nothing_but_the_weights(tmp_path: Path, monkeypatch, fault: str, name: str) -> None:
    sample(monkeypatch, everybody)
    stage = tiny_stage(name, rounds=9)
    weights = Generator(stage.generator).network.state_dict()
    job, _ = tiny_request(stage=name, generator=stage.generator, training=stage.training, privacy=ASKED)
    job = job.model_copy(update={"model_digest": digest_state(weights)})
    four = seen(ward(tmp_path / "four", corrupted(tmp_path / "a", fault)), job, dict(weights))
    three = seen(ward(tmp_path / "three", tiny_cohort(tmp_path / "b", 3)), job, dict(weights))
    assert outcome(four) == "ok"
    assert four == three


@pytest.mark.parametrize("error", [MemoryError, RuntimeError, OSError, ValueError, torch.OutOfMemoryError])
@pytest.mark.parametrize("where", ["gather", "training_inputs"])
@pytest.mark.parametrize("along", [None, FEW], ids=["free", "public directions"])
def test_a_patient_who_cannot_be_computed_changes_nothing_but_the_weights(
    tmp_path: Path, monkeypatch, error: type[Exception], where: str, along: Subspace | None
) -> None:
    cohort = tiny_cohort(tmp_path / "c", 3)
    monkeypatch.setattr(subspace, "_cohort", lambda *_: tiny_cohort(tmp_path / "public", 4))
    asked = ASKED.model_copy(update={"subspace": along})
    sample(monkeypatch, everybody)
    well = seen(ward(tmp_path / "well", cohort), *tiny_request(privacy=asked))
    original, calls = private.training_inputs, []

    def fails(*arguments: object) -> object:
        calls.append(arguments)
        if len(calls) > (0 if where == "gather" else 2):  # the rehearsal, of one slice and of all, is of nobody
            raise error("p02")
        return original(*arguments)

    class Fails(private.SliceReader):
        def read(self, rows: np.ndarray) -> SliceBatch:
            fails(rows)
            raise AssertionError("a slice was read")

    what = ("SliceReader", Fails) if where == "gather" else (where, fails)
    monkeypatch.setattr(private, *what)
    ill = seen(ward(tmp_path / "ill", cohort), *tiny_request(privacy=asked))
    assert len(calls) > 2
    assert outcome(well) == "ok"
    assert ill == well


@pytest.mark.parametrize("file", ["images", "masks", "slices"])
def test_a_cohort_that_cannot_be_opened_is_refused_whoever_is_sampled(tmp_path: Path, monkeypatch, file: str) -> None:
    """The files are opened when they are first used, which was when the first patient was sampled."""
    found = []
    for choose in (nobody, everybody):
        cohort = tiny_cohort(tmp_path / choose.__name__ / "c", 3)
        data = (cohort.root / f"{file}.npy").read_bytes()
        (cohort.root / f"{file}.npy").write_bytes(data[: len(data) // 2])
        sample(monkeypatch, choose)
        found.append(seen(ward(tmp_path / choose.__name__ / "s", cohort), *tiny_request(privacy=ASKED)))
    assert found[0] == found[1]
    assert (outcome(found[0]), found[0]["paid"]) == ("refused", [])


def test_what_does_not_pass_through_the_step_is_refused_whoever_is_sampled(tmp_path: Path, monkeypatch) -> None:
    """Made-up arrays show it before anybody pays."""
    cohort = tiny_cohort(tmp_path / "c", 3)

    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(private, "training_inputs", fails)
    for choose in (nobody, everybody):
        sample(monkeypatch, choose)
        found = seen(ward(tmp_path / choose.__name__, cohort), *tiny_request(privacy=ASKED))
        assert (outcome(found), found["paid"]) == ("refused", [])
        assert "made-up arrays of its size do not pass through the step. Got: MemoryError" in found["told"]["reason"]


# --- limits -------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("limit", "value", "changes"),
    [
        ("batch_size", 1, {}),
        ("batch_size", 1, {"privacy": ASKED.model_copy(update={"noise_multiplicity": 1, "subspace": FEW})}),
        ("simulated_patients", 3, {"privacy": ASKED.model_copy(update={"noise_multiplicity": 1, "subspace": FEW})}),
        ("local_steps", 1, {}),
        ("rounds", 8, {}),
        ("parameters", 1000, {}),
        ("memory_gib", 1e-4, {}),
        ("round_seconds", 1e-6, {}),
    ],
)
def test_the_limits_of_the_site_hold_whatever_is_asked(tmp_path, monkeypatch, limit, value, changes) -> None:
    monkeypatch.setattr(private.PrivateTrainer, "run", lambda *_: pytest.fail("it trained"))
    policy = POLICY.model_copy(update={"limits": Limits(**{limit: value})})
    found = seen(
        ward(tmp_path / "s", tiny_cohort(tmp_path / "c", 3), policy), *tiny_request(**{"privacy": ASKED, **changes})
    )
    assert (outcome(found), found["paid"]) == ("refused", [])
    assert f"larger than the site's policy allows. Got: limits.{limit}:" in found["told"]["reason"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda w: w | {"more": torch.zeros(1)}, "lacks or adds more"),
        (lambda w: {n: w[n] for n in list(w)[1:]}, "lacks or adds unet"),
        (lambda w: {n: t.double() for n, t in w.items()}, r"is torch.float64"),
        (lambda w: {n: t.half() for n, t in w.items()}, r"is torch.float16"),
        (lambda w: {n: t[..., None] for n, t in w.items()}, r"expected torch.float32"),
        (lambda w: {n: t * torch.nan for n, t in w.items()}, "holds NaN or infinity"),
        (lambda w: {n: t + torch.inf for n, t in w.items()}, "holds NaN or infinity"),
    ],
)
def test_weights_that_are_not_those_of_the_network_are_refused(tmp_path: Path, spoil, words) -> None:
    job, weights = tiny_request(privacy=ASKED)
    spoiled = spoil(weights)
    job = job.model_copy(update={"model_digest": digest_state(spoiled)})
    found = seen(ward(tmp_path / "s", tiny_cohort(tmp_path / "c", 3)), job, spoiled)
    assert (outcome(found), found["paid"]) == ("refused", [])
    assert "the weights of the request cannot be used" in found["told"]["reason"]
    assert words in found["told"]["reason"]


# --- times --------------------------------------------------------------------------------------
class Clock:
    """Time that passes where a record is computed, and where the site sleeps."""

    def __init__(self) -> None:
        self.now, self.slept = 0.0, []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def round_time(tmp_path: Path, monkeypatch, taken: list[list[int]], steps: int, slow: float = 1.0) -> float:
    """Seconds on a made-up clock, from the first sample to the reply: a made-up record takes 1, a real one ``slow``."""
    clock, turns = Clock(), iter(taken)
    fake = SimpleNamespace(monotonic=clock.monotonic, sleep=clock.sleep)
    monkeypatch.setattr(mechanism, "time", fake)
    monkeypatch.setattr(site_module, "time", fake)
    original, began = mechanism.PrivateSGD._gradient, []

    def gradient(self, losses):
        clock.now += slow if began else 1.0
        return original(self, losses)

    def coins(count: int, rate: float) -> list[int]:
        began.append(clock.now)
        return next(turns)

    monkeypatch.setattr(mechanism.PrivateSGD, "_gradient", gradient)
    monkeypatch.setattr(mechanism, "poisson_sample", coins)
    policy = POLICY.model_copy(update={"hide_round_time": True})
    site = ward(tmp_path / "s", tiny_cohort(tmp_path / "c", 6), policy)
    stage = tiny_stage(rounds=9, steps=steps)
    found = seen(site, *tiny_request(privacy=ASKED, training=stage.training))
    assert outcome(found) == "ok"
    monkeypatch.setattr(mechanism.PrivateSGD, "_gradient", original)
    return clock.now - began[0]


@pytest.mark.parametrize("slow", [0.5, 1.2])
def test_a_round_takes_the_same_time_whoever_is_sampled(tmp_path: Path, monkeypatch, slow: float) -> None:
    samples = [[[], [], []], [[0], [], []], [[0, 1, 2], [3], []], [list(range(6))] * 3]
    times = [round_time(tmp_path / str(i), monkeypatch, taken, 3, slow) for i, taken in enumerate(samples)]
    assert times == pytest.approx([times[0]] * len(times))
    assert times[0] >= 1.25 * 18 - 1e-6, "18 coins at q = 1/2 may all fall alike: once in 262,144 rounds"


def test_where_more_are_sampled_than_declared_the_time_is_a_multiple() -> None:
    assert [remaining(spent, 10.0) + spent for spent in (0.0, 3.0, 9.9, 10.0, 10.1, 25.0)] == [10, 10, 10, 10, 20, 30]


@pytest.mark.parametrize(("declared", "q", "steps"), [(15, 0.5, 4), (100, 0.25, 20), (6, 1e-9, 2), (1, 1.0, 1)])
def test_the_passes_waited_for_are_almost_never_exceeded(declared: int, q: float, steps: int) -> None:
    passes = largest_passes(declared, q, steps)
    assert binom.sf(passes, declared * steps, q) <= EXCEEDED
    assert passes == 1 or binom.sf(passes - 1, declared * steps, q) > EXCEEDED


def test_who_asks_again_while_the_site_waits_gets_no_reply_yet(tmp_path: Path, monkeypatch) -> None:
    """A stored reply is answered at once: it is stored when the time is up."""
    seen_files = []
    site = ward(tmp_path / "s", tiny_cohort(tmp_path / "c", 3), POLICY.model_copy(update={"hide_round_time": True}))
    fake = SimpleNamespace(sleep=lambda _: seen_files.append(list(site.root.glob("state/*/*/round-*"))))
    monkeypatch.setattr(site_module, "time", fake)
    assert outcome(seen(site, *tiny_request(privacy=ASKED))) == "ok"
    assert seen_files == [[]]
