"""A deployed site believes nobody's audit but its own, and trains privately only after it."""

from pathlib import Path

import pytest

from cmrfed.core.artifacts import read_json
from cmrfed.core.errors import PrivacyError
from cmrfed.deploy.checks import _audit
from cmrfed.federation.messages import Spent
from cmrfed.federation.site import audit as site_audit
from cmrfed.federation.site.folder import SiteRecord
from cmrfed.federation.site.site import Site
from cmrfed.privacy.audit.checks import Check
from cmrfed.privacy.audit.mu import Mu
from cmrfed.privacy.audit.result import AuditResult
from cmrfed.privacy.policy import SitePolicy
from cmrfed.privacy.settings import PrivateTraining
from tests.federation_world import make_sites, tiny_request

PRIVATE = PrivateTraining(
    sampling_rate=0.5, noise_multiplicity=1, declared_patients=2, unit="patient", noise_multiplier=1.0
)


class Audits:
    """Stands for the audit, and counts."""

    def __init__(self, p_value: float = 0.5) -> None:
        self.p_value, self.asked = p_value, []

    def __call__(self, stage, generator, training, privacy, device):
        self.asked.append((stage, training, privacy, device))
        return AuditResult((Check("noise: law", "0.1", "0", self.p_value),), Mu(1, 0, 2, 1, 9), 1.0, 10)


@pytest.fixture
def audits(monkeypatch: pytest.MonkeyPatch) -> Audits:
    made = Audits()
    monkeypatch.setattr(site_audit, "audit_training", made)
    return made


def site(tmp_path: Path, *, simulated: bool = False) -> Site:
    root = make_sites(tmp_path, 1)[0]
    record = Site.open(root).record.model_copy(update={"simulated": simulated})
    (root / "policy.yaml").unlink()
    return Site.register(root, record, SitePolicy.of_simulation("patient", 1000.0, 1e-3))


def test_a_deployed_site_audits_once_for_the_same_settings(tmp_path: Path, audits: Audits) -> None:
    made = site(tmp_path)
    first = made.train_round(*tiny_request(1, privacy=PRIVATE))
    assert first.spent is not None
    assert first.spent.audited
    made.train_round(*tiny_request(2, privacy=PRIVATE))
    assert len(audits.asked) == 1
    made.train_round(*tiny_request(3, privacy=PRIVATE.model_copy(update={"clip_norm": 2.0})))
    assert [row["passed"] for row in read_json(made.root / "audit.json")] == [True, True]
    assert (made.root / "audit.json").stat().st_mode & 0o077 == 0
    assert _audit(made.root).startswith("passed for 2 private request(s), the last one image")


def test_other_code_is_audited_again(tmp_path: Path, audits: Audits, monkeypatch: pytest.MonkeyPatch) -> None:
    made = site(tmp_path)
    made.train_round(*tiny_request(1, privacy=PRIVATE))
    monkeypatch.setattr(site_audit, "code_digest", lambda: "another version")
    made.train_round(*tiny_request(2, privacy=PRIVATE))
    assert len(audits.asked) == 2


def test_a_site_whose_audit_fails_refuses_before_anyone_pays(tmp_path: Path, audits: Audits) -> None:
    audits.p_value = 1e-9
    made = site(tmp_path)
    for number in (1, 2):
        with pytest.raises(PrivacyError, match=r"fails its audit at this site, and trains on nobody\. Got: noise: law"):
            made.train_round(*tiny_request(number, privacy=PRIVATE))
    assert len(audits.asked) == 1, "a failed audit is not tried until it passes"
    assert made.open_ledger().history().events == ()
    with pytest.raises(PrivacyError, match="failed its audit here"):
        _audit(made.root)


@pytest.mark.parametrize("privacy", [PRIVATE, None])
def test_simulated_sites_and_rounds_without_privacy_are_not_audited(tmp_path: Path, audits: Audits, privacy) -> None:
    made = site(tmp_path, simulated=True)
    if privacy is None:
        (made.root / "policy.yaml").unlink()
        made = Site.register(made.root, made.record, SitePolicy.of_simulation("none", None, 1e-3))
    reply = made.train_round(*tiny_request(1, privacy=privacy))
    assert reply.spent is not None
    assert not reply.spent.audited
    assert audits.asked == []
    assert not (made.root / "audit.json").exists()


def test_the_stored_reply_says_the_same(tmp_path: Path, audits: Audits) -> None:
    made = site(tmp_path)
    replies = [made.train_round(*tiny_request(1, privacy=PRIVATE)) for _ in range(2)]
    assert replies[0].spent == replies[1].spent


def test_one_round_without_an_audit_is_enough_to_have_none(tmp_path: Path, audits: Audits) -> None:
    spent = site(tmp_path).train_round(*tiny_request(1, privacy=PRIVATE)).spent
    assert isinstance(spent, Spent)
    assert spent.joined(spent).audited
    assert not spent.joined(spent.model_copy(update={"audited": False})).audited
    assert "audited" not in spent.model_copy(update={"audited": False}).model_dump()


def test_nothing_is_known_of_a_site_that_never_audited(tmp_path: Path) -> None:
    assert _audit(tmp_path).startswith("none with this code")
    assert SiteRecord.model_fields["simulated"].default is False
