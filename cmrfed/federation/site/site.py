"""The training of one round at a site, on its own patients and from their budget, safe to repeat."""

import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, RecordDict
from torch import Tensor

from cmrfed.core.artifacts import OWNER_ALONE, load_state, new_folder, read_metadata, save_state
from cmrfed.core.device import HOST, resolve, to_host
from cmrfed.core.rng import fold, torch_generator
from cmrfed.federation.compression import compress
from cmrfed.federation.messages import Spent, StageJob, State, TrainReply, decode_codec, decode_job, encode_reply
from cmrfed.federation.secagg.client import SiteMasking
from cmrfed.federation.site.answers import answer, note
from cmrfed.federation.site.folder import SiteFolder, SiteRecord
from cmrfed.federation.site.limits import GIB, check_request, rehearse
from cmrfed.federation.site.timing import remaining
from cmrfed.generators.generator import Generator
from cmrfed.generators.labeller import TrainableSegmenter
from cmrfed.generators.trainable import TrainableAutoencoder, make_trainable
from cmrfed.privacy.dpsgd.noise import entropy_generator
from cmrfed.privacy.ledger.ledger import History, PrivacyLedger
from cmrfed.privacy.ledger.statement import Loss
from cmrfed.privacy.settings import strict_delta
from cmrfed.training.loop import LocalResult, LocalTrainer, Trainer, optimizer_state, restore_optimizer
from cmrfed.training.subspace import FindDirections, public_directions

KEPT_ROUNDS = 2
_log = logging.getLogger("cmrfed")


def answer_train(
    context: Context, content: RecordDict, find_directions: FindDirections = public_directions
) -> RecordDict:
    """Answer a request to train.

    Args:
        context: The node's.
        content: The request.
        find_directions: Finds the public directions of private training in a subspace.

    Raises:
        FederationError: The site failed; see `cmrfed.federation.site.answers.answer`.
    """
    key = ""

    def act(site: Site) -> RecordDict:
        nonlocal key
        site.find_directions = find_directions
        job, arrays = decode_job(content)
        key = job.key
        if named := content.config_records["config"].get("ledger"):
            site.open_ledger().demand(str(named))
        reply = site.train_round(job, arrays, decode_codec(content, job))
        about: dict[str, Any] = {"stage": job.stage, "round": job.round, "unit": job.event.unit}
        if reply.spent:
            about |= {"epsilon": reply.spent.at[0].prv, "ledger": reply.spent.ledger_hash}
        note(site.root, "trained", experiment=job.run, **about)
        if job.secure_threshold is not None:
            reply = site.hold_back(job, reply, str(content.config_records["config"].get("session")))
        return encode_reply(reply)

    return answer(context, Site, act, lambda site, reason: encode_reply(TrainReply(site, "refused", key, reason)))


class Site(SiteFolder):
    """A site that trains."""

    def __init__(self, root: Path, record: SiteRecord) -> None:
        super().__init__(root, record)
        self.find_directions: FindDirections = public_directions
        """Finds the public directions of private training in a subspace."""

    def train_round(self, job: StageJob, arrays: State, codec: State | None = None) -> TrainReply:
        """Train one round from the global weights; a repeated request gets the stored reply.

        What the round costs is in the ledger before the first gradient is taken; the reply and the optimizer's state
        are on the disk before the reply leaves. So a crash at any moment never lets patients pay less than was
        released, and a request that was answered once never makes them pay twice.

        Args:
            job: What to do; its digests have been checked.
            arrays: Global weights, by name in ``generator.network``.
            codec: Weights of the autoencoder, where the generator has one; they stay as they are.

        Raises:
            SiteRefused: The site's policy does not permit it.
            PrivacyError: The ledger is missing or damaged, or the round would exceed the cap.
            DataError: The site's cohort cannot be used for this stage.
        """
        self.policy.check_sum(job.secure_threshold)
        state = _StateFolder(self.state(job.run, job.stage))
        self.open_ledger()  # a ledger that is not whole stops the site, whatever is asked
        stored = state.reply(job)
        return stored or self._pay_and_train(job, arrays, codec, state)

    # --- secure sums ------------------------------------------------------------------------------
    def hold_back(self, job: StageJob, reply: TrainReply, session: str) -> TrainReply:
        """The reply without the update, which stays here until it is masked, and with keys for that.

        Raises:
            SiteRefused: The update is part of another sum already.
        """
        masking = SiteMasking(self.record.name, self.state(job.run, job.stage), job.round, job.key)
        keys = masking.open(session, job.secure_threshold or 0, private=job.privacy is not None)
        return replace(reply, arrays=None, keys=keys)

    def _pay_and_train(self, job: StageJob, arrays: State, codec: State | None, state: "_StateFolder") -> TrainReply:
        ledger, patients = self.open_ledger(), len(self.cohort)

        def check(history: History) -> None:
            self.policy.check(job.event, history, patients)

        check(ledger.history())  # the policy has the first word; it is asked again where the ledger is locked
        check_request(job, arrays, codec, self.policy)
        audited = self._audit(job)
        generator = make_trainable(job.stage, job.generator, autoencoder=codec)
        previous = state.optimizer_before(job.round)
        with _threads(min(job.threads, self.policy.limits.threads, os.cpu_count() or 1)):
            train = self._ready(job, generator, arrays, previous)  # what cannot be trained costs nobody
        if job.privacy and self.policy.delta * patients >= 1:  # said here alone: the number is the site's own
            _log.warning("delta of policy.yaml is not below 1 / %d, the number of patients: lower it", patients)
        ticket = ledger.reserve(job.event, check=check)
        if not ticket.fresh:  # it was paid for, and its reply is lost: what it trained may have left, so pay again
            ticket = ledger.reserve(job.event, check=check, again=True)
        ticket.permit()
        result, reply, optimizer = train()
        metrics = _metrics(result) if self.policy.may_leave.losses and result.losses else {}
        reply = replace(reply, metrics=metrics, spent=_spent(ledger, self.policy.delta, audited=audited))
        state.save(job, reply, optimizer)
        ledger.commit(ticket)
        return reply

    def _audit(self, job: StageJob) -> bool:
        """Whether a private request has passed the site's own audit; one audit serves all sites of a simulation.

        Raises:
            PrivacyError: It has not.
        """
        if job.privacy is None or self.record.simulated:
            return False
        from cmrfed.federation.site.audit import audit_site  # with all that audits need

        with _threads(min(job.threads, self.policy.limits.threads, os.cpu_count() or 1)):
            row = audit_site(self.root, job, resolve(self.record.device, private=True))
        return row.passed

    def _ready(
        self,
        job: StageJob,
        generator: Generator | TrainableAutoencoder | TrainableSegmenter,
        arrays: State,
        previous: State | None,
    ) -> Callable[[], tuple[LocalResult, TrainReply, State]]:
        """Get ready to train, without computing on a pixel; the function that is returned trains."""
        generator.network.load_state_dict(dict(arrays))
        generator.to(resolve(self.record.device, private=job.privacy is not None))
        first, steps = (job.round - 1) * job.training.local_steps, job.training.local_steps
        common = (generator, self.cohort, job.stage, self.record.style, job.training)
        threads, limits = torch.get_num_threads(), self.policy.limits
        trainer: Trainer
        if job.privacy:
            from cmrfed.training.private import PrivateTrainer  # with Opacus

            trainer = private = PrivateTrainer(*common, job.privacy, job.event, self.find_directions)
            run = partial(private.run, first, steps)
            budget = rehearse(private, job, limits)
        else:
            trainer = plain = LocalTrainer(*common, self._seed(job))
            limits.check(memory_gib=plain.needed_bytes() / GIB)
            run = partial(plain.run, first, steps, anchor=arrays, proximal_mu=job.proximal_mu)
            run = partial(run, longest_s=limits.round_seconds)
            budget = 0.0
        if previous is not None and trainer.keeps_optimizer_state:
            restore_optimizer(trainer.optimizer, previous)

        def train() -> tuple[LocalResult, TrainReply, State]:
            with _threads(threads):
                result = run()
            if budget and self.policy.hide_round_time:  # before the reply is stored: who asks again must wait too
                time.sleep(remaining(result.record_seconds, budget))
            weights = {n: to_host(p) for n, p in generator.network.state_dict().items()}
            reply = TrainReply(self.record.name, "ok", job.key, arrays=self._sent(job, weights, arrays))
            return result, reply, optimizer_state(trainer.optimizer)

        return train

    def _seed(self, job: StageJob) -> int:
        """Seed of training without privacy; within a secure sum no other request gets the same draws.

        Otherwise two runs that differ in name alone would give the same updates, and sums over other sites would differ
        by the update of one.
        """
        asked = (self.record.name,) if job.secure_threshold is None else (self.record.name, job.key)
        return fold(job.seed, "site", *asked)

    def _sent(self, job: StageJob, new: State, old: State) -> State:
        """What a reply carries: the weights, or their change, in fewer bits or to be masked.

        Under privacy the change has its noise already, and its randomness comes from the operating system.
        """
        if job.secure_threshold is not None:
            return {name: new[name] - old[name] for name in new}
        if job.compression == "none":
            return new
        if job.privacy:
            draws = entropy_generator(HOST)
        else:
            draws = torch_generator(job.seed, "compression", self.record.name, job.stage, job.round)
        return compress(new, old, job.compression, draws)


def _spent(ledger: PrivacyLedger, delta: float, *, audited: bool) -> Spent:
    """What the server may know of the ledger."""
    totals = ledger.totals(delta, strict_delta(delta))
    own, strict = map(Loss.of, totals.losses)
    return Spent(unit=totals.unit, at=(own, strict), ledger_hash=totals.last_hash, audited=audited)


def _metrics(result: LocalResult) -> dict[str, float]:
    return {
        "loss": sum(result.losses) / len(result.losses),
        "first_loss": result.losses[0],
        "last_loss": result.losses[-1],
        "items": float(result.items),
        "seconds": result.seconds,
    }


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _StateFolder:
    """The last rounds of one stage of one run at a site.

    ``round-0007`` answers the last request for round 7 that came. When another one for the same round is answered, it
    becomes ``round-0007.<key>``, and it is that again when it is asked for again.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def _rounds(self) -> list[int]:
        return sorted({_number(path) for path in self.path.glob("round-*")})

    def _folder(self, number: int) -> Path:
        return self.path / f"round-{number:04d}"

    def reply(self, job: StageJob) -> TrainReply | None:
        """The stored reply to this very request, or None."""
        folder = self._find(job)
        if folder is None:
            return None
        self._set_aside(job.round, job.key)
        if folder != self._folder(job.round):
            folder.rename(self._folder(job.round))
        arrays, metadata = load_state(self._folder(job.round) / "reply.safetensors")
        spent = Spent.model_validate_json(metadata["spent"])
        metrics = json.loads(metadata["metrics"])
        return TrainReply(metadata["site"], "ok", job.key, arrays=arrays, metrics=metrics, spent=spent)

    def _find(self, job: StageJob) -> Path | None:
        """The folder of the answer to a request."""
        folder = self._folder(job.round)
        for path in (folder, folder.with_name(f"{folder.name}.{job.key}")):
            if _key(path) == job.key:
                return path
        return None

    def _set_aside(self, number: int, key: str) -> None:
        """Keep the answer to another request for the same round under its own name."""
        folder = self._folder(number)
        other = _key(folder)
        if other not in (None, key):
            aside = folder.with_name(f"{folder.name}.{other}")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)

    def optimizer_before(self, number: int) -> dict[str, Tensor] | None:
        """The optimizer's state after the last round before ``number`` in which the site took part."""
        earlier = [n for n in self._rounds() if n < number and self._folder(n).is_dir()]
        return load_state(self._folder(earlier[-1]) / "optimizer.safetensors")[0] if earlier else None

    def save(self, job: StageJob, reply: TrainReply, optimizer: State) -> None:
        """Write both files at once, then drop rounds that are older than the last ones up to this, and no others."""
        metadata = {"site": reply.site, "key": reply.key, "metrics": json.dumps(dict(reply.metrics or {}))}
        metadata["spent"] = reply.spent.model_dump_json() if reply.spent else ""
        self._set_aside(job.round, job.key)
        with new_folder(self._folder(job.round)) as part:
            part.chmod(0o700)
            save_state(part / "reply.safetensors", reply.arrays or {}, metadata, OWNER_ALONE)
            save_state(part / "optimizer.safetensors", optimizer, permissions=OWNER_ALONE)
        oldest = [n for n in self._rounds() if n <= job.round][-KEPT_ROUNDS:][0]
        unfinished = self.path.glob(".round-*")
        for path in [*(p for p in self.path.glob("round-*") if _number(p) < oldest), *unfinished]:
            shutil.rmtree(path, ignore_errors=True)


def _number(folder: Path) -> int:
    """The round number of a folder ``round-0007`` or ``round-0007.<key>``."""
    return int(folder.name.removeprefix("round-").split(".")[0])


def _key(folder: Path) -> str | None:
    """`StageJob.key` of the request that a folder answers; None where there is no answer."""
    return read_metadata(folder / "reply.safetensors").get("key")
