"""The server's part in a secure sum: it passes keys and sealed shares on, and learns the sum of the updates alone.

What it needs to unmask is on the disk before it asks for that, since sites answer that question once: a server that is
killed then goes on with the same question.
"""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid
from torch import Tensor

from cmrfed.core.artifacts import load_state, new_folder, read_json, save_state, write_json
from cmrfed.core.errors import FederationError
from cmrfed.federation.messages import StageJob, State
from cmrfed.federation.secagg.arithmetic import MAX_TOTAL_WEIGHT, add_mask, decode, join, public_key, sign_of
from cmrfed.federation.secagg.client import (
    MaskStep,
    ShareStep,
    Step,
    UnmaskStep,
    decode_answer,
    decode_numbers,
    encode_step,
    own_mask,
    pair_mask,
)
from cmrfed.federation.server.exchange import Outcome, Roster, ask, bytes_of


@dataclass(frozen=True)
class MaskedSum:
    """All that unmasking needs; what is saved before it is asked for."""

    roster: ShareStep
    unmask: UnmaskStep
    weight: int
    """Total weight of the surviving sites."""
    numbers: np.ndarray
    """uint64 (number of weights,): the sum, with masks."""

    def save(self, folder: Path, outcome: Outcome) -> None:
        """Write it, with what is known of the round; it is there whole or not at all."""
        steps = {
            name: step.model_dump(mode="json") for name, step in (("roster", self.roster), ("unmask", self.unmask))
        }
        with new_folder(folder) as part:
            save_state(part / "sum.safetensors", {"sum": torch.from_numpy(self.numbers.view(np.int64))})
            write_json(part / "round.json", {**steps, "weight": self.weight, "outcome": outcome.to_json()})

    @classmethod
    def load(cls, folder: Path) -> "tuple[MaskedSum, Outcome]":
        """Read what `save` wrote."""
        saved = read_json(folder / "round.json")
        numbers = load_state(folder / "sum.safetensors")[0]["sum"].numpy().view(np.uint64)
        roster, unmask = ShareStep.model_validate(saved["roster"]), UnmaskStep.model_validate(saved["unmask"])
        return cls(roster, unmask, saved["weight"], numbers), Outcome.from_json(saved["outcome"])


class SecureRound:
    """One round of a secure sum.

    Args:
        grid: Where the nodes are.
        roster: The sites that are connected.
        job: What they are asked, with a ``secure_threshold``.
        weights: The global weights that go with it.
        counts: What each site's update counts: positive whole numbers, by name of all sites that are asked.
    """

    def __init__(self, grid: Grid, roster: Roster, job: StageJob, weights: State, counts: Mapping[str, int]) -> None:
        self.grid, self.roster, self.job, self.weights, self.counts = grid, roster, job, weights, counts
        self.threshold = job.secure_threshold or 0
        self.size = sum(tensor.numel() for tensor in weights.values())
        if sum(counts.values()) > MAX_TOTAL_WEIGHT:
            raise FederationError(
                "the sites count too much for a secure sum",
                got=sum(counts.values()),
                expected=f"at most {MAX_TOTAL_WEIGHT} in all",
                do="--set federation.weighting=equal",
            )

    def run(self, codec: State | None, scratch: Path, pending: Path) -> tuple[dict[str, Tensor], int, Outcome]:
        """Train at the sites and sum up.

        Args:
            codec: Weights of the autoencoder, where there is one.
            scratch: Folder for replies.
            pending: Where the masked sum is kept until the round is saved; one that is there is gone on with.

        Returns:
            The weighted mean of the weights of the sites that stayed, what they count together, and what became of all.

        Raises:
            FederationError: Fewer sites than the threshold stayed: nothing is known of any update.
        """
        masked, outcome = self._pending(pending) or self._collect(codec, scratch, pending)
        shares = self._unmask(masked, outcome)
        try:
            mean = decode(_unmasked(masked, shares), masked.weight)
        except ValueError as error:
            raise FederationError(
                f"the secure sum of round {self.job.round} of the {self.job.stage} stage cannot be read",
                got=error,
                do="look for a site that answers wrongly, and begin a run without it",
            ) from None
        return _added(self.weights, mean), masked.weight, outcome

    def _pending(self, folder: Path) -> tuple[MaskedSum, Outcome] | None:
        if not folder.is_dir():
            return None
        masked, outcome = MaskedSum.load(folder)
        return (masked, outcome) if masked.unmask.key == self.job.key else None

    # --- steps ----------------------------------------------------------------------------------
    def _collect(self, codec: State | None, scratch: Path, pending: Path) -> tuple[MaskedSum, Outcome]:
        session = secrets.token_hex(16)
        job, names = self.job, sorted(self.counts)
        outcome = ask(self.grid, self.roster, job, self.weights, names, codec, scratch=scratch, session=session)
        where = {"run": job.run, "stage": job.stage, "round": job.round, "key": job.key, "session": session}
        keys = {site: reply.keys for site, reply in sorted(outcome.replies.items()) if reply.keys}
        roster = ShareStep(**where, threshold=self.threshold, keys=keys)
        sealed = self._shares(roster, outcome)
        total = np.zeros(self.size, np.uint64)
        asked = {
            site: MaskStep(
                **where,
                weight=self.counts[site],
                sealed={other: texts[site] for other, texts in sealed.items() if other != site},
            )
            for site in sealed
        }

        def add(site: str, content: RecordDict) -> None:
            decode_answer(content, site)
            np.add(total, decode_numbers(content, self.size), out=total)

        survivors = self._step("masked", asked, add, outcome)
        dropped = tuple(sorted(set(sealed) - set(survivors)))
        unmask = UnmaskStep(**where, survivors=tuple(survivors), dropped=dropped)
        masked = MaskedSum(roster, unmask, sum(self.counts[site] for site in survivors), total)
        masked.save(pending, outcome)
        return masked, outcome

    def _shares(self, roster: ShareStep, outcome: Outcome) -> dict[str, dict[str, str]]:
        """Sealed shares by sender, then by recipient."""
        sealed: dict[str, dict[str, str]] = {}

        def keep(site: str, content: RecordDict) -> None:
            texts = decode_answer(content, site)
            if set(texts) != set(roster.keys) - {site}:
                raise FederationError("shares for other sites than those that take part", got=sorted(texts))
            sealed[site] = texts

        self._step("shares", dict.fromkeys(roster.keys, roster), keep, outcome)
        return sealed

    def _unmask(self, masked: MaskedSum, outcome: Outcome) -> dict[str, dict[str, str]]:
        """Shares by the site that gave them."""
        given: dict[str, dict[str, str]] = {}
        places = {*masked.unmask.survivors, *masked.unmask.dropped}

        def keep(site: str, content: RecordDict) -> None:
            texts = decode_answer(content, site)
            if set(texts) != places:
                raise FederationError("shares of other sites than those in the sum", got=sorted(texts))
            given[site] = texts

        asked = dict.fromkeys(masked.unmask.survivors, masked.unmask)
        self._step("unmask", asked, keep, outcome, leaving=False)
        return given

    def _step(
        self,
        name: str,
        steps: Mapping[str, Step],
        read: Callable[[str, RecordDict], None],
        outcome: Outcome,
        *,
        leaving: bool = True,
    ) -> list[str]:
        """Send each site its step and read each answer; the sites that answered.

        Sites that do not answer are asked again while they are fewer than the threshold; then, if ``leaving``, they
        have left the round.

        Raises:
            FederationError: Too few answered.
        """
        done: list[str] = []
        failed = dict.fromkeys(steps, ("missing", "not connected, or no answer in time"))
        for attempt in range(1 + self.roster.config.retries):
            targets = [s for s, (status, _) in failed.items() if status == "missing" and s in self.roster.nodes]
            for site, content in self._answers(name, {s: steps[s] for s in targets}, failed, outcome):
                try:
                    read(site, content)
                except FederationError as error:
                    failed[site] = ("set aside", str(error))
                    continue
                failed.pop(site)
                done.append(site)
            if len(done) >= self.threshold or attempt == self.roster.config.retries:
                break
            self.roster.wait()
        for site, (status, reason) in failed.items() if leaving else ():
            outcome.replies.pop(site, None)
            outcome.problems[site] = (status, f"it left the secure sum at step {name}: {reason}")
        if len(done) < self.threshold:
            raise self._too_few(name, done, failed)
        return sorted(done)

    def _answers(
        self, name: str, steps: Mapping[str, Step], failed: dict[str, tuple[str, str]], outcome: Outcome
    ) -> Iterator[tuple[str, RecordDict]]:
        site_of = {self.roster.nodes[site]: site for site in steps}

        contents = {node: encode_step(steps[site]) for node, site in site_of.items()}
        outcome.bytes_down += sum(bytes_of(content) for content in contents.values())
        messages = [Message(c, dst_node_id=node, message_type=f"train.{name}") for node, c in contents.items()]
        for reply in (
            self.grid.send_and_receive(messages, timeout=self.roster.config.round_timeout_s) if messages else ()
        ):
            site = site_of.get(reply.metadata.src_node_id)
            if site is None or site not in failed:
                continue
            if reply.has_error():
                failed[site] = ("missing", f"the site failed: {reply.error.reason}")
                continue
            outcome.bytes_up += bytes_of(reply.content)
            yield site, reply.content

    def _too_few(self, name: str, done: Sequence[str], failed: Mapping[str, tuple[str, str]]) -> FederationError:
        reasons = "; ".join(f"{site}: {status} ({reason})" for site, (status, reason) in sorted(failed.items()))
        return FederationError(
            f"the secure sum of round {self.job.round} of the {self.job.stage} stage stopped at step {name}, "
            "and no update is known to the server",
            got=f"{len(done)} answers ({', '.join(sorted(done)) or 'none'}); {reasons}",
            expected=f"at least {self.threshold} (federation.secure_aggregation.threshold)",
            do="fix the failing sites and run the same command again: it resumes from here",
        )


# --- taking masks out ---------------------------------------------------------------------------
def _unmasked(masked: MaskedSum, given: Mapping[str, Mapping[str, str]]) -> np.ndarray:
    """The sum without masks.

    Raises:
        ValueError: The shares do not belong together, or to the keys that were made known.
    """
    roster, total = masked.roster, masked.numbers.copy()
    for site in masked.unmask.survivors:
        add_mask(total, own_mask(_joined(site, roster, given), roster.context), -1)
    for site in masked.unmask.dropped:
        private = _joined(site, roster, given)
        if public_key(private).hex() != roster.keys[site].mask:
            raise ValueError(f"the shares of {site} give another key than it made known")
        for other in masked.unmask.survivors:
            add_mask(total, pair_mask(private, roster.keys[other].mask, roster.context), -sign_of(other, site))
    return total


def _joined(site: str, roster: ShareStep, given: Mapping[str, Mapping[str, str]]) -> bytes:
    givers = sorted(given)[: roster.threshold]
    return join({roster.place(giver): bytes.fromhex(given[giver][site]) for giver in givers})


def _added(weights: State, change: np.ndarray) -> dict[str, Tensor]:
    """The weights, in order of name, moved by a flat change (float64)."""
    names = sorted(weights)
    parts = torch.from_numpy(change).split([weights[name].numel() for name in names])
    return {
        name: (weights[name].double() + part.view_as(weights[name])).to(weights[name].dtype)
        for name, part in zip(names, parts, strict=True)
    }
