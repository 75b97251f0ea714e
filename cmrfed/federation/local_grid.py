"""A Flower grid inside this process: the same ServerApp and ClientApp code, without Ray and without a network."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from uuid import uuid4

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid

from cmrfed.federation.client_app import app
from cmrfed.federation.flower import SUPERLINK_NODE_ID, ErrorCode, Run, begin_run, check_version, name_message
from cmrfed.federation.identity import make_identities

_RUN_ID = 1


class LocalGrid(Grid):
    """Calls the ClientApp for one simulated site after the other.

    A site is opened for each message and closed with it, so memory holds one site's training at a time. Nothing can
    interrupt a site, so timeouts have no effect here: a round lasts as long as its sites take.

    Args:
        roots: Folder of each site.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        check_version()
        make_identities([root for root in roots if (root / "site.json").is_file()])
        self._contexts = {node: _context(node, root) for node, root in enumerate(roots, SUPERLINK_NODE_ID + 1)}
        self._replies: dict[str, Message] = {}
        self._run = begin_run(_RUN_ID)
        logging.getLogger("flwr").setLevel(logging.WARNING)

    def set_run(self, run: Run) -> None:
        """Take over the description of the run."""
        self._run = run

    @property
    def run(self) -> Run:
        """Description of the run."""
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        """Make a message; Flower keeps this method for old callers."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All simulated nodes."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Answer each message at once; `pull_messages` hands out the replies."""
        identifiers = []
        for message in messages:
            name_message(message, uuid4().hex)
            self._replies[message.metadata.message_id] = self._answer(message)
            identifiers.append(message.metadata.message_id)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand out the replies to these messages, once."""
        return [self._replies.pop(i) for i in list(message_ids) if i in self._replies]

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Answer one message at a time, as the replies are taken, so that memory holds one of them.

        Raises:
            TypeError: The messages are not a list of one or more: Flower's grid over a network goes through them twice,
                and sends no empty request.
        """
        if not isinstance(messages, list) or not messages:
            raise TypeError(f"a grid needs a list of messages, got {messages!r}")
        for message in messages:
            yield from self.pull_messages(self.push_messages([message]))

    def _answer(self, message: Message) -> Message:
        try:
            return app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            logging.getLogger("cmrfed").debug("a site failed", exc_info=error)
            reason = f"{type(error).__name__}: {error}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)


def _context(node: int, root: Path) -> Context:
    return Context(_RUN_ID, node, {"site-root": str(root.absolute())}, RecordDict(), {})
