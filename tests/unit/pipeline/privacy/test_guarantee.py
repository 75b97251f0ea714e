"""What is said of privacy before a run and after it: the plan, the audit, and a claim that the ledgers decide."""

import math
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from cmrfed.config.experiment import Experiment, resolve
from cmrfed.core.artifacts import read_json, write_json
from cmrfed.core.device import HOST
from cmrfed.core.errors import ConfigError, PrivacyError
from cmrfed.data.synthetic import PrivacyStatement
from cmrfed.pipeline.context import begin
from cmrfed.pipeline.privacy import guarantee
from cmrfed.pipeline.privacy.guarantee import audit_experiment, audit_text, own_events
from cmrfed.pipeline.privacy.plan import PrivacyPlan
from cmrfed.pipeline.training import train
from cmrfed.privacy.accountant import epsilon
from cmrfed.privacy.audit.checks import Check
from cmrfed.privacy.audit.mu import Mu
from cmrfed.privacy.audit.result import AuditResult
from cmrfed.privacy.policy import SitePolicy

TINY = {"backbone": {"channels": [32], "patch_px": 8, "norm_groups": 4}}
RECIPE = {
    "name": "tiny",
    "data": {"phantom": {"patients": 9, "sites": 2, "seed": 0}, "size_px": 32, "partition": {"sites": 2}},
    "mask": {"generator": TINY, "training": {"rounds": 2, "local_steps": 1}},
    "image": {"generator": TINY, "training": {"rounds": 2, "local_steps": 2}},
    "federation": {"weighting": "equal"},
    "privacy": {
        "unit": "patient",
        "epsilon": 6.0,
        "delta": 0.01,
        "declared_patients": 3,
        "mask": {"sampling_rate": 0.5, "noise_multiplicity": 1},
        "image": {"sampling_rate": 0.5, "noise_multiplicity": 1, "trained": ["*bias"]},
    },
    "compute": {"threads": 1},
}
NOT_PRIVATE = {"privacy": {}}


def experiment(**changes: object) -> Experiment:
    return resolve(RECIPE | changes)


def plan(**changes: object) -> PrivacyPlan:
    return PrivacyPlan(experiment(**changes)) if changes else the_plan()


@cache
def the_plan() -> PrivacyPlan:
    """Of the recipe as it is; its noise is searched for once."""
    return PrivacyPlan(experiment())


def claim(run_dir: Path, **changes: object) -> PrivacyStatement:
    return guarantee.claim(plan(**changes), run_dir)


# --- before -------------------------------------------------------------------------------------
def test_the_plan_names_noise_rate_steps_loss_and_parameters_of_each_stage() -> None:
    rows = plan().rows
    assert [(r.stage, r.steps, r.sampling_rate, r.draws) for r in rows] == [
        ("mask", 2, 0.5, 1),
        ("image", 4, 0.5, 1),
    ]
    assert rows[1].trained_parameters < rows[0].trained_parameters
    assert rows[1].noise_to_signal < rows[0].noise_to_signal
    text = plan().text
    for part in ("unit patient", "add or remove one patient", "target 6", "mask: σ = ", "noise of a step is"):
        assert part in text


def test_a_slice_is_called_weaker_wherever_its_loss_is_named() -> None:
    text = plan(privacy=RECIPE["privacy"] | {"unit": "slice"}).text
    assert "unit slice (weaker: it hides a slice, and a patient has many)" in text


def test_without_privacy_the_plan_promises_nothing() -> None:
    assert plan(**NOT_PRIVATE).text == "Privacy: none. Nothing is promised to the patients."
    assert set(plan(**NOT_PRIVATE).requests.values()) == {None}
    assert plan(**NOT_PRIVATE).rows == ()


def test_a_stage_that_stays_public_costs_nothing_and_is_named() -> None:
    still = {"mask": RECIPE["mask"] | {"training": {"rounds": 0}}, "pretrain": {"patients": 120}}
    both, images = plan(), plan(**still)
    assert [r.stage for r in images.rows] == ["image"]
    assert images.rows[0].noise_multiplier < both.rows[1].noise_multiplier
    assert "mask: keeps its pre-trained weights; no site trains it." in images.text
    asked = images.requests
    assert asked["mask"] is None
    assert asked["image"] is not None


def test_a_run_that_asks_no_site_says_that_no_patient_took_part(tmp_path: Path) -> None:
    still = {"generator": TINY, "training": {"rounds": 0}}
    public = {"mask": still, "image": still, "pretrain": {"patients": 120}, "privacy": {}}
    said = claim(tmp_path, **public)
    assert not said.differentially_private
    assert said.statement.startswith("No patient took part in training")
    with pytest.raises(ConfigError, match="no stage asks the sites for anything"):
        experiment(**public | {"privacy": RECIPE["privacy"]})
    with pytest.raises(ConfigError, match=r"mask\.training\.rounds is 0, but there are no pre-trained weights"):
        experiment(mask=still)


@pytest.mark.parametrize("changes", [{}, NOT_PRIVATE])
def test_the_plan_says_that_the_start_is_public(changes: dict) -> None:
    text = plan(**changes, pretrain={"patients": 120}).text
    assert text.splitlines()[-1] == (
        "The generators start from public weights, trained on a phantom alone (120 simulated patients, no real one), "
        "which costs no ε."
    )
    assert "phantom" not in plan(**changes).text


def test_a_target_that_cannot_be_met_stops_the_run_before_anything_is_written(tmp_path: Path) -> None:
    wish = RECIPE["privacy"] | {"epsilon": 0.02, "delta": 1e-6}
    with pytest.raises(PrivacyError, match=r"cannot be met.*a target of at least"):
        begin(experiment(privacy=wish), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"federation": {}}, "weighting: patients tells the server how many there are"),
        ({"federation": {"weighting": "equal", "strategy": {"name": "fedprox"}}}, "fedprox has no private form"),
    ],
)
def test_settings_that_would_undo_privacy_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        experiment(**changes)


# --- audit --------------------------------------------------------------------------------------
def test_the_audit_runs_the_configured_training_of_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr("cmrfed.training.audit.audit_training", lambda *told: asked.append(told) or made_audit(1.2))
    tried = plan()
    rows = audit_experiment(tried)
    assert [row.stage for row in rows] == ["mask", "image"]
    settings = [
        (s, tried.experiment.generator(s), tried.experiment.training(s), r, HOST) for s, r in tried.requests.items()
    ]
    assert asked == settings
    assert audit_text(rows).count("theory") == 2
    with pytest.raises(ConfigError, match="no private step to audit"):
        audit_experiment(plan(**NOT_PRIVATE))


def made_audit(mu: float, p_value: float = 0.5) -> AuditResult:
    lines = (Check("noise: mean", "+0.001", "0.000", 0.7), Check("noise: law", "distance 0.1", "near 0", p_value))
    return AuditResult(lines, Mu(mu, mu - 1, mu + 1, 1.0, 100), 2.0, 10)


def test_a_failed_audit_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cmrfed.training.audit.audit_training", lambda *_: made_audit(1.2, 1e-9))
    text = audit_text(audit_experiment(plan()))
    assert "µ = 1.200 (0.200 to 2.200 at 99%), theory 1.000; 2 properties: FAILED: noise: law" in text
    assert "  ok    noise: mean: +0.001; 0.000" in text
    assert "  FAIL  noise: law: distance 0.1; near 0" in text
    monkeypatch.setattr("cmrfed.training.audit.audit_training", lambda *_: made_audit(math.inf, 0.0))
    rows = audit_experiment(plan())
    assert rows[0].mu is None
    assert "µ = ∞ (there is no noise), theory 1.000" in audit_text(rows)


# --- after --------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("run") / "r"
    context = begin(experiment(), run_dir)
    with pytest.MonkeyPatch.context() as patch:  # tests of the audit itself run it whole
        patch.setattr("cmrfed.training.audit.audit_training", lambda *_: made_audit(1.2))
        train(context)
    return run_dir


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "r"))


def test_the_claim_is_the_largest_loss_in_any_ledger_and_within_the_target(run_dir: Path) -> None:
    made = claim(run_dir)
    assert made.differentially_private
    assert (made.unit, made.delta, made.strict_delta) == ("patient", 0.01, 1e-3)
    assert made.epsilon is not None
    assert 5.8 < made.epsilon <= 6.0
    assert (made.epsilon_strict or 0) > made.epsilon
    assert set(made.sites) == {"site-0", "site-1"}
    for words in ("add or remove one patient", "Not covered", "simulated on one machine"):
        assert words in made.statement


def rewrite(run_dir: Path, change) -> None:
    path = run_dir / "image" / "round-0002" / "metrics.json"
    metrics = read_json(path)
    change(metrics["sites"]["site-1"])
    write_json(path, metrics)


def test_the_site_that_paid_most_decides(run_dir: Path) -> None:
    rewrite(run_dir, lambda row: row["spent"]["at"][0].update(prv=11.2344))
    assert claim(run_dir).epsilon == 11.235


@pytest.mark.parametrize(
    "change",
    [
        lambda row: row.update(spent=None),
        lambda row: row["spent"].update(unit="none"),
        lambda row: row["spent"].update(unit="slice"),
        lambda row: row["spent"]["at"][0].update(prv=None),
    ],
)
def test_one_site_without_a_bound_ends_the_claim_for_all(run_dir: Path, change) -> None:
    rewrite(run_dir, change)
    made = claim(run_dir)
    assert not made.differentially_private
    assert made.epsilon is None
    assert "Not differentially private" in made.statement


# --- the largest statement, and never less than the run itself -------------------------------------
def lower(row: dict, prv: float = 0.5) -> None:
    for loss in row["spent"]["at"]:
        loss.update(prv=prv, rdp=prv)


def round_file(run_dir: Path, stage: str, number: int) -> Path:
    return run_dir / stage / f"round-{number:04d}" / "metrics.json"


@pytest.mark.parametrize("rounds", [[("image", 2)], [(s, n) for s in ("mask", "image") for n in (1, 2)]])
def test_what_a_site_says_later_never_lowers_the_claim(run_dir: Path, rounds: list) -> None:
    """Once the last statement alone, once each that rounds keep: what was heard, and the run itself, remain."""
    before = claim(run_dir)
    for stage, number in rounds:
        metrics = read_json(round_file(run_dir, stage, number))
        for row in metrics["sites"].values():
            lower(row)
        write_json(round_file(run_dir, stage, number), metrics)
    for heard in (True, False):
        if not heard:
            (run_dir / "ledgers.json").unlink()
        made = claim(run_dir)
        assert (made.epsilon, made.epsilon_strict, made.delta) == (before.epsilon, before.epsilon_strict, before.delta)


def test_a_larger_loss_in_an_earlier_round_stays(run_dir: Path) -> None:
    metrics = read_json(round_file(run_dir, "mask", 1))
    metrics["sites"]["site-0"]["spent"]["at"][0].update(prv=9.9, rdp=10.5)
    write_json(round_file(run_dir, "mask", 1), metrics)
    made = claim(run_dir)
    assert (made.epsilon, made.epsilon_rdp) == (9.9, 10.5)
    assert made.sites["site-0"]["at"][0]["prv"] == 9.9


def test_the_largest_of_several_deltas_is_stated(run_dir: Path) -> None:
    metrics = read_json(round_file(run_dir, "mask", 1))
    metrics["sites"]["site-0"]["spent"]["at"][0].update(delta=0.05)
    write_json(round_file(run_dir, "mask", 1), metrics)
    made, before = claim(run_dir), 6.0
    assert made.delta == 0.05
    assert 5.8 < (made.epsilon or 0) <= before


def test_the_run_itself_costs_what_its_plan_says(run_dir: Path) -> None:
    events = own_events(plan(), run_dir)
    assert set(events) == {"site-0", "site-1"}
    made = claim(run_dir)
    for each in events.values():
        assert math.ceil(epsilon(each, 0.01).prv * 1000) / 1000 == made.epsilon, "an honest ledger says the same"


def test_a_statement_that_was_heard_and_not_used_counts_too(run_dir: Path) -> None:
    heard = read_json(run_dir / "ledgers.json")
    heard["site-1"]["largest"]["at"][0].update(prv=20.0, rdp=22.0)
    write_json(run_dir / "ledgers.json", heard)
    assert claim(run_dir).epsilon == 20.0
    heard["site-1"]["largest"]["at"][0].update(prv=None, rdp=None)
    write_json(run_dir / "ledgers.json", heard)
    assert not claim(run_dir).differentially_private


def test_a_site_that_never_answered_is_not_in_the_claim(run_dir: Path) -> None:
    for stage in ("mask", "image"):
        for number in (1, 2):
            metrics = read_json(round_file(run_dir, stage, number))
            metrics["sites"]["site-1"].update(status="missing", spent=None)
            write_json(round_file(run_dir, stage, number), metrics)
    made = claim(run_dir)
    assert made.differentially_private
    assert set(made.sites) == {"site-0"}


def test_without_an_audit_or_with_a_failed_one_nothing_is_claimed(run_dir: Path) -> None:
    rows = read_json(run_dir / "audit.json")
    write_json(run_dir / "audit.json", [rows[0], rows[1] | {"passed": False}])
    assert claim(run_dir).statement.endswith("The private step failed its audit.")
    (run_dir / "audit.json").unlink()
    assert claim(run_dir).statement.endswith("The private step was not audited.")


def test_the_claim_says_what_the_choice_of_patients_rests_on(run_dir: Path) -> None:
    assert "follow from the seed and from that patient alone" in claim(run_dir).statement
    write_json(run_dir / "split.json", {"cohort": "ab" * 32, "train": [], "holdout": []})
    assert "holds given who was held out" in claim(run_dir).statement, "begun by an earlier version"
    (run_dir / "sites").rename(run_dir / "elsewhere")
    each_row(run_dir, lambda row: row["spent"].update(audited=True))
    assert "given which patients each site had chosen" in claim(run_dir).statement


def each_row(run_dir: Path, change: Callable[[dict], None]) -> None:
    for path in run_dir.glob("*/round-*/metrics.json"):
        metrics = read_json(path)
        for row in metrics["sites"].values():
            change(row)
        write_json(path, metrics)


def test_a_deployed_run_claims_nothing_unless_each_site_audited_each_round(run_dir: Path) -> None:
    (run_dir / "sites").rename(run_dir / "elsewhere")
    assert claim(run_dir).statement.endswith("The private step was not audited at site-0, site-1.")
    each_row(run_dir, lambda row: row["spent"].update(audited=True))
    assert claim(run_dir).differentially_private
    rewrite(run_dir, lambda row: row["spent"].update(audited=False))
    assert claim(run_dir).statement.endswith("The private step was not audited at site-1.")


def test_a_run_without_privacy_claims_nothing(run_dir: Path) -> None:
    assert not claim(run_dir, **NOT_PRIVATE).differentially_private


def test_a_simulated_site_permits_no_more_than_the_recipe_and_room_for_retries(trained: Path) -> None:
    policy = SitePolicy.load(trained / "sites" / "00" / "policy.yaml")
    assert policy.permitted_units == ("patient",)
    assert policy.epsilon_cap == pytest.approx(6.0 * 1.25)
    assert not policy.may_leave.losses
    assert not policy.may_leave.patient_count
