import tempfile
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cmrfed.core.errors import DataError, PrivacyBudgetExhausted, PrivacyError, SiteRefused
from cmrfed.privacy.ledger.ledger import History, PrivacyLedger
from cmrfed.privacy.policy import Limits, MayLeave, SitePolicy
from tests.unit.privacy.ledger.test_ledger import event

POLICY = SitePolicy(epsilon_cap=2.0, delta=1e-3)
TEMPLATE = Path(__file__).parents[3] / "configs" / "sites" / "policy.yaml"


def test_the_template_is_cautious():
    policy = SitePolicy.load(TEMPLATE)
    assert (policy.epsilon_cap, policy.delta, policy.smallest_cohort) == (8, 1e-3, 10)
    assert policy.permitted_units == ("patient",)
    assert not any(policy.may_leave.model_dump().values())


def test_the_template_explains_every_field():
    tree = yaml.safe_load(TEMPLATE.read_text())
    assert set(tree) == set(SitePolicy.model_fields)
    assert set(tree["may_leave"]) == set(MayLeave.model_fields)
    assert set(tree["limits"]) == set(Limits.model_fields)
    assert Limits.model_validate(tree["limits"]) == Limits(), "what a policy without the section gets"
    assert tree["hide_round_time"] is True
    lines = TEMPLATE.read_text().splitlines()
    fields = [
        n for n, line in enumerate(lines) if line.split(":")[0].strip() in {*tree, *tree["may_leave"], *tree["limits"]}
    ]
    assert all(lines[n - 1].lstrip().startswith("#") for n in fields)


def test_what_may_leave_is_nothing_by_default(tmp_path):
    (tmp_path / "policy.yaml").write_text("epsilon_cap: 4\ndelta: 0.001\nmay_leave: {losses: true}\n")
    policy = SitePolicy.load(tmp_path / "policy.yaml")
    assert (policy.may_leave.patient_count, policy.may_leave.losses) == (False, True)
    assert POLICY.may_leave.losses is False
    assert POLICY.permitted_units == ("patient",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "policy.yaml is missing"),
        ("epsilon_cap: [", "is not YAML"),
        ("delta: 0.1", "epsilon_cap: Field required"),
        ("epsilon_cap: 4\ndelta: 0.1\nepsilon: 3", "epsilon: no such field"),
        ("epsilon_cap: 4\ndelta: 2", "delta: Input should be less than 1"),
        ("epsilon_cap: 4\ndelta: 0.1\npermitted_units: [none]", "needs epsilon_cap: null"),
    ],
)
def test_a_policy_that_cannot_be_followed_is_refused(tmp_path, text, words):
    if text is not None:
        (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(PrivacyError, match=words):
        SitePolicy.load(tmp_path / "policy.yaml")


@pytest.mark.parametrize("word", ["null", "none", "NULL", "None", "none  # data are public"])
def test_no_cap_is_a_word(tmp_path, word):
    (tmp_path / "policy.yaml").write_text(f"epsilon_cap: {word}\ndelta: 0.001\n", encoding="utf-8")
    assert SitePolicy.load(tmp_path / "policy.yaml").epsilon_cap is None


NO_PLAIN_NUMBER = """|  # 8|~|yes|on|true|No|1:30|010|08|1_000|0x10|0b11|.inf|-.inf|.nan|1e-3|1e3|1.5e3|1e400|1.0e+400
2026-01-01|'8'|8,5|8 8|[8]|{a: 8}|!!str 8|''|٨|８|infinity|1/2|unlimited|-1|0""".replace("\n", "|").split("|")


@pytest.mark.parametrize("key", ["epsilon_cap", "delta", "smallest_cohort", "secure_threshold"])
@pytest.mark.parametrize("value", NO_PLAIN_NUMBER)
def test_what_is_no_number_in_plain_decimals_is_refused(tmp_path, key, value):
    lines = {"epsilon_cap": "8", "delta": "0.001"} | {key: value}
    (tmp_path / "policy.yaml").write_text("".join(f"{k}: {v}\n" for k, v in lines.items()), encoding="utf-8")
    with pytest.raises(PrivacyError, match=key) as error:
        SitePolicy.load(tmp_path / "policy.yaml")
    assert "\n" not in str(error.value)
    assert "Got: " in str(error.value)
    assert "Do: " in str(error.value)


@pytest.mark.parametrize(("value", "cap"), [("8", 8), ("8.", 8), ("+8.50", 8.5), (".5", 0.5), ("1.5e+1  # ε", 15)])
def test_plain_decimals(tmp_path, value, cap):
    (tmp_path / "policy.yaml").write_text(f"epsilon_cap: {value}\ndelta: 1.0e-5\n", encoding="utf-8")
    found = SitePolicy.load(tmp_path / "policy.yaml")
    assert (found.epsilon_cap, found.delta) == (cap, 1e-5)


def test_a_cap_that_is_there_twice_is_refused(tmp_path):
    (tmp_path / "policy.yaml").write_text("epsilon_cap: 2\ndelta: 0.001\nepsilon_cap: 8\n", encoding="utf-8")
    with pytest.raises(PrivacyError, match=r"line 3: the key epsilon_cap is there twice, first in line 1"):
        SitePolicy.load(tmp_path / "policy.yaml")


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-16", "utf-16-le", "mac-roman"])
def test_a_policy_in_another_encoding_is_one_paragraph(tmp_path, encoding, call):
    (tmp_path / "policy.yaml").write_bytes("delta: 0.001\nepsilon_cap: 8 # für alle Läufe\n".encode(encoding))
    PrivacyLedger.create(tmp_path)
    status, _, err = call("ledger", tmp_path)
    assert status == 1
    assert len(err.splitlines()) == 1
    assert "policy.yaml is not a readable policy. Got: " in err
    assert "Do: save it as UTF-8" in err


def test_a_byte_order_mark_is_taken(tmp_path):
    (tmp_path / "policy.yaml").write_bytes("epsilon_cap: 8 # für alle\ndelta: 0.001\n".encode("utf-8-sig"))
    assert SitePolicy.load(tmp_path / "policy.yaml").epsilon_cap == 8


@given(st.floats(1e-300, 1e300), st.floats(1e-12, 0.5))
def test_a_saved_policy_is_read_as_it_was(cap, delta):
    with tempfile.TemporaryDirectory() as folder:
        saved = SitePolicy(epsilon_cap=cap, delta=delta)
        saved.save(Path(folder) / "policy.yaml")
        assert SitePolicy.load(Path(folder) / "policy.yaml") == saved


def test_unit_stage_and_cohort_are_checked():
    with pytest.raises(SiteRefused, match=r"privacy unit. Got: slice. Expected: patient"):
        POLICY.check(event(unit="slice"), History(), 20)
    with pytest.raises(SiteRefused, match=r"this stage. Got: autoencoder. Expected: mask or image"):
        POLICY.check(event(stage="autoencoder"), History(), 20)
    with pytest.raises(DataError, match="at least 10") as info:
        POLICY.check(event(), History(), 7)
    assert "7" not in str(info.value)
    POLICY.check(event(), History(), 10)


def test_the_cap_is_reached_before_training_and_never_exceeded(tmp_path):
    ledger = PrivacyLedger.create(tmp_path)

    def check(history):
        POLICY.check(event(99), history, 20)

    def spend():
        for number in range(100):
            ledger.reserve(event(number), check=check)

    with pytest.raises(PrivacyBudgetExhausted, match="nothing was trained") as info:
        spend()
    spent = ledger.spent(POLICY.delta)
    assert 1 < spent.total.prv <= 2.0
    assert f"{spent.total.prv:.3f} before it" in str(info.value)


def test_unreadable_lines_and_missing_noise_exhaust_every_cap():
    with pytest.raises(PrivacyBudgetExhausted, match="ε = inf"):
        POLICY.check(event(), History((), unbounded=1), 20)
    with pytest.raises(PrivacyBudgetExhausted, match="ε = inf"):
        POLICY.check(event(sigma=0), History(), 20)


def test_a_site_of_public_data_may_train_without_privacy():
    policy = SitePolicy(epsilon_cap=None, delta=1e-3, permitted_units=("none", "patient"))
    policy.check(event(sigma=0, unit="none"), History((), unbounded=1), 20)
    with pytest.raises(ValidationError, match="greater than 0"):
        SitePolicy(epsilon_cap=0, delta=1e-3)


@pytest.mark.parametrize("name", Limits.model_fields)
def test_every_limit_is_finite_and_kept(name):
    limit = getattr(Limits(), name)
    Limits().check(**{name: limit})
    for larger in (limit + 1, float("inf"), float("nan")):
        with pytest.raises(SiteRefused, match=rf"larger than the site's policy allows. Got: limits.{name}"):
            Limits().check(**{name: larger})
    bounds = {type(rule).__name__: rule for rule in Limits.model_fields[name].metadata}
    assert "Le" in bounds
    assert getattr(Limits.of_simulation(), name) == bounds["Le"].le


def test_a_delta_above_one_over_the_declared_patients_is_refused():
    POLICY.check_delta(1000)
    with pytest.raises(SiteRefused, match=r"it would promise nothing.*Expected: at most 0.000999"):
        POLICY.check_delta(1001)
