"""What sites have said of their ledgers over a run: kept by the coordinator, and never lowered.

``ledgers.json`` of the run folder has, by site: the largest loss that it ever stated, the hash that it named last, and
which hash answered which request. A site whose loss falls, or whose ledger does not grow, has an older ledger in place:
its reply is not used.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from pydantic import Field

from cmrfed.core.artifacts import write_json
from cmrfed.core.settings.config import Section
from cmrfed.core.settings.validation import read_model
from cmrfed.federation.messages import Spent, TrainReply
from cmrfed.privacy.ledger.statement import Loss

FILE = "ledgers.json"
PRV_SLACK = 0.025
"""Tolerance when the PRV ε of a longer history is compared with a shorter one: twice its own error, and rounding."""
RDP_SLACK = 1e-6


class Heard(Section):
    """What one site has stated."""

    largest: Spent
    """Elementwise, over everything that the site ever said in this run."""
    last: str
    """The hash that it named last."""
    losses: tuple[Loss, ...] = ()
    """The largest at each δ that it ever named."""
    answers: dict[str, str] = Field(default_factory=dict)
    """Digest of a request → the hash that came with its answer."""


class Statements:
    """The statements of a run's sites.

    Args:
        path: Where they are kept; None: in memory alone.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path, self._heard = path, read_statements(path) if path else {}

    def last(self, site: str) -> str | None:
        """The hash that a site named last; None where it said nothing yet."""
        return self._heard[site].last if site in self._heard else None

    def hear(self, reply: TrainReply) -> str | None:
        """Take note of what a reply says; on the disk when this returns. Returns why it must not be used, or None."""
        if reply.spent is None:
            return None
        before = self._heard.get(reply.site)
        fault = _fault(before, reply.key, reply.spent) if before else None
        largest = before.largest.joined(reply.spent) if before else reply.spent
        last = reply.spent.ledger_hash if before is None or not fault else before.last
        answers = dict(before.answers) if before else {}
        if not fault:
            answers[reply.key] = reply.spent.ledger_hash
        losses = _by_delta([*(before.losses if before else ()), *reply.spent.at])
        self._heard[reply.site] = Heard(largest=largest, last=last, losses=losses, answers=answers)
        if self.path and self._heard[reply.site] != before:
            write_json(self.path, {name: heard.model_dump(mode="json") for name, heard in self._heard.items()})
        return fault


def read_statements(path: Path) -> dict[str, Heard]:
    """What was heard from each site; empty where nothing was."""
    if not path.exists():
        return {}
    do = "restore it from a copy: without it the largest losses that the sites stated in this run are lost"
    return read_model(path, dict[str, Heard], expected="what each site stated of its ledger", do=do)


def _by_delta(losses: Sequence[Loss]) -> tuple[Loss, ...]:
    largest: dict[float, Loss] = {}
    for loss in losses:
        largest[loss.delta] = largest[loss.delta].joined(loss) if loss.delta in largest else loss
    return tuple(largest.values())


def _fault(before: Heard, key: str, now: Spent) -> str | None:
    if before.answers.get(key) == now.ledger_hash or not (before.largest.bounded or now.bounded):
        return None  # the stored answer to a request that is repeated; or nothing is promised, now as before
    if now.ledger_hash in before.answers.values():
        return "its privacy ledger has not grown, though it answers another request"
    for then, loss in product(before.losses, now.at):
        if _fell(then, loss):
            return (
                f"its privacy ledger says less than before: ε = {_words(loss)} at δ = {loss.delta:g}, and ε = "
                f"{_words(then)} earlier in this run; an older copy of the ledger was put in place"
            )
    return None


def _fell(then: Loss, now: Loss) -> bool:
    """Whether a loss is lower than before at the same δ, or a smaller one; at a larger δ it may be lower by right."""
    if now.delta > then.delta:
        return False
    pairs = ((then.prv, now.prv, PRV_SLACK), (then.rdp, now.rdp, RDP_SLACK))
    return any(b is not None and (a is None or b < a - slack) for a, b, slack in pairs)


def _words(loss: Loss) -> str:
    return "∞" if loss.prv is None else f"{loss.prv:.3f}"
