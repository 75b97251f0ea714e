"""How a site answers a message: it acts, or refuses with the reason that may leave. Loads no torch by itself.

Requests to train are answered in `cmrfed.federation.site.site`.
"""

import logging
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

from flwr.app import Context, RecordDict

from cmrfed.core.errors import CmrfedError, DataError, FederationError, PrivacyError, SiteRefused
from cmrfed.core.settings.registry import builtins_only
from cmrfed.federation.messages import encode_info, encode_refusal
from cmrfed.federation.secagg.client import (
    MaskStep,
    ShareStep,
    SiteMasking,
    Step,
    UnmaskStep,
    decode_step,
    encode_answer,
)
from cmrfed.federation.site.folder import SiteFolder
from cmrfed.privacy.ledger.journal import Journal
from cmrfed.privacy.ledger.place import ledger_folder

_SEE_LOG = "the site cannot use its data or its settings; the reason is in its own log, and stays there"
_log = logging.getLogger("cmrfed")

S = TypeVar("S", bound=SiteFolder)


def open_site(context: Context, kind: type[S]) -> S:
    """Open the site that a Flower node stands for: the only difference between simulation and hospital.

    Raises:
        DataError: The node names no folder, or the folder is not a site.
    """
    if "site-root" in context.node_config:
        return kind.open(Path(str(context.node_config["site-root"])))
    run_dir, number = context.run_config.get("run-dir"), context.node_config.get("partition-id")
    if not run_dir or number is None:
        raise DataError(
            "the node knows no site",
            got=f"node config {dict(context.node_config)}, run-dir {run_dir!r}",
            expected="site-root in the node config, or a simulation with run-dir",
            do="start the node with --node-config 'site-root=\"/srv/site\"'",
        )
    return kind.open(Path(str(run_dir)) / "sites" / f"{int(number):02d}")


def answer_hello(context: Context) -> RecordDict:
    """Answer the question who this is."""
    details, root = False, None
    try:
        site = open_site(context, SiteFolder)
        root = site.root
        details = site.policy.may_leave.error_details
        return encode_info(site.hello())
    except PrivacyError as error:
        _log.error("the site cannot take part: %s", error)
        return encode_refusal(_without_paths(error, root))
    except CmrfedError as error:
        _log.error("the site cannot take part: %s", error)
        return encode_refusal(str(error) if details else _SEE_LOG)


def answer_step(context: Context, content: RecordDict, name: str) -> RecordDict:
    """Answer a step of a secure sum: "shares", "masked" or "unmask".

    Raises:
        FederationError: The site failed; see `answer`.
    """

    def refusal(site: str, reason: str) -> RecordDict:
        return encode_answer(site, {}, reason=reason)

    return answer(context, SiteFolder, lambda site: _secure_step(site, decode_step(name, content)), refusal)


def _secure_step(site: SiteFolder, step: Step) -> RecordDict:
    """Answer a step of a secure sum.

    Raises:
        SiteRefused: It is not safe to answer, or is not what was asked before.
    """
    name = site.record.name
    masking = SiteMasking(name, site.state(step.run, step.stage), step.round, step.key)
    if isinstance(step, ShareStep):
        return encode_answer(name, masking.share(step))
    if isinstance(step, MaskStep):
        return encode_answer(name, {}, masking.masked(step, site.hello().patients))
    if isinstance(step, UnmaskStep):
        return encode_answer(name, masking.unmask(step))
    raise AssertionError(f"no such step: {type(step).__name__}")


def answer(
    context: Context, kind: type[S], act: Callable[[S], RecordDict], refusal: Callable[[str, str], RecordDict]
) -> RecordDict:
    """What a site answers, or its refusal: what a user can act on is no failure.

    A deployed site answers with the code of the bundle alone: plugins that are installed beside it are not loaded.

    Args:
        context: The node's.
        kind: As what the site is opened.
        act: Gives the answer.
        refusal: Gives a refusal, from the name of the site and the reason that may leave.

    Raises:
        FederationError: The site failed. Its words may hold patients' data, so they stay in the site's log unless its
            policy lets them leave.
    """
    name, root, details = "", None, False
    try:
        site = open_site(context, kind)
        name, root = site.record.name, site.root
        details = site.policy.may_leave.error_details
        with nullcontext() if site.record.simulated else builtins_only():
            return act(site)
    except (SiteRefused, PrivacyError) as error:
        note(root, "declined", why=str(error))
        return refusal(name, _without_paths(error, root))
    except CmrfedError as error:
        _log.error("the site cannot train: %s", error)
        note(root, "failed", why=str(error))
        return refusal(name, str(error) if details else _SEE_LOG)
    except Exception as error:
        note(root, "failed", why=f"{type(error).__name__}: {error}")
        if details:
            raise
        _log.error("the site failed", exc_info=error)
        raise FederationError(_SEE_LOG) from None


def _without_paths(error: CmrfedError, root: Path | None) -> str:
    """The words of a refusal as they travel: where the site keeps its folders is nobody else's business."""
    text = str(error)
    if root is None:
        return text
    with suppress(CmrfedError):
        ledger = ledger_folder(root)
        if ledger != root:
            text = text.replace(f"{ledger}/", "").replace(str(ledger), "the ledger's folder")
    return text.replace(f"{root}/", "").replace(str(root), "the site's folder")


def note(root: Path | None, kind: str, /, **body: Any) -> None:
    """Write into the site's journal; a disk that is full keeps no site from its answer."""
    try:
        if root:
            Journal(root).write(kind, **body)
    except OSError as error:
        _log.error("the journal cannot be written: %s", error)
