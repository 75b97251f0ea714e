"""A site's part in a secure sum: what it is asked step by step, what it answers, and what it never answers twice.

A ClientApp is made anew for each message, so all that a site must remember lies in its state folder, on the disk
before the answer leaves::

    state/<run>/<stage>/round-0007/secure/session.json     keys and seed of one session
                                          shares.json      who takes part, and the shares that were sealed for them
                                          masked.json      whose shares have come, and with which weight
    state/<run>/<stage>/unmasked/<key>.json                the one request to unmask that was answered; kept for ever
    sums/<digest of an update>.json                        the session that this update is summed in; kept for ever

The steps are in docs/secure-aggregation.md, the mathematics in `cmrfed.federation.secagg.arithmetic`.
"""

import fcntl
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from pydantic import Field, ValidationError

from cmrfed.core.artifacts import (
    canonical_json,
    digest_json,
    digest_state,
    load_state,
    new_folder,
    read_json,
    write_json,
)
from cmrfed.core.errors import FederationError, SiteRefused
from cmrfed.core.settings.config import Section
from cmrfed.federation.identity import Identity
from cmrfed.federation.messages import SAFE_NAME, PublicKeys, State, to_array_record, to_state
from cmrfed.federation.secagg.arithmetic import (
    LIMIT,
    MAX_TOTAL_WEIGHT,
    add_mask,
    agree,
    derive,
    encode,
    new_secret,
    public_key,
    seal,
    sign_of,
    split,
    unseal,
)
from cmrfed.generators.stages import StageName

MOST_SITES = 1024
"""Largest number of sites in one secure sum; each agrees on a secret with every other."""
MOST_TEXT = 1_000_000
"""Largest number of characters of a step: the keys of `MOST_SITES` sites need 600,000."""
SEALED = r"^[0-9a-f]{320,320}$"
"""Two shares of 66 bytes, sealed (nonce of 12 bytes, tag of 16), as hex."""
_HEX = re.compile(r"[0-9a-f]{2,320}")

SiteName = Annotated[str, Field(pattern=SAFE_NAME)]
Sealed = Annotated[str, Field(pattern=SEALED)]


# --- what is asked ------------------------------------------------------------------------------
class Step(Section):
    """A request within a secure sum; which sum is said by the first five."""

    run: str = Field(pattern=SAFE_NAME)
    stage: StageName
    round: int = Field(ge=1, le=100_000)
    key: str = Field(pattern=r"^[0-9a-f]{64,64}$")
    """`StageJob.key` of the request whose update is summed."""
    session: str = Field(pattern=r"^[0-9a-f]{32,32}$")


class ShareStep(Step):
    """Share out your secrets among these sites; the answer has what is sealed for each other site."""

    threshold: int = Field(ge=2, le=MOST_SITES)
    keys: dict[SiteName, PublicKeys] = Field(max_length=MOST_SITES)

    @property
    def context(self) -> bytes:
        """Binds every key and every mask to the session and to who takes part in it."""
        keys = {name: key.model_dump() for name, key in self.keys.items()}
        return bytes.fromhex(digest_json([self.session, self.threshold, keys]))

    def statement(self, site: str) -> bytes:
        """What a site has signed, where its keys were not changed on the way."""
        return statement(self, site, self.threshold, self.keys[site])

    def place(self, site: str) -> int:
        """Where a site's share lies on the line, from 1."""
        return 1 + sorted(self.keys).index(site)


class MaskStep(Step):
    """Here are the shares that others sealed for you: send your update, masked against all of them."""

    weight: int = Field(ge=1, le=MAX_TOTAL_WEIGHT)
    sealed: dict[SiteName, Sealed] = Field(max_length=MOST_SITES)


class UnmaskStep(Step):
    """These have sent their update and those have not: give the shares that take their masks out."""

    survivors: tuple[SiteName, ...] = Field(max_length=MOST_SITES)
    dropped: tuple[SiteName, ...] = Field(max_length=MOST_SITES)


STEPS: dict[str, type[Step]] = {"shares": ShareStep, "masked": MaskStep, "unmask": UnmaskStep}
"""Protocol steps by message name, ``train.<name>``."""


def statement(which: Step, site: str, threshold: int, keys: PublicKeys) -> bytes:
    """What a site signs of its keys: they are its own, for this session of this request, with this threshold."""
    said = which.model_dump(mode="json", include=set(Step.model_fields))
    fields = {"site": site, "threshold": threshold, "seal": keys.seal, "mask": keys.mask}
    return canonical_json(said | fields).encode()


def pair_mask(private: bytes, public: str, context: bytes) -> bytes:
    """Seed of the mask that two sites have in common."""
    return agree(private, bytes.fromhex(public), context + b"|pair")


def own_mask(secret: bytes, context: bytes) -> bytes:
    """Seed of the mask that a site has of its own."""
    return derive(secret, context + b"|own")


# --- records ------------------------------------------------------------------------------------
def encode_step(step: Step) -> RecordDict:
    """Pack a request."""
    return RecordDict({"step": ConfigRecord({"json": step.model_dump_json()})})


def decode_step(name: str, content: RecordDict) -> Step:
    """Unpack a request.

    Raises:
        SiteRefused: It cannot be read.
    """
    try:
        text = str(content.config_records["step"]["json"])
        if len(text) > MOST_TEXT:
            raise ValueError(f"{len(text):,} characters, expected at most {MOST_TEXT:,} characters")
        return STEPS[name].model_validate_json(text)
    except (ValidationError, KeyError, ValueError) as error:
        do = "install the same version on server and site"
        raise SiteRefused("the step of a secure sum cannot be read", got=str(error)[:300], do=do) from None


def encode_answer(
    site: str, texts: Mapping[str, str], numbers: np.ndarray | None = None, reason: str = ""
) -> RecordDict:
    """Pack an answer: texts by site, and the masked update (uint64) of the step that asks for it."""
    fields: dict[str, str | list[str]] = {
        "site": site,
        "reason": reason,
        "names": list(texts),
        "texts": list(texts.values()),
    }
    content = RecordDict({"answer": ConfigRecord({**fields})})
    if numbers is not None:
        import torch  # who sends text alone does not wait for it

        content["numbers"] = to_array_record({"masked": torch.from_numpy(numbers.view(np.int64))})
    return content


def decode_answer(content: RecordDict, site: str) -> dict[str, str]:
    """Texts by site.

    Raises:
        FederationError: The site refused, or calls itself otherwise, or sent something else.
    """
    try:
        record = content.config_records["answer"]
        named, reason, names, texts = str(record["site"]), str(record["reason"]), record["names"], record["texts"]
    except KeyError as error:
        raise FederationError("the answer cannot be read", got=f"no {error}") from None
    if reason:
        raise FederationError("the site refused", got=reason)
    if named != site or not isinstance(names, list) or not isinstance(texts, list) or len(names) != len(texts):
        raise FederationError("the answer cannot be read", got=f"site {named!r}, asked was {site!r}")
    if not all(_HEX.fullmatch(str(text)) for text in texts):
        raise FederationError("the answer cannot be read", got="a share that is not written in hex", expected="hex")
    return {str(name): str(text) for name, text in zip(names, texts, strict=True)}


def decode_numbers(content: RecordDict, count: int) -> np.ndarray:
    """The masked update, uint64 (count,).

    Raises:
        FederationError: It is missing, or of another kind or length.
    """
    try:
        record: ArrayRecord = content.array_records["numbers"]
        numbers = to_state(record)["masked"].numpy()
    except (KeyError, TypeError, ValueError) as error:
        raise FederationError("the masked update cannot be read", got=error) from None
    if numbers.dtype != np.int64 or numbers.shape != (count,):
        raise FederationError(
            "the masked update has another shape", got=f"{numbers.dtype} {numbers.shape}", expected=count
        )
    return numbers.view(np.uint64)


# --- at the site --------------------------------------------------------------------------------
class SiteMasking:
    """One site's part in the secure sum of one round.

    Args:
        site: Its name.
        folder: ``state/<run>/<stage>`` of the site.
        number: Of the round.
        key: `StageJob.key` of the request whose update is stored there.
    """

    def __init__(self, site: str, folder: Path, number: int, key: str) -> None:
        self.site, self.key, self.folder, self.number = site, key, folder, number
        self.round = folder / f"round-{number:04d}"
        self.secure, self.marker = self.round / "secure", folder / "unmasked" / f"{key}.json"
        self.sums, self.identity = folder.parents[2] / "sums", Identity.of_site(folder.parents[2])

    # --- before the steps -----------------------------------------------------------------------
    def open(self, session: str, threshold: int, *, private: bool) -> PublicKeys:
        """Make the keys of a session, or find those that were made for it.

        Raises:
            SiteRefused: The update is part of another sum already.
        """
        if not re.fullmatch(r"[0-9a-f]{32}", session):
            raise SiteRefused("the request names no session of a secure sum", got=session)
        with self._locked():
            self._in_no_other_sum(session)
            path = self.secure / "session.json"
            if not path.is_file() or read_json(path)["session"] != session:
                made = {"session": session, "threshold": threshold, "private": private}
                made |= {name: new_secret().hex() for name in ("seal", "mask", "own")}
                run, stage = self.folder.parts[-2:]
                where = {"run": run, "stage": stage, "round": self.number, "key": self.key, "session": session}
                which = Step.model_validate(where)
                made["signature"] = self.identity.sign(statement(which, self.site, threshold, _public(made)))
                with new_folder(self.secure) as part:
                    part.chmod(0o700)
                    write_json(part / "session.json", made)
            return _public(read_json(path))

    def _in_no_other_sum(self, session: str) -> None:
        """Each update is unmasked in one session alone, whatever run, stage or round it is asked for.

        The same request is known by its key, although other threads may change last bits of its update; the same update
        by its digest, although another request asks for it.
        """
        for marker in (self.marker, self._mark_of_update()):
            if marker.is_file() and read_json(marker)["session"] != session:
                raise SiteRefused(
                    "this update is part of a sum already; from a second sum with other sites it could be derived",
                    do="go on with the run that asked first, or begin a run with another seed",
                )

    def _mark_of_update(self) -> Path:
        return self.sums / f"{digest_state(self._update())}.json"

    # --- the steps ------------------------------------------------------------------------------
    def share(self, step: ShareStep) -> dict[str, str]:
        """What is sealed for each other site."""
        with self._locked():
            session = self._session(step)
            _check(step.threshold == session["threshold"], "another threshold than before")
            _check(step.keys.get(self.site) == _public(session), "other keys of this site than it made")
            _check(len(step.keys) >= step.threshold, "fewer sites than the threshold")
            _check(2 * step.threshold > len(step.keys), "a threshold of half the sites or less")
            distinct = {key for keys in step.keys.values() for key in (keys.seal, keys.mask)}
            _check(len(distinct) == 2 * len(step.keys), "a key that occurs twice")
            return dict(self._once("shares.json", step, lambda: self._shares(step, session))["sealed"])

    def _shares(self, step: ShareStep, session: Mapping[str, Any]) -> dict[str, Any]:
        for name, keys in step.keys.items():
            self.identity.verify(name, step.statement(name), keys.signature)
        count = len(step.keys)
        own, mask = (split(bytes.fromhex(session[n]), step.threshold, count) for n in ("own", "mask"))
        sealed = {}
        for name, keys in step.keys.items():
            place = step.place(name) - 1
            if name != self.site:
                key = agree(bytes.fromhex(session["seal"]), bytes.fromhex(keys.seal), step.context + b"|seal")
                sealed[name] = seal(key, own[place] + mask[place], _about(step, self.site, name)).hex()
        place = step.place(self.site) - 1
        return {"step": step.model_dump(mode="json"), "sealed": sealed, "kept": (own[place] + mask[place]).hex()}

    def masked(self, step: MaskStep, patients: int | None) -> np.ndarray:
        """The site's update times the weight, masked; uint64 (number of weights,).

        Args:
            step: What is asked.
            patients: Of the site, where their number may leave: whoever may try weights would learn it.
        """
        with self._locked():
            session = self._session(step)
            self._in_no_other_sum(step.session)
            roster = self._roster()
            allowed = {1} if session["private"] or patients is None else {1, patients}
            _check(step.weight in allowed, "a weight that is neither 1 nor the number of patients")
            _check(set(step.sealed) <= set(roster.keys) - {self.site}, "shares of sites that take no part")
            _check(len(step.sealed) + 1 >= roster.threshold, "fewer sites than the threshold")
            shares = self._once("masked.json", step, lambda: self._opened(step, roster, session))["shares"]
        numbers = self._encoded(step.weight)
        add_mask(numbers, own_mask(bytes.fromhex(session["own"]), roster.context), 1)
        for other in shares:
            if other != self.site:
                seed = pair_mask(bytes.fromhex(session["mask"]), roster.keys[other].mask, roster.context)
                add_mask(numbers, seed, sign_of(self.site, other))
        return numbers

    def _opened(self, step: MaskStep, roster: ShareStep, session: Mapping[str, Any]) -> dict[str, Any]:
        shares = {self.site: read_json(self.secure / "shares.json")["kept"]}
        for name, text in step.sealed.items():
            try:
                public = bytes.fromhex(roster.keys[name].seal)
                key = agree(bytes.fromhex(session["seal"]), public, roster.context + b"|seal")
                shares[name] = unseal(key, bytes.fromhex(text), _about(roster, name, self.site)).hex()
            except ValueError as error:
                raise SiteRefused(f"the shares of {name} cannot be opened", got=error) from None
        return {"shares": shares}

    def _encoded(self, weight: int) -> np.ndarray:
        update = self._update()
        values = np.concatenate([update[name].numpy().reshape(-1) for name in sorted(update)])
        try:
            return encode(values, weight)
        except ValueError:  # its words hold a number of the update, and a refusal travels
            do = "lower the learning rate, or set federation.secure_aggregation to false"
            fits = f"finite numbers within ±{LIMIT:g}"
            raise SiteRefused("the update cannot be part of a secure sum", expected=fits, do=do) from None

    def _update(self) -> State:
        path = self.round / "reply.safetensors"
        update, metadata = load_state(path) if path.is_file() else ({}, {})
        if metadata.get("key") != self.key:
            raise SiteRefused("the site has no update for this request", do="ask for the round again")
        return update

    def unmask(self, step: UnmaskStep) -> dict[str, str]:
        """Of each site that sent its update a share of its own mask, of each that did not one of its key: never both.

        Answered once for each update, whatever the session; the same request gets the same answer.
        """
        with self._locked():
            self._session(step)
            self._in_no_other_sum(step.session)
            if not (self.secure / "masked.json").is_file():
                raise SiteRefused("the site has sent no masked update in this session")
            shares, roster = read_json(self.secure / "masked.json")["shares"], self._roster()
            sent, gone = set(step.survivors), set(step.dropped)
            _check(not sent & gone and sent | gone == set(shares), "other sites than those that are in the sum")
            _check(self.site in sent, "this site among those that sent nothing")
            _check(len(sent) >= roster.threshold, "fewer sites than the threshold")
            half = len(next(iter(shares.values()))) // 2
            made = {name: text[:half] if name in sent else text[half:] for name, text in shares.items()}
            answer = {"session": step.session, "answer": made}
            write_json(self._mark_of_update(), {"session": step.session})
            return dict(self._once("", step, lambda: answer, self.marker)["answer"])

    # --- memory ---------------------------------------------------------------------------------
    def _session(self, step: Step) -> Mapping[str, Any]:
        path = self.secure / "session.json"
        session = read_json(path) if path.is_file() else {}
        if session.get("session") != step.session:
            raise SiteRefused("the site knows no such session", got=step.session, do="ask for the round again")
        return dict(session)

    def _roster(self) -> ShareStep:
        path = self.secure / "shares.json"
        if not path.is_file():
            raise SiteRefused("the site has shared out no secrets in this session")
        return ShareStep.model_validate(read_json(path)["step"])

    def _once(
        self, name: str, step: Step, make: Callable[[], dict[str, Any]], path: Path | None = None
    ) -> dict[str, Any]:
        """What was noted at the first such request; another one is refused."""
        path, asked = path or self.secure / name, digest_json(step.model_dump(mode="json"))
        if not path.is_file():
            write_json(path, {"asked": asked, **make()})
        noted: dict[str, Any] = read_json(path)
        if noted["asked"] != asked:
            raise SiteRefused(
                f"this step of round {step.round} was answered before for another request",
                got=f"digest {asked[:12]}",
                expected=f"digest {noted['asked'][:12]}",
                do="repeat the first request: two answers together could tell what one site sent",
            )
        return noted

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One message at a time, whatever processes answer them."""
        self.sums.mkdir(exist_ok=True)
        handle = os.open(self.sums, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _public(session: Mapping[str, Any]) -> PublicKeys:
    seal, mask = (public_key(bytes.fromhex(session[name])).hex() for name in ("seal", "mask"))
    return PublicKeys(seal=seal, mask=mask, signature=session.get("signature", ""))


def _about(step: ShareStep, sender: str, receiver: str) -> bytes:
    return step.context + f"|{sender}|{receiver}".encode()


def _check(fine: bool, fault: str) -> None:
    if not fine:
        raise SiteRefused("the request of a secure sum is not safe to answer", got=fault)
