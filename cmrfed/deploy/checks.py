"""What a site needs before it can take part, checked line by line; each line that fails says what to do."""

import http.client
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path

from cmrfed.core.errors import CmrfedError, ConfigError, DataError, FederationError, PrivacyError
from cmrfed.data.cohort import Cohort
from cmrfed.deploy.approval import Approvals
from cmrfed.deploy.certificates import days_left, public_key, read_key, read_node_key
from cmrfed.deploy.inner import nginx_command
from cmrfed.deploy.kit import SiteKit, read_site_kit
from cmrfed.federation.site.folder import SiteFolder
from cmrfed.privacy.ledger.ledger import PrivacyLedger
from cmrfed.privacy.ledger.memory import Memory
from cmrfed.privacy.ledger.place import ledger_folder

SOON_DAYS = 30
ROOM_BYTES = 2 << 30
"""Free disk that a site should have: two rounds of both stages, their optimizers and Flower's own files."""
CLOCK_AHEAD_S, CLOCK_BEHIND_S = 4.0, 300.0
"""Flower refuses a node whose clock is further ahead of the coordinator's, or further behind."""
TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Line:
    """One line of `cmrfed site check`."""

    what: str
    fine: bool
    text: str


def check_site(kit_folder: Path) -> list[Line]:
    """Check everything, whatever fails."""
    kit, site = read_site_kit(kit_folder), kit_folder / "site"
    checks: dict[str, Callable[[], str]] = {
        "keys": lambda: _keys(kit_folder),
        "certificate": lambda: _certificate(kit_folder),
        "policy": lambda: _policy(site),
        "data": lambda: _data(site),
        "device": lambda: _device(site),
        "disk": lambda: _disk(kit_folder),
        "ledger": lambda: _ledger(site),
        "code": lambda: _code(site),
        "audit": lambda: _audit(site),
        "nginx": lambda: nginx_command(kit_folder, "gate.conf")[0],
        "connection": lambda: probe(kit_folder, kit).text,
        "clock": lambda: _clock(probe(kit_folder, kit).ahead_s),
    }
    return list(_run(checks))


def _run(checks: dict[str, Callable[[], str]]) -> Iterator[Line]:
    for what, check in checks.items():
        try:
            yield Line(what, True, check())
        except CmrfedError as error:
            yield Line(what, False, str(error))


# --- each line ----------------------------------------------------------------------------------------
def _keys(kit: Path) -> str:
    for path in (kit / "tls" / "client.key", kit / "node" / "node.key"):
        if not path.exists():
            raise ConfigError(f"{path} is missing", do="put the key that was made for this site there (mode 600)")
        if path.stat().st_mode & 0o077:
            raise ConfigError(
                f"{path} can be read by others", got=f"{path.stat().st_mode & 0o777:o}", do=f"chmod 600 {path}"
            )
    read_node_key(kit / "node" / "node.pub")
    if read_key(kit / "tls" / "client.key").public_key() != public_key(kit / "tls" / "client.crt"):
        raise ConfigError(
            "tls/client.key is not the key of tls/client.crt", do="put the key in place that the request was made with"
        )
    return "both keys are there, and readable by their owner alone"


def _certificate(kit: Path) -> str:
    left = min(days_left(kit / "tls" / name) for name in ("client.crt", "ca.crt"))
    ask = "ask whoever provisioned the kit for a new tls/client.crt (cmrfed provision --renew)"
    if left <= 0:
        raise ConfigError("the site's certificate has expired", got=f"{-left:.0f} days ago", do=ask)
    soon = f"; {ask}" if left < SOON_DAYS else ""
    return f"valid for {left:.0f} more days{soon}"


def _policy(site: Path) -> str:
    policy = SiteFolder.open(site).policy
    cap = "no cap: NO PRIVACY IS PROMISED" if policy.epsilon_cap is None else f"ε ≤ {policy.epsilon_cap:g}"
    units, stages = ", ".join(policy.permitted_units), ", ".join(policy.permitted_stages)
    return f"{cap} at δ = {policy.delta:g}; units {units}; stages {stages}"


def _data(site: Path) -> str:
    from cmrfed.training.loop import refuse_unlabelled  # here as below: the check alone waits for torch, no supervisor

    found = SiteFolder.open(site)
    place = found.root / found.record.cohort
    if not (place / "cohort.json").exists():
        from cmrfed.data.sources import holds_dicom  # readers of scans, which a supervisor does not wait for
        from cmrfed.data.sources.walk import walk

        dicom = place.is_dir() and holds_dicom(walk(place))
        raise DataError(
            f"there is no cohort at {place}", got="DICOM files" if dicom else None,
            expected="a folder that `cmrfed prepare` made",
            do=f"cmrfed prepare SCANS site/cohort --source {'dicom' if dicom else 'acdc (or dicom)'}, "
            "or name the folder in site/site.json",
        )  # fmt: skip
    cohort: Cohort = found.cohort
    refuse_unlabelled(cohort, "the cohort")
    if len(cohort) < found.policy.smallest_cohort:
        raise DataError(
            "the cohort is smaller than the policy asks for", got=f"{len(cohort)} patients",
            expected=f"at least {found.policy.smallest_cohort} (smallest_cohort)", do="add patients",
        )  # fmt: skip
    if found.policy.epsilon_cap is not None and found.policy.delta * len(cohort) >= 1:
        raise DataError(
            "delta of policy.yaml is not below 1 / the number of patients: it would promise nothing to each of them",
            got=f"{found.policy.delta:g} with {len(cohort)} patients", expected=f"below {1 / len(cohort):.2g}",
            do="lower delta before the first round: lowering it later raises the ε of what was spent",
        )  # fmt: skip
    return f"{len(cohort)} patients, {len(cohort.rows)} slices of {cohort.size_px} px"


def _device(site: Path) -> str:
    from cmrfed.core.device import explain

    return explain(SiteFolder.open(site).record.device)


def _disk(kit: Path) -> str:
    free = shutil.disk_usage(kit).free
    if free < ROOM_BYTES:
        raise ConfigError(
            f"the disk of {kit} is nearly full",
            got=f"{free / 1e9:.1f} GB free",
            expected=f"{ROOM_BYTES / 1e9:.1f} GB",
            do="make room",
        )
    return f"{free / 1e9:.0f} GB free"


def _ledger(site: Path) -> str:
    found = SiteFolder.open(site)
    if found.record.simulated:
        raise ConfigError(
            "site.json says that the site is simulated: its ledger would begin anew with each folder",
            do="set simulated to false: the ledger belongs beside the cohort",
        )
    if not PrivacyLedger.exists(site) and not Memory(site).traces():
        return f"none yet: it is made at the first start, in {ledger_folder(site)}"
    found.open_ledger()  # a site that has trained must have one, and no older than it remembers
    return f"whole: {ledger_folder(site)}"


def _audit(site: Path) -> str:
    from cmrfed.federation.site.audit import code_digest, read_audits

    rows = read_audits(site)
    now = [row for row in rows if row.code == code_digest()]
    failed = [row for row in now if not row.passed]
    if failed:
        raise PrivacyError(
            "the private step failed its audit here: such requests are refused",
            got=f"stage {failed[-1].stage}, {failed[-1].time}",
            do=f"report {site / 'audit.json'}",
        )
    if not now:
        return "none with this code: made before the first private round that is asked for"
    return f"passed for {len(now)} private request(s), the last one {now[-1].stage} at {now[-1].time}"


def _code(site: Path) -> str:
    approvals = Approvals(site)
    waiting = [f"; {digest} waits: cmrfed site approve KIT {digest}" for digest in approvals.waiting()]
    return f"{len(approvals.digests())} bundle(s) approved" + "".join(waiting)


# --- the way to the coordinator ---------------------------------------------------------------------------
@dataclass(frozen=True)
class Reached:
    """The coordinator's proxy answered."""

    text: str
    ahead_s: float
    """How far this clock is ahead of the coordinator's; its answer is exact to a second."""


def probe(kit_folder: Path, kit: SiteKit) -> Reached:
    """Ask the coordinator's proxy whether it is there, as the site's gate would.

    Raises:
        FederationError: It is not, or one does not believe the other; the message says which, and what to do.
    """
    place = f"{kit.coordinator_host}:{kit.coordinator_port}"
    context = ssl.create_default_context(cafile=str(kit_folder / "tls" / "ca.crt"))
    context.load_cert_chain(kit_folder / "tls" / "client.crt", kit_folder / "tls" / "client.key")
    line = http.client.HTTPSConnection(kit.coordinator_host, kit.coordinator_port, timeout=TIMEOUT_S, context=context)
    try:
        line.request("GET", "/health")
        answer, now = line.getresponse(), time.time()
        said = answer.read(2000).decode(errors="replace")
        date = answer.getheader("Date")
    except ssl.SSLCertVerificationError as error:
        raise FederationError(
            f"the coordinator at {place} is not believed", got=error.verify_message,
            expected="a certificate of this federation",
            do="see that host and clock are right; if its certificate has expired, the operator renews it",
        ) from None  # fmt: skip
    except ssl.SSLError as error:
        raise FederationError(
            f"TLS with {place} failed", got=error.reason or error, expected="the coordinator's proxy, which speaks TLS",
            do="see that host and port of the kit are right, and that no other proxy stands between",
        ) from None  # fmt: skip
    except (OSError, http.client.HTTPException) as error:
        what = "its name cannot be found" if isinstance(error, socket.gaierror) else str(error) or type(error).__name__
        raise FederationError(
            f"the coordinator at {place} cannot be reached", got=what,
            do="see that it runs and that the firewall lets this machine out to it; the site goes on trying",
        ) from None  # fmt: skip
    finally:
        line.close()
    if answer.status != http.client.OK:
        raise FederationError(
            f"the coordinator at {place} does not accept this site's certificate", got=_short(answer.status, said),
            do="if it has expired or was revoked, ask whoever provisioned the kit for a new one",
        )  # fmt: skip
    ahead = now - parsedate_to_datetime(date).timestamp() if date else 0.0
    return Reached(f"{place} answers and accepts this site's certificate", ahead)


def _short(status: int, page: str) -> str:
    text = page.split("<center>")[-1] if "<center>" not in page else page.split("<center>")[1]
    return f"{status} {text.split('<')[0].strip()[:100]}"


def _clock(ahead_s: float) -> str:
    if not -CLOCK_BEHIND_S < ahead_s < CLOCK_AHEAD_S:
        raise ConfigError(
            "this machine's clock is wrong, or the coordinator's is", got=f"{ahead_s:+.0f} s",
            expected=f"within -{CLOCK_BEHIND_S:.0f} and +{CLOCK_AHEAD_S:.0f} s of the coordinator's",
            do="set it by NTP",
        )  # fmt: skip
    return f"{ahead_s:+.0f} s from the coordinator's"
