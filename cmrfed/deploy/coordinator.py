"""The coordinator's side: start, submit, watch, fetch. Its commands talk to Flower's SuperLink on this machine."""

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from cmrfed.config.experiment import ALL_STAGES, Experiment, check_fits_sites, read_recipe, resolve
from cmrfed.core.artifacts import new_folder, write_bytes, write_json, write_text
from cmrfed.core.errors import CmrfedError, ConfigError, DataError, FederationError
from cmrfed.core.owner import owned, refuse_if_owned
from cmrfed.core.progress import say
from cmrfed.core.settings.config import Section
from cmrfed.core.settings.validation import read_model
from cmrfed.deploy.bundle import digest_bundle, write_app
from cmrfed.deploy.certificates import days_left
from cmrfed.deploy.health import serving
from cmrfed.deploy.inner import make_inner, nginx_command
from cmrfed.deploy.kit import CoordinatorKit, read_coordinator_kit
from cmrfed.deploy.node import flower_environment, toml_text
from cmrfed.deploy.provision import EVERYWHERE, LOOPBACK
from cmrfed.deploy.submission import FILE as SUBMISSION
from cmrfed.deploy.submission import Submission, read_submission
from cmrfed.deploy.supervisor import Supervisor, Worker
from cmrfed.federation.server.checkpoint import RoundStore
from cmrfed.federation.server.metrics import SiteRound
from cmrfed.federation.server.statements import FILE as STATEMENTS
from cmrfed.pipeline.files.record import is_run, read_run

CONNECTION = "coordinator"
FETCHED = ("CONTENTS.md", "run.json", "audit.json", STATEMENTS, "generators", "start", *ALL_STAGES)
LOOK_EVERY_S = 30.0
RESUMES = 5
_PATIENCE_S = 120


def start(kit_folder: Path, *, with_proxy: bool = True) -> None:
    """Run the coordinator until asked to end: proxy, SuperLink and what executes runs.

    Registers the sites' node keys and goes on with runs that were interrupted, once the SuperLink answers.

    Args:
        kit_folder: The coordinator's kit.
        with_proxy: False where the proxy is a container of its own; the SuperLink then listens to its network.

    Raises:
        InUse: The coordinator runs already.
    """
    kit = read_coordinator_kit(kit_folder)
    with owned(kit_folder / "state", "the coordinator"):
        _start(kit_folder, kit, with_proxy=with_proxy)


def _start(kit_folder: Path, kit: CoordinatorKit, *, with_proxy: bool) -> None:
    settings, inner = kit.coordinator, make_inner(kit_folder, keep=not with_proxy)
    secret = kit_folder / "state" / "superexec.secret"
    write_bytes(secret, secrets.token_bytes(32))
    secret.chmod(0o600)
    _write_connection(kit_folder, settings.inner_port)
    superlink = Worker("superlink", [
        _program("flower-superlink"),
        "--host", LOOPBACK if with_proxy else EVERYWHERE, "--port", str(settings.inner_port),
        "--ssl-ca-certfile", str(inner / "ca.crt"),
        "--ssl-certfile", str(inner / "server.crt"), "--ssl-keyfile", str(inner / "server.key"),
        "--enable-supernode-auth", "--isolation", "process", "--superexec-auth-secret-file", str(secret),
        "--database", str(kit_folder.absolute() / "state" / "superlink.db"),
        "--health-server-address", f"{LOOPBACK}:{settings.health_port}", "--disable-runtime-dependency-installation",
    ], _explain_superlink)  # fmt: skip
    executor = Worker("executor", [
        _program("flower-superexec"),
        "--root-certificates", str(inner / "ca.crt"), "--runtime-api-address", f"localhost:{settings.inner_port}",
        "--superexec-auth-secret-file", str(secret),
    ], ready=lambda: serving(f"{LOOPBACK}:{settings.health_port}"))  # fmt: skip
    workers = [superlink, executor]
    if with_proxy:
        workers.append(Worker("proxy", nginx_command(kit_folder, "proxy.conf"), _explain_proxy))
    say(f"Coordinator of {kit.federation} at {settings.host}:{settings.port}, {len(kit.sites)} sites; Ctrl-C ends it.")
    duties = Duties(kit_folder, kit)
    Supervisor(workers, kit_folder / "state", {**os.environ, **flower_environment(kit_folder)}, duties.tick).run()


class Duties:
    """What the coordinator does beside: it registers sites, and goes on with runs that were interrupted."""

    def __init__(self, kit_folder: Path, kit: CoordinatorKit) -> None:
        self.folder, self.kit, self._registered, self._next = kit_folder, kit, False, 0.0

    def tick(self) -> None:
        """Do what is due, now and then."""
        if time.monotonic() < self._next or not serving(f"{LOOPBACK}:{self.kit.coordinator.health_port}"):
            return
        try:
            if not self._registered:
                register_sites(self.folder, self.kit)
                self._registered = True
            for name in interrupted(self.folder):
                say(f"Run {name} was interrupted and goes on: Flower run {_start_run(self.folder, self.kit, name)}")
        except CmrfedError as error:
            say(str(error))
        self._next = time.monotonic() + LOOK_EVERY_S


def register_sites(kit_folder: Path, kit: CoordinatorKit) -> None:
    """Make the SuperLink's nodes those of the kit: new keys are registered, changed and removed ones are struck off."""
    path = kit_folder / "state" / "registered.json"
    known = read_registered(kit_folder)
    wanted = {
        name: hashlib.sha256((kit_folder / "sites" / f"{name}.pub").read_bytes()).hexdigest() for name in kit.sites
    }
    for name in [n for n, row in known.items() if wanted.get(n) != row.key]:
        _flwr(kit_folder, "supernode", "unregister", known[name].node, CONNECTION)
        del known[name]
        write_json(path, {name: row.model_dump() for name, row in known.items()})
    for name in [n for n in wanted if n not in known]:
        key = str(kit_folder / "sites" / f"{name}.pub")
        answer = _flwr(kit_folder, "supernode", "register", key, CONNECTION, "--name", name)
        known[name] = Registered(key=wanted[name], node=str(answer["node-id"]))
        write_json(path, {name: row.model_dump() for name, row in known.items()})


class Registered(Section):
    """A site as the SuperLink knows it."""

    key: str
    """SHA-256 of the public key of its node."""
    node: str
    """Number of the node."""


def read_registered(kit_folder: Path) -> dict[str, Registered]:
    """Name → node of each site that is registered at the SuperLink.

    Raises:
        DataError: The file is damaged.
    """
    path = kit_folder / "state" / "registered.json"
    return read_model(path, dict[str, Registered], do="restore it from a copy") if path.exists() else {}


# --- runs ---------------------------------------------------------------------------------------------
def submit(kit_folder: Path, recipe: Path, overrides: list[str]) -> str:
    """Start a run, or go on with it where it was interrupted.

    Returns:
        Name of the run: that of the recipe.

    Raises:
        ConfigError: The recipe does not fit the federation or needs plugins at the sites, or another run has its
            name.
        FederationError: The coordinator does not run.
        InUse: The run is in progress.
    """
    kit, experiment = read_coordinator_kit(kit_folder), resolve(recipe, overrides)
    if experiment.sites != len(kit.sites):
        raise ConfigError(
            "the recipe is for another number of sites", got=f"data.partition.sites = {experiment.sites}",
            expected=f"{len(kit.sites)}: {', '.join(kit.sites)}", do=f"--set data.partition.sites={len(kit.sites)}",
        )  # fmt: skip
    check_fits_sites(experiment)
    folder = kit_folder / "runs" / experiment.name
    before = read_submission(folder) if (folder / SUBMISSION).exists() else None
    if before and before.digest != experiment.digest:
        raise ConfigError(
            f"another run is called {experiment.name}", got=f"experiment {experiment.digest[:12]}",
            expected=f"experiment {before.digest[:12]}", do="give it another name: --set name=...",
        )  # fmt: skip
    refuse_if_owned(folder, f"run {experiment.name},")
    write_text(folder / "recipe.yaml", yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False))
    Submission(digest=experiment.digest, time=datetime.now(UTC).isoformat(timespec="seconds")).write(folder)
    _start_run(kit_folder, kit, experiment.name)
    return experiment.name


def _start_run(kit_folder: Path, kit: CoordinatorKit, name: str) -> str:
    folder = (kit_folder / "runs" / name).absolute()
    with new_folder(kit_folder / "state" / "bundle") as part:
        write_app(part / "cmrfed")
    app = kit_folder / "state" / "bundle" / "cmrfed"
    pairs = {"recipe": folder / "recipe.yaml", "run-dir": folder, "sites": " ".join(kit.sites)}
    config = " ".join(f"{key}={toml_text(str(value))}" for key, value in pairs.items())
    answer = _flwr(kit_folder, "run", str(app), CONNECTION, "-c", config)
    started = {"flower_run": str(answer["run-id"]), "bundle": digest_bundle(app)}
    read_submission(folder).model_copy(update=started).write(folder)
    return str(answer["run-id"])


def interrupted(kit_folder: Path) -> list[str]:
    """Runs that were killed: submitted, not finished, not stopped, not ended by a problem, and gone from Flower.

    A run that is killed again and again without a new round is left alone after `RESUMES` times.
    """
    waiting = {}
    for folder in _submitted(kit_folder):
        try:
            about = read_submission(folder)
            if about.flower_run and not about.stopped and not _ended(folder):
                waiting[folder.name] = about
        except DataError as error:  # the other runs go on
            say(str(error))
    if not waiting:
        return []
    alive = {str(run["run-id"]) for run in _runs(kit_folder) if "finished" not in str(run["status"])}
    dead = {name: about for name, about in waiting.items() if about.flower_run not in alive}
    runs = kit_folder / "runs"  # a run may have ended by itself while Flower was asked
    return [name for name, about in dead.items() if not _ended(runs / name) and _count_resume(runs / name, about)]


def _submitted(kit_folder: Path) -> list[Path]:
    """Folders of all runs that were ever submitted."""
    return sorted(path.parent for path in (kit_folder / "runs").glob(f"*/{SUBMISSION}"))


def _count_resume(folder: Path, about: Submission) -> bool:
    """Whether a run may be resumed once more."""
    rounds = sum(RoundStore(folder / stage, about.digest).latest() for stage in ALL_STAGES)
    count = about.resumes + 1 if about.resumed_at == rounds else 1
    about.model_copy(update={"resumes": count, "resumed_at": rounds}).write(folder)
    return count <= RESUMES


def stop(kit_folder: Path, name: str) -> None:
    """Stop a run; it goes on when it is submitted again."""
    about = _submission(kit_folder, name)
    about.model_copy(update={"stopped": True}).write(kit_folder / "runs" / name)
    _flwr(kit_folder, "stop", str(about.flower_run), CONNECTION)


def logs(kit_folder: Path, name: str) -> str:
    """What the run printed at the coordinator."""
    about = _submission(kit_folder, name)
    return _said(_call(kit_folder, ["log", str(about.flower_run), CONNECTION, "--show"]))


def fetch(kit_folder: Path, name: str, out: Path) -> Path:
    """Copy the result of a finished run: what `cmrfed synthesize` needs, and the record of each round."""
    folder = kit_folder / "runs" / name
    _submission(kit_folder, name)
    if not _finished(folder):
        raise DataError(f"run {name} is not finished", do=f"see cmrfed coordinator status {kit_folder}")
    with new_folder(out) as part:
        for item in (folder / one for one in FETCHED):
            if item.is_dir():
                shutil.copytree(item, part / item.name)
            elif item.exists():
                shutil.copy2(item, part / item.name)
    return out


def _submission(kit_folder: Path, name: str) -> Submission:
    folder = kit_folder / "runs" / name
    if not (folder / SUBMISSION).exists():
        there = [each.name for each in _submitted(kit_folder)]
        raise ConfigError(f"there is no run {name}", expected=", ".join(there) or "none was submitted")
    return read_submission(folder)


def _problem(folder: Path) -> str | None:
    """Why a run ended by itself, as it reported."""
    return read_run(folder).problem if is_run(folder) else None


def _ended(folder: Path) -> bool:
    """Whether a run ended by itself."""
    return _finished(folder) or _problem(folder) is not None


def _finished(folder: Path) -> bool:
    return is_run(folder) and read_run(folder).finished is not None


# --- status --------------------------------------------------------------------------------------------
def status_lines(kit_folder: Path) -> Iterator[str]:
    """Sites and runs, in words."""
    kit = read_coordinator_kit(kit_folder)
    yield f"{kit.federation}: coordinator {kit.coordinator.host}:{kit.coordinator.port}"
    yield f"certificate: {days_left(kit_folder / 'tls' / 'server.crt'):.0f} days left"
    try:
        nodes = {
            str(node["node-id"]): node for node in _flwr(kit_folder, "supernode", "ls", CONNECTION).get("nodes", [])
        }
    except FederationError as error:
        yield str(error)
        return
    for name, row in read_registered(kit_folder).items():
        node = nodes.get(row.node, {})
        yield f"site {name:<20} {node.get('status', 'not registered')}"
    running = {str(run["run-id"]): str(run["status"]) for run in _runs(kit_folder)}
    for folder in _submitted(kit_folder):
        try:
            about = read_submission(folder)
            yield from _run_lines(folder, about, running.get(str(about.flower_run), "unknown to Flower"))
        except DataError as error:  # the other runs are still reported
            yield f"run {folder.name}: {error}"


def _run_lines(folder: Path, about: Submission, running: str) -> Iterator[str]:
    yield f"run {folder.name}: {'finished' if _finished(folder) else running}; bundle {about.bundle!s}"
    if problem := _problem(folder):
        yield f"  STOPPED: {problem}"
    experiment = Experiment.model_validate(read_recipe(folder / "recipe.yaml"))
    for stage in experiment.stages:
        total = experiment.training(stage).rounds
        rows = RoundStore(folder / stage, experiment.digest).metrics()
        yield f"  {stage}: round {len(rows)} of {total}"
        if rows:
            yield from (_site_line(site, row) for site, row in rows[-1].sites.items())


def _site_line(site: str, row: SiteRound) -> str:
    if row.status != "ok":
        return f"    {site:<20} {row.status}: {row.reason}"
    paid = f"ε = {row.spent.at[0].prv:.3f} so far" if row.spent and row.spent.bounded else "no guarantee"
    loss = "" if row.loss is None else f", loss {row.loss:.4f}"
    return f"    {site:<20} ok: {paid}{loss}"


# --- Flower ----------------------------------------------------------------------------------------------
def _runs(kit_folder: Path) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = _flwr(kit_folder, "ls", CONNECTION).get("runs", [])
    return runs


def _flwr(kit_folder: Path, *arguments: str) -> dict[str, Any]:
    """Run a command of Flower's and return the JSON that it prints.

    Raises:
        FederationError: It failed, or the SuperLink does not answer.
    """
    done = _call(kit_folder, [*arguments, "--format", "json"])
    try:
        answer: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{") :])
    except ValueError:
        answer = {"success": False, "error-message": _said(done)[-500:]}
    if answer.get("success") is False or done.returncode:
        raise FederationError(
            f"Flower refused: flwr {' '.join(arguments[:2])}", got=str(answer.get("error-message", "")).strip()[-500:],
            do=f"see that the coordinator runs: cmrfed coordinator start {kit_folder}",
        )  # fmt: skip
    return answer


def _call(kit_folder: Path, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = [_program("flwr"), *arguments]
    try:
        return subprocess.run(  # noqa: S603 - our own command
            command,
            env={**os.environ, **flower_environment(kit_folder)},
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=_PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise FederationError(
            f"Flower does not answer within {_PATIENCE_S} s", do=f"cmrfed coordinator start {kit_folder}"
        ) from None


def _said(done: subprocess.CompletedProcess[str]) -> str:
    return f"{done.stdout}\n{done.stderr}".strip()


def _program(name: str) -> str:
    """One of Flower's programs, of the same installation as this one."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        raise ConfigError(f"{name} is not installed", do="pip install the project, with its dependencies")
    return found


def _write_connection(kit_folder: Path, port: int) -> None:
    """Tell Flower's commands where the SuperLink is."""
    certificate = toml_text(str(kit_folder.absolute() / "state" / "inner" / "ca.crt"))
    text = f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\naddress = "{LOOPBACK}:{port}"\n'
    write_text(kit_folder / "state" / "flwr" / "config.toml", f"{text}root-certificates = {certificate}\n")


def _explain_superlink(said: str) -> str | None:
    return "its port is taken: set inner_port in federation.yaml" if "ddress already in use" in said else None


def _explain_proxy(said: str) -> str | None:
    if "Address already in use" in said:
        return "its port is taken: set port in federation.yaml, or end what listens there"
    if "Permission denied" in said:
        return "it may not listen there: take a port above 1023"
    return said.strip().splitlines()[-1][:300] if "[emerg]" in said else None
