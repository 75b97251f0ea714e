"""The commands of a deployment: provision, site, coordinator, bundle, health."""

import os
import time
from pathlib import Path
from typing import Annotated

import typer

from cmrfed.config.recipes import find_recipe
from cmrfed.core.errors import ConfigError, FederationError
from cmrfed.core.progress import say

Kit = Annotated[Path, typer.Argument(help="The kit's folder.")]


def _group(text: str) -> typer.Typer:
    return typer.Typer(help=text, no_args_is_help=True, rich_markup_mode=None)


site_app = _group("A site: check, approve code, take part.")
coordinator_app = _group("The coordinator: start, submit runs, watch, fetch.")


def add_to(app: typer.Typer) -> None:
    """Add all of these commands."""
    app.add_typer(site_app, name="site")
    app.add_typer(coordinator_app, name="coordinator")
    app.command(epilog="Example: cmrfed provision federation.yaml --out kits")(provision)
    app.command(epilog="Example: cmrfed bundle")(bundle)
    app.command(epilog="Example: cmrfed health 127.0.0.1:18444")(health)


# --- whoever provisions ------------------------------------------------------------------------------
def provision(
    federation: Annotated[Path, typer.Argument(help="Federation file, such as configs/federation.yaml.")],
    out: Annotated[Path, typer.Option(help="Folder of the start-up kits; existing ones are kept and completed.")],
    renew: Annotated[bool, typer.Option("--renew", help="Reissue all certificates for the same keys.")] = False,
    revoke: Annotated[str | None, typer.Option(help="Revoke the certificate of this site, and exit.")] = None,
) -> None:
    """Make a start-up kit for the coordinator and for each site."""
    from cmrfed.deploy import provision as kits
    from cmrfed.deploy.kit import Federation

    described = Federation.read(federation)
    if revoke:
        changed = kits.revoke(out, revoke)
        say(f"{revoke} is revoked: copy {changed} to the coordinator's kit, and start the coordinator again.")
        return
    for made in kits.provision(described, out, renew=renew):
        print(f"{made.folder}  certificate valid for {made.days:.0f} days  SHA256SUMS {made.digest}")
    again = f"cmrfed provision {federation} --out {out} --renew"
    say(f"Renew before they expire: {again}. Send each site its kit alone; keep {out / 'authority'} off the network.")


def bundle() -> None:
    """Print the digest of the code that is installed here, as a site's owner approves it."""
    from cmrfed.deploy.bundle import installed_digest

    print(installed_digest())


def health(address: Annotated[str, typer.Argument(help="host:port of a gRPC health service.")]) -> None:
    """Query a gRPC health service; for health checks of containers."""
    from cmrfed.deploy.health import serving

    if not serving(address):
        raise FederationError(f"{address} does not serve", do="see the log of that process")
    print("serving")


# --- a site -----------------------------------------------------------------------------------------
@site_app.command("keys", epilog="Example: cmrfed site keys my-keys --name hospital-b")
def site_keys(
    folder: Annotated[Path, typer.Argument(help="A new folder for the keys; they stay at the site.")],
    name: Annotated[str, typer.Option(help="Name of the site in the federation.")],
) -> None:
    """Create a site's keys, and the certificate request and public key to send to the provisioner."""
    from cmrfed.deploy.provision import make_own_keys

    request, public = make_own_keys(folder, name)
    say(f"Send {request} and {public}; keep the rest. Later, copy tls and node of {folder} into the kit that you get.")


@site_app.command("check", epilog="Example: cmrfed site check kits/hospital-a")
def site_check(kit: Kit) -> None:
    """Check a site's prerequisites; each failed check says what to do."""
    from cmrfed.deploy.checks import check_site

    lines = check_site(kit)
    for line in lines:
        print(f"{'ok  ' if line.fine else 'FAIL'}  {line.what:<12}{line.text}")
    wrong = [line.what for line in lines if not line.fine]
    if wrong:
        raise ConfigError("the site is not ready", got=f"FAIL at {', '.join(wrong)}", do="what these lines say")


@site_app.command("start", epilog="Example: cmrfed site start kits/hospital-a")
def site_start(kit: Kit) -> None:
    """Take part in the federation until stopped; gate and node are restarted when they exit."""
    from cmrfed.deploy.site_node import start

    start(kit)


@site_app.command("status", epilog="Example: cmrfed site status kits/hospital-a")
def site_status(kit: Kit) -> None:
    """Show a site's certificate, approvals, received requests and what left the site."""
    from cmrfed.deploy.site_node import status_lines

    for line in status_lines(kit):
        print(line)


@site_app.command("approve", epilog="Example: cmrfed site approve kits/hospital-a DIGEST")
def site_approve(
    kit: Kit,
    digest: Annotated[str, typer.Argument(help="Full digest of the bundle: 64 characters.")],
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Withdraw the approval instead.")] = False,
) -> None:
    """Allow a bundle of code to run on this site's data."""
    from cmrfed.deploy.approval import Approvals
    from cmrfed.deploy.kit import read_site_kit

    read_site_kit(kit)
    Approvals(kit / "site").approve(digest, withdraw=withdraw)
    say(f"{'Withdrawn' if withdraw else 'Approved'}: {digest}")


@site_app.command("gate", hidden=True, epilog="Example: cmrfed site gate kits/hospital-a")
def site_gate(kit: Kit, compose: Annotated[bool, typer.Option("--compose")] = False) -> None:
    """Run the gate alone, in the foreground; for containers."""
    from cmrfed.deploy.inner import make_inner, nginx_command

    make_inner(kit, keep=compose)
    command = nginx_command(kit, "gate.compose.conf" if compose else "gate.conf")
    os.execv(command[0], command)  # noqa: S606 - our own command


@site_app.command("node", hidden=True, epilog="Example: cmrfed site node kits/hospital-a --gate localhost:18543")
def site_node(kit: Kit, gate: Annotated[str, typer.Option(help="host:port of the gate.")]) -> None:
    """Run the node alone, in the foreground."""
    from cmrfed.core.owner import owned
    from cmrfed.deploy.node import main
    from cmrfed.deploy.site_node import join

    with owned(kit / "state" / "node", "the site's node"):
        join(kit)
        _wait_for(kit / "state" / "inner" / "ca.crt")
        main(kit, gate)


# --- the coordinator ------------------------------------------------------------------------------------
@coordinator_app.command("start", epilog="Example: cmrfed coordinator start kits/coordinator")
def coordinator_start(kit: Kit, compose: Annotated[bool, typer.Option("--compose", hidden=True)] = False) -> None:
    """Run proxy, SuperLink and run executor until stopped; resumes interrupted runs."""
    from cmrfed.deploy.coordinator import start

    start(kit, with_proxy=not compose)


@coordinator_app.command("proxy", hidden=True, epilog="Example: cmrfed coordinator proxy kits/coordinator")
def coordinator_proxy(kit: Kit, compose: Annotated[bool, typer.Option("--compose")] = False) -> None:
    """Run the proxy alone, in the foreground; for containers."""
    from cmrfed.deploy.inner import nginx_command

    _wait_for(kit / "state" / "inner" / "ca.crt")
    command = nginx_command(kit, "proxy.compose.conf" if compose else "proxy.conf")
    os.execv(command[0], command)  # noqa: S606 - our own command


@coordinator_app.command("submit", epilog="Example: cmrfed coordinator submit kits/coordinator recipe.yaml")
def coordinator_submit(
    kit: Kit,
    recipe: Annotated[Path, typer.Argument(help="A recipe, for as many sites as the federation has.")],
    assign: Annotated[list[str] | None, typer.Option("--set", help="key=value over the recipe's.")] = None,
) -> None:
    """Start a run, or resume an interrupted one."""
    from cmrfed.deploy.coordinator import status_lines, submit

    name = submit(kit, find_recipe(recipe), list(assign or []))
    say(f"Run {name} is submitted. Sites run it once its bundle is approved there.")
    for line in status_lines(kit):
        print(line)


@coordinator_app.command("status", epilog="Example: cmrfed coordinator status kits/coordinator --watch")
def coordinator_status(
    kit: Kit, watch: Annotated[bool, typer.Option("--watch", help="Refresh every 5 s until Ctrl-C.")] = False
) -> None:
    """Show sites, runs and rounds, and why a site is excluded."""
    from cmrfed.deploy.coordinator import status_lines

    while True:
        lines = list(status_lines(kit))
        print(("\033[2J\033[H" if watch else "") + "\n".join(lines), flush=True)
        if not watch:
            return
        time.sleep(5)


@coordinator_app.command("logs", epilog="Example: cmrfed coordinator logs kits/coordinator my-run")
def coordinator_logs(kit: Kit, run: Annotated[str, typer.Argument(help="Name of the run.")]) -> None:
    """Show the coordinator's log of a run."""
    from cmrfed.deploy.coordinator import logs

    print(logs(kit, run))


@coordinator_app.command("stop", epilog="Example: cmrfed coordinator stop kits/coordinator my-run")
def coordinator_stop(kit: Kit, run: Annotated[str, typer.Argument(help="Name of the run.")]) -> None:
    """Stop a run; submitting it again resumes after the last completed round."""
    from cmrfed.deploy.coordinator import stop

    stop(kit, run)
    say(f"Run {run} is stopped.")


@coordinator_app.command("fetch", epilog="Example: cmrfed coordinator fetch kits/coordinator my-run --out out/my-run")
def coordinator_fetch(
    kit: Kit,
    run: Annotated[str, typer.Argument(help="Name of the run.")],
    out: Annotated[Path, typer.Option(help="A new folder for generators and records.")],
) -> None:
    """Copy the trained generators of a finished run, ready for `cmrfed synthesize`."""
    from cmrfed.deploy.coordinator import fetch

    if out.exists():
        raise ConfigError(f"{out} exists", do="choose another folder")
    say(f"Fetched: {fetch(kit, run, out)}. Next: cmrfed synthesize {out} --out SYNTHETIC")


def _wait_for(path: Path, seconds: float = 60.0) -> None:
    """Wait for a file that another container makes."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            raise FederationError(f"{path} did not appear", do="see that gate, or SuperLink, runs beside")
        time.sleep(0.5)
