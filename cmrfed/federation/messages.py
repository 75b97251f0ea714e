"""What travels between server and sites, and the only place that knows Flower's records and their keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from pydantic import Field, ValidationError, model_validator
from safetensors import SafetensorError

from cmrfed.core.artifacts import digest_json, digest_state
from cmrfed.core.errors import FederationError, SiteRefused
from cmrfed.core.settings.config import Digest, Section, Seed
from cmrfed.core.settings.digests import digested
from cmrfed.core.settings.validation import problems
from cmrfed.federation.settings import Compression
from cmrfed.generators.settings import GeneratorConfig
from cmrfed.generators.stages import STAGES, StageName
from cmrfed.privacy.event import PrivacyEvent, Unit
from cmrfed.privacy.ledger.statement import Loss
from cmrfed.privacy.settings import PrivateTraining
from cmrfed.training.settings import TrainingConfig

if TYPE_CHECKING:
    from torch import Tensor

State = Mapping[str, "Tensor"]
"""Weights by name, in order of name; floating point only."""

WEIGHT = "num-examples"
"""The metric by which Flower's strategies weight a reply; the server sets it, never the site."""

_WEIGHTS, _FORMAT = "weights", "safetensors"
"""Name of the only array of a record, and how its bytes are to be read (Flower's ``stype``)."""

MOST_TEXT = 100_000
"""Characters of a request's text."""

SAFE_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"


class StageJob(Section):
    """A request to train one stage for one round, complete in itself."""

    run: str = Field(pattern=SAFE_NAME)
    experiment: Digest
    """Digest of the whole experiment."""
    seed: Seed
    stage: StageName
    round: int = Field(ge=1, le=100_000)
    generator: GeneratorConfig
    training: TrainingConfig
    proximal_mu: float = Field(0.0, ge=0, le=1e6)
    privacy: PrivateTraining | None = None
    """None: training without privacy, which the ledger of the site records as such."""
    model_digest: Digest
    """Digest of the weights that travel with the request."""
    codec_digest: Digest | None = None
    """Digest of the weights of the autoencoder, which travel too; None: the generator has none."""
    compression: Compression = "none"
    """What the reply carries: weights, or their change in fewer bits."""
    secure_threshold: int | None = Field(None, ge=2, le=10_000)
    """None: the server sees the reply. Otherwise it stays at the site until it is masked; so many sites can unmask."""
    threads: int = Field(1, ge=1, le=1024)
    """Threads of the computation: the last bits of a sum depend on it, so every site uses the same number."""

    @model_validator(mode="after")
    def _sends_its_codec(self) -> "StageJob":
        uses_one = STAGES[self.stage].needs_autoencoder(self.generator)
        if uses_one != (self.codec_digest is not None):
            raise ValueError("codec_digest belongs to a generator with an autoencoder, and to no other")
        return self

    @model_validator(mode="after")
    def _is_one_of_its_rounds(self) -> "StageJob":
        if self.round > self.training.rounds:
            raise ValueError(f"round {self.round} is beyond the last one, {self.training.rounds}")
        return self

    @cached_property
    def config_digest(self) -> str:
        """Digest of what is trained and how, as this side understands it, defaults included."""
        others = {"run", "experiment", "seed", "stage", "round", "model_digest", "threads"}
        return digest_json(digested(self, others))

    @cached_property
    def key(self) -> str:
        """Digest of all that decides the result up to rounding: the same key may be answered with the same reply."""
        return digest_json(digested(self, {"threads"}))

    @property
    def event(self) -> PrivacyEvent:
        """What answering this request costs the site's patients."""
        return PrivacyEvent(
            noise_multiplier=self.privacy.noise_multiplier if self.privacy else 0.0,
            sampling_rate=self.privacy.sampling_rate if self.privacy else 1.0,
            steps=self.training.local_steps,
            run=self.run,
            stage=self.stage,
            round=self.round,
            digest=self.key,
            unit=self.privacy.unit if self.privacy else "none",
        )


class SiteInfo(Section):
    """How a site introduces itself."""

    name: str = Field(pattern=SAFE_NAME)
    style: int = Field(ge=0)
    patients: int | None = Field(ge=0)
    """None: the site keeps it to itself."""


class PublicKeys(Section):
    """Public keys of a site for one secure aggregation session (X25519); 32 bytes each, as hex."""

    seal: str = Field(pattern=r"^[0-9a-f]{64,64}$")
    mask: str = Field(pattern=r"^[0-9a-f]{64,64}$")
    signature: str = Field("", pattern=r"^[0-9a-f]{0,300}$")
    """The site's own, over both and over what they are for; other sites refuse keys without it."""


class Spent(Section):
    """What a site's patients have paid, over all runs, as its ledger says: a function of requests, not of patients."""

    unit: Unit
    """none: there is no guarantee."""
    at: tuple[Loss, Loss]
    """ε at the δ of the site's policy, and at its `strict_delta`."""
    ledger_hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Hash of the ledger's last line, by which an auditor finds the state of the ledger that this refers to."""
    audited: bool = Field(False, exclude_if=lambda value: not value)
    """Whether the private step passed the site's own audit, on its device and with the settings of this request."""

    @property
    def bounded(self) -> bool:
        """Whether any loss can be stated."""
        return all(loss.prv is not None for loss in self.at)

    def joined(self, later: "Spent") -> "Spent":
        """The larger of each loss of both, which holds for both, with the hash of the later statement.

        A loss holds at any larger δ too, so the larger δ of both goes with it. Other units make no joint statement.
        """
        at = tuple(mine.joined(theirs) for mine, theirs in zip(self.at, later.at, strict=True))
        unit = self.unit if self.unit == later.unit else "none"
        audited = self.audited and later.audited
        return Spent(unit=unit, at=(at[0], at[1]), ledger_hash=later.ledger_hash, audited=audited)


@dataclass(frozen=True)
class TrainReply:
    """A site's answer: "ok" with weights and metrics, or "refused" with a reason."""

    site: str
    status: Literal["ok", "refused"]
    key: str
    """`StageJob.key` of the request that is answered; "" when it could not be read."""
    reason: str = ""
    arrays: State | None = None
    """Weights, or what `compress` makes of them where the request asks for it."""
    metrics: Mapping[str, float] | None = None
    """loss, first_loss, last_loss, items, seconds; none where the site's policy keeps them."""
    spent: Spent | None = None
    """After this round; of "ok" only."""
    keys: PublicKeys | None = None
    """Sent in place of arrays where these stay at the site until they are masked."""


def to_array_record(state: State) -> ArrayRecord:
    """Serialise weights as one array of safetensors bytes: an array for each weight would take ten times as long."""
    from safetensors.torch import save  # which imports torch

    from cmrfed.core.device import to_host

    data = save({name: to_host(tensor).contiguous() for name, tensor in state.items()})
    return ArrayRecord({_WEIGHTS: Array("uint8", (len(data),), _FORMAT, data)})


def to_state(record: ArrayRecord) -> "dict[str, Tensor]":
    """Read weights, in order of name.

    Raises:
        ValueError: The record holds anything else.
    """
    from safetensors.torch import load  # which imports torch

    if set(record) != {_WEIGHTS} or record[_WEIGHTS].stype != _FORMAT:
        raise ValueError(f"expected one array {_WEIGHTS!r} of {_FORMAT}, got {sorted(record)[:3]}")
    try:
        state = load(record[_WEIGHTS].data)
    except SafetensorError as error:
        raise ValueError(str(error)) from None
    return {name: state[name] for name in sorted(state)}


def encode_job(
    job: StageJob, arrays: ArrayRecord, codec: ArrayRecord | None = None, session: str = "", ledger: str | None = None
) -> RecordDict:
    """Pack a request; each call makes records of its own, since a client may change what it gets.

    Args:
        job: What is asked.
        arrays: Global weights.
        codec: Weights of the autoencoder, of a generator that has one.
        session: Of the secure sum that the reply is meant for.
        ledger: The hash that the site named last, of a line that its ledger must still have.
    """
    config = ConfigRecord({"job": job.model_dump_json(), "config-digest": job.config_digest})
    if session:
        config["session"] = session
    if ledger:
        config["ledger"] = ledger
    content = RecordDict({"arrays": ArrayRecord(dict(arrays.items())), "config": config})
    if codec is not None:
        content["codec"] = ArrayRecord(dict(codec.items()))
    return content


def decode_job(content: RecordDict) -> "tuple[StageJob, dict[str, Tensor]]":
    """Unpack a request and recompute both of its digests.

    Raises:
        SiteRefused: It cannot be read, or this site understands it otherwise than the server.
    """
    try:
        config = content.config_records["config"]
        text = str(config["job"])
        if len(text) > MOST_TEXT:
            raise ValueError(f"{len(text):,} characters, expected at most {MOST_TEXT:,} characters")
        job = StageJob.model_validate_json(text)
        state = to_state(content.array_records["arrays"])
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise _unreadable(error) from None
    _same("configuration", config.get("config-digest"), job.config_digest)
    _same("weights", job.model_digest, digest_state(state))
    return job, state


def _unreadable(error: Exception) -> SiteRefused:
    found = error.errors() if isinstance(error, ValidationError) else []
    if any(problem["type"] == "not_approved" for problem in found):
        return SiteRefused(
            "the request needs a plugin, and this site runs the code that its owner has approved, which has none",
            got=_short(error),
            do="train with the project's own parts, or simulate the sites with `cmrfed run`",
        )
    do = "correct the recipe, or install the same version on server and site"
    return SiteRefused("the request cannot be read", got=_short(error), do=do)


def decode_codec(content: RecordDict, job: StageJob) -> "dict[str, Tensor] | None":
    """Unpack the weights of the autoencoder that came with a request; None where its generator has none.

    Raises:
        SiteRefused: They are missing, or not those that the request names.
    """
    if job.codec_digest is None:
        return None
    try:
        state = to_state(content.array_records["codec"])
    except (KeyError, TypeError, ValueError) as error:
        raise SiteRefused(
            "the autoencoder of the request cannot be read",
            got=_short(error),
            do="install the same version on server and site",
        ) from None
    _same("autoencoder", job.codec_digest, digest_state(state))
    return state


def _same(what: str, sent: Any, found: str) -> None:
    if sent != found:
        raise SiteRefused(
            f"the digest of the {what} differs between server and site",
            got=f"{found} at the site",
            expected=f"{sent} as sent by the server",
            do="install the same version on server and site",
        )


def encode_reply(reply: TrainReply) -> RecordDict:
    """Pack a reply: one ConfigRecord, and for "ok" one MetricRecord and, unless it has keys, one ArrayRecord."""
    texts = {"site": reply.site, "status": reply.status, "key": reply.key, "reason": reply.reason}
    if reply.spent is not None:
        texts["spent"] = reply.spent.model_dump_json()
    if reply.keys is not None:
        texts["keys"] = reply.keys.model_dump_json()
    content = RecordDict({"reply": ConfigRecord(dict(texts))})
    if reply.arrays is not None:
        content["arrays"] = to_array_record(reply.arrays)
    if reply.status == "ok":
        content["metrics"] = MetricRecord({name: float(v) for name, v in (reply.metrics or {}).items()})
    return content


def decode_reply(content: RecordDict) -> TrainReply:
    """Unpack a reply; nothing that it claims is trusted yet.

    Raises:
        FederationError: It lacks a record or holds one of another kind.
    """
    try:
        texts = {k: str(content.config_records["reply"][k]) for k in ("site", "status", "key", "reason")}
        if texts["status"] == "refused":
            return TrainReply(texts["site"], "refused", texts["key"], texts["reason"])
        metrics = {str(k): float(v) for k, v in content.metric_records["metrics"].items()}  # type: ignore[arg-type]
        keys_json = content.config_records["reply"].get("keys")
        keys = PublicKeys.model_validate_json(str(keys_json)) if keys_json is not None else None
        arrays = to_state(content.array_records["arrays"]) if keys is None else None
        spent = Spent.model_validate_json(str(content.config_records["reply"]["spent"]))
        return TrainReply(texts["site"], "ok", texts["key"], arrays=arrays, metrics=metrics, spent=spent, keys=keys)
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        raise FederationError("the reply cannot be read", got=_short(error)) from None


def encode_info(info: SiteInfo) -> RecordDict:
    """Pack a site's introduction."""
    return RecordDict({"site": ConfigRecord({"info": info.model_dump_json()})})


def encode_refusal(reason: str) -> RecordDict:
    """Pack the refusal of a site that cannot even introduce itself."""
    return RecordDict({"site": ConfigRecord({"refused": reason})})


def decode_info(content: RecordDict) -> SiteInfo:
    """Unpack a site's introduction.

    Raises:
        FederationError: It refused, or sent something else.
    """
    try:
        record = content.config_records["site"]
        if "refused" in record:
            raise FederationError("the site refused", got=record["refused"])
        return SiteInfo.model_validate_json(str(record["info"]))
    except (ValidationError, KeyError, TypeError) as error:
        raise FederationError("the introduction cannot be read", got=_short(error)) from None


def _short(error: Exception) -> str:
    if isinstance(error, ValidationError):
        return problems(error)[:500]
    return f"{type(error).__name__}: {error}"[:500]
