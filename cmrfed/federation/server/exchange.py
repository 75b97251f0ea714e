"""Asking sites and checking their replies: who is there, who answered, and what is set aside and why."""

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from cmrfed.core.errors import FederationError
from cmrfed.core.progress import say
from cmrfed.federation.compression import expand
from cmrfed.federation.messages import (
    SiteInfo,
    Spent,
    StageJob,
    State,
    TrainReply,
    decode_info,
    decode_reply,
    encode_job,
    to_array_record,
)
from cmrfed.federation.server.metrics import SiteRound
from cmrfed.federation.server.statements import Statements
from cmrfed.federation.server.strategy import put_aside
from cmrfed.federation.settings import FederationConfig

_METRICS = ("loss", "first_loss", "last_loss", "items", "seconds")
_POLL_S = 1.0
HELLO_S = 120.0
"""The longest wait for an introduction: one node that hangs must not hold up all others for hours."""


class Roster:
    """The sites that are connected now, by name.

    Args:
        grid: Where the nodes are.
        config: How many there should be, and how long to wait.
        statements: What the sites have said of their ledgers; None: nothing yet.
    """

    def __init__(self, grid: Grid, config: FederationConfig, statements: Statements | None = None) -> None:
        self.grid, self.config, self.statements = grid, config, statements or Statements()
        self.sites: dict[str, SiteInfo] = {}
        self.nodes: dict[str, int] = {}
        self.strangers: dict[int, str] = {}
        """Connected nodes that cannot take part, and why."""
        self._said: set[str] = set()

    def present(self) -> list[str]:
        """Names of the sites that are connected now; new nodes are asked who they are.

        Raises:
            FederationError: Two nodes claim the same name.
        """
        connected = set(self.grid.get_node_ids())
        self.nodes = {name: node for name, node in self.nodes.items() if node in connected}
        unknown = sorted(connected - set(self.nodes.values()))
        self.strangers = dict.fromkeys(unknown, "no answer")
        if unknown:
            self._introduce(unknown)
        return sorted(self.nodes)

    def _introduce(self, nodes: Sequence[int]) -> None:
        questions = [Message(RecordDict(), dst_node_id=n, message_type=MessageType.QUERY) for n in nodes]
        for reply in self.grid.send_and_receive(questions, timeout=min(self.config.connect_timeout_s, HELLO_S)):
            node = reply.metadata.src_node_id
            if reply.has_error():
                self.strangers[node] = str(reply.error.reason)
                continue
            try:
                info = decode_info(reply.content)
            except FederationError as error:
                self.strangers[node] = str(error)
                continue
            self._admit(node, info)
            self.strangers.pop(node, None)
        for reason in self.strangers.values():
            self.notify(f"A node cannot take part: {reason}")

    def _admit(self, node: int, info: SiteInfo) -> None:
        if info.name in self.nodes:
            raise FederationError(
                "two sites have the same name", got=info.name, do="give each site.json a name of its own"
            )
        self.sites[info.name], self.nodes[info.name] = info, node

    def wait(self) -> list[str]:
        """Wait until all sites are there, or until the time is up; return the names of those that are."""
        deadline = time.monotonic() + self.config.connect_timeout_s
        while len(names := self.present()) < self.config.sites and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        if len(names) < self.config.sites:
            self.notify(f"{len(names)} of {self.config.sites} sites are connected: {', '.join(names) or 'none'}")
        return names

    def quorum(self) -> list[str]:
        """Names of the sites that are connected now, after a wait if they are too few.

        Raises:
            FederationError: They stay fewer than the quorum.
        """
        names = self.present()
        if len(names) < self.config.min_sites:
            names = self.wait()
        if len(names) < self.config.min_sites:
            reasons = "".join(f"; a node cannot take part: {reason}" for reason in self.strangers.values())
            raise FederationError(
                "too few sites are connected",
                got=f"{len(names)} ({', '.join(names) or 'none'}){reasons}",
                expected=f"at least {self.config.min_sites} (federation.min_sites) of {self.config.sites}",
                do="start the sites and run the same command again: it resumes after the last completed round",
            )
        return names

    def notify(self, text: str) -> None:
        """Tell the user, once."""
        if text not in self._said:
            self._said.add(text)
            say(text)


@dataclass
class Outcome:
    """What became of the sites that were asked in a round."""

    asked: Sequence[str]
    replies: dict[str, TrainReply] = field(default_factory=dict)
    """Usable replies, by site, without their arrays."""
    kept: dict[str, Path] = field(default_factory=dict)
    """Where `put_aside` wrote the arrays of usable replies, so that memory holds those of one site at a time."""
    problems: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Status ("refused", "missing" or "set aside") and reason of all others."""
    bytes_down: int = 0
    bytes_up: int = 0

    def missing(self) -> list[str]:
        """Sites that may still answer when they are asked again."""
        return [s for s in self.asked if s not in self.replies and self.problems[s][0] == "missing"]

    @property
    def mean_loss(self) -> float | None:
        """Mean over the usable replies that report their loss, every site counting the same; None where none does."""
        losses = [reply.metrics["loss"] for reply in self.replies.values() if reply.metrics]
        return sum(losses) / len(losses) if losses else None

    def metrics(self) -> dict[str, SiteRound]:
        """Per site: metrics, status, reason and what its patients have paid, for metrics.json."""
        out: dict[str, SiteRound] = {}
        for site in self.asked:
            reply = self.replies.get(site)
            known = dict(reply.metrics or {}) if reply else {}
            status, reason = ("ok", None) if reply else self.problems[site]
            values = {name: known.get(name) for name in _METRICS}
            spent = reply.spent if reply else None
            out[site] = SiteRound.model_validate({**values, "status": status, "reason": reason, "spent": spent})
        return out

    def to_json(self) -> dict[str, Any]:
        """All of it but the arrays."""
        replies = {
            site: {"metrics": dict(r.metrics or {}), "spent": r.spent.model_dump(mode="json") if r.spent else None}
            for site, r in self.replies.items()
        }
        plain = {"asked": list(self.asked), "problems": self.problems}
        return {**plain, "replies": replies, "bytes_down": self.bytes_down, "bytes_up": self.bytes_up}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Outcome":
        """What `to_json` gave."""
        replies = {
            site: TrainReply(
                site, "ok", "", metrics=r["metrics"], spent=r["spent"] and Spent.model_validate(r["spent"])
            )
            for site, r in data["replies"].items()
        }
        problems = {site: (status, reason) for site, (status, reason) in data["problems"].items()}
        down, up = data["bytes_down"], data["bytes_up"]
        return cls(data["asked"], replies, problems=problems, bytes_down=down, bytes_up=up)


def ask(
    grid: Grid,
    roster: Roster,
    job: StageJob,
    weights: State,
    names: Sequence[str],
    codec: State | None = None,
    *,
    scratch: Path,
    session: str = "",
) -> Outcome:
    """Send a request, with weights and codec, to the named sites and collect usable replies.

    Sites that do not answer are asked again while the quorum is missed; sites answer a repeated request from their
    stored reply, so nothing is trained twice.

    Args:
        grid: Where the nodes are.
        roster: The sites that are connected, and the settings of the federation.
        job: What is asked.
        weights: The global weights.
        names: Whom to ask.
        codec: Weights of the autoencoder, where there is one.
        scratch: Folder for the arrays of the replies; they are there as long as the caller lets it be.
        session: Of the secure sum, where replies are masked.

    Raises:
        FederationError: Fewer usable replies than the quorum.
    """
    config = roster.config
    outcome, arrays = Outcome(names), to_array_record(weights)
    codec_arrays = to_array_record(codec) if codec is not None else None
    outcome.problems = dict.fromkeys(names, ("missing", "not connected, or no answer in time"))
    for attempt in range(1 + config.retries):
        targets = [s for s in outcome.missing() if s in roster.nodes]
        requests = {
            site: encode_job(job, arrays, codec_arrays, session, roster.statements.last(site)) for site in targets
        }
        outcome.bytes_down += _arrays([arrays, *([codec_arrays] if codec_arrays else [])]) * len(targets)
        for site, content in _exchange(grid, roster, requests, outcome):
            _check_reply(content, roster, roster.sites[site], job, weights, outcome, scratch)
        for site in targets:
            if site in outcome.problems and site not in outcome.replies:
                roster.notify(f"{site} is left out: {': '.join(outcome.problems[site])}")
        if len(outcome.replies) >= config.min_sites:
            return outcome
        if not outcome.missing() or attempt == config.retries:
            break
        roster.wait()
    reasons = "; ".join(f"{s}: {status} ({reason})" for s, (status, reason) in sorted(outcome.problems.items()))
    raise FederationError(
        f"round {job.round} of the {job.stage} stage misses its quorum",
        got=f"{len(outcome.replies)} usable of {len(names)} replies; {reasons}",
        expected=f"at least {config.min_sites} (federation.min_sites)",
        do="fix the failing sites and run the same command again: it resumes after the last completed round",
    )


def _exchange(
    grid: Grid, roster: Roster, requests: Mapping[str, RecordDict], outcome: Outcome
) -> Iterator[tuple[str, RecordDict]]:
    """Send each site its request; yield the answers as they come, and note whose fails."""
    site_of = {roster.nodes[site]: site for site in requests}
    messages = [  # a list: Flower's grid goes through it twice
        Message(requests[site], dst_node_id=node, message_type=MessageType.TRAIN) for node, site in site_of.items()
    ]
    for reply in grid.send_and_receive(messages, timeout=roster.config.round_timeout_s) if messages else ():
        site = site_of.get(reply.metadata.src_node_id)  # an unavailable node is reported by the SuperLink
        if site is None:
            continue
        if reply.has_error():
            outcome.problems[site] = ("missing", f"the site failed: {reply.error.reason}")
            continue
        outcome.bytes_up += _arrays(reply.content.array_records.values())
        yield site, reply.content


def _arrays(records: Iterable[ArrayRecord]) -> int:
    return sum(record.count_bytes() for record in records)


def bytes_of(content: RecordDict) -> int:
    """Bytes of the arrays and the texts of a message."""
    values = [value for record in content.config_records.values() for value in record.values()]
    texts = [text for value in values for text in (value if isinstance(value, list) else [value])]
    return _arrays(content.array_records.values()) + sum(len(str(text).encode()) for text in texts)


def _check_reply(
    content: RecordDict,
    roster: Roster,
    info: SiteInfo,
    job: StageJob,
    weights: State,
    outcome: Outcome,
    scratch: Path,
) -> None:
    """File a reply as usable, refused or set aside."""
    try:
        reply = decode_reply(content)
        if reply.arrays is not None and job.compression != "none":
            reply = replace(reply, arrays=expand(reply.arrays, weights, job.compression))
    except (FederationError, ValueError) as error:
        outcome.problems[info.name] = ("set aside", str(error))
        return
    if reply.status == "refused":
        outcome.problems[info.name] = ("refused", reply.reason)
    elif fault := find_fault(reply, info, job, weights) or roster.statements.hear(reply):
        outcome.problems[info.name] = ("set aside", fault)
    else:
        if reply.arrays is not None:
            outcome.kept[info.name] = put_aside(reply.arrays, scratch / f"{info.name}.npy")
        outcome.replies[info.name] = replace(reply, arrays=None)
        outcome.problems.pop(info.name, None)


def find_fault(reply: TrainReply, info: SiteInfo, job: StageJob, weights: State) -> str | None:
    """Say why a reply must not be aggregated, or None: the one place where replies are validated.

    Args:
        reply: A reply with status "ok".
        info: The site that was asked.
        job: What it was asked.
        weights: The global weights that went with the request.
    """
    arrays, metrics = reply.arrays or {}, reply.metrics or {}
    if reply.site != info.name:
        return f"it calls itself {reply.site!r}, and was {info.name!r} before"
    if reply.key != job.key:
        return f"it answers another request: got digest {reply.key[:12]}, expected {job.key[:12]}"
    if info.patients is not None and info.patients < 1:
        return "it says that it has no patients"
    if metrics and (set(metrics) != set(_METRICS) or not all(math.isfinite(v) for v in metrics.values())):
        return f"its metrics are not {', '.join(_METRICS)}, all finite"
    if reply.spent is None:
        return "it does not say what its patients have paid"
    if job.secure_threshold is not None:
        return None if reply.keys else "it sends no keys for the secure sum"
    if set(arrays) != set(weights):
        odd = sorted(set(arrays) ^ set(weights))
        return f"it lacks or adds weights: {', '.join(odd[:3])}"
    return next((fault for name in weights if (fault := _array_fault(name, arrays, weights))), None)


def _array_fault(name: str, arrays: State, weights: State) -> str | None:
    got, expected = arrays[name], weights[name]
    if got.shape != expected.shape:
        return f"{name} has shape {tuple(got.shape)}, expected {tuple(expected.shape)}"
    if got.dtype != expected.dtype:
        return f"{name} is {got.dtype}, expected {expected.dtype}"
    if not bool(torch.isfinite(got).all()):
        return f"{name} holds NaN or infinity"
    return None
