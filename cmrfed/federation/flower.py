"""The only module that uses parts of Flower which Flower does not announce, and so may change in any release.

Everything else uses ``flwr.app``, ``flwr.clientapp`` and ``flwr.serverapp`` alone, which a test holds. Here are:

* ``ErrorCode`` and the SuperLink's number: an error reply needs a code, and nodes of a grid inside this process are
  numbered after the SuperLink.
* ``Run``, ``TaskIdentity``: `Message` asks which process it is in, and a grid inside this process must say so.
* ``Metadata._message_id``: Flower names a message when it sends it, and nothing is sent inside one process.
* ``build_fab_from_disk``: the bundle that sites approve must be the one that Flower makes.
* ``inflatable_object``: a refusal is sent as Flower sends a reply, object by object.
* ``http_request_response``, ``store_fab``: the owner's allow-list stands before code is loaded. Mods of a ClientApp run
  inside the code that is to be approved, and the node takes no interceptor.
* ``flower_supernode``: the node runs in the process in which the allow-list was put in place.

`check_version` refuses a release that was not tested, before a site or a patient is asked for anything, and
`guard_node` refuses one whose path it does not recognise.
"""

import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from flwr.app import Message
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from cmrfed.core.errors import FederationError

__all__ = ["SUPERLINK_NODE_ID", "ErrorCode", "Fab", "Run"]

TESTED = "1.41"
"""Release of Flower, without its last number, that the tests have passed with."""
_CONNECT = "http_request_response"

Connect = Callable[..., AbstractContextManager[tuple[Any, ...]]]
"""Opens a node's connection: (node id, receive, send, get_run, get_fab, pull, push, confirm)."""


def check_version() -> None:
    """Let nothing start on a release of Flower that was not tested.

    Raises:
        FederationError: Another one is installed.
    """
    found = _version()
    if found.split(".")[:2] != TESTED.split("."):
        raise FederationError(
            "this version of Flower was not tested with CMRFed",
            got=f"flwr {found}",
            expected=f"flwr {TESTED}.*",
            do=f"pip install 'flwr=={TESTED}.*'",
        )


@cache
def _version() -> str:
    return importlib.metadata.version("flwr")


# --- a grid inside this process ------------------------------------------------------------------------
def begin_run(run_id: int) -> Run:
    """Describe a run, and say that this process is its server, as a Flower process learns at its start."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, run_id, SUPERLINK_NODE_ID
    return Run.create_empty(run_id)


def name_message(message: Message, name: str) -> None:
    """Give a message its name, as Flower does when it sends one."""
    message.metadata.__dict__["_message_id"] = name


# --- bundles -------------------------------------------------------------------------------------------
def build_bundle(app: Path) -> bytes:
    """The bundle (FAB) of an app's folder, as Flower sends it to sites."""
    from flwr.cli.build import build_fab_from_disk

    return build_fab_from_disk(app)


# --- a site's node -------------------------------------------------------------------------------------
def guard_node(around: Callable[[Connect], Connect], demand: Callable[[bytes], None]) -> None:
    """Put an allow-list into the path of the node that will run in this process.

    Args:
        around: Wraps the function that opens the node's connection.
        demand: Raises for a bundle that was not approved; called with each that the node stores.

    Raises:
        FederationError: This version of Flower has another path.
    """
    from flwr.supercore.corestate.in_memory_corestate import InMemoryCoreState
    from flwr.supernode import start_client_internal

    check_version()
    connect, user = (getattr(start_client_internal, name, None) for name in (_CONNECT, "_init_connection"))
    uses_it = user is not None and _CONNECT in inspect.unwrap(user).__code__.co_names
    if connect is None or not uses_it or not hasattr(InMemoryCoreState, "store_fab"):
        raise FederationError(
            "the owner's allow-list does not fit this version of Flower", do="install the version of constraints.txt"
        )
    setattr(start_client_internal, _CONNECT, around(connect))
    store = InMemoryCoreState.store_fab

    def store_checked(state: InMemoryCoreState, fab: Fab) -> str:
        demand(fab.content)
        return store(state, fab)

    InMemoryCoreState.store_fab = store_checked  # type: ignore[assignment]


@contextmanager
def as_objects(reply: Message) -> Iterator[tuple[Any, dict[str, bytes]]]:
    """A named reply as what travels: the tree of its objects, and the bytes of each by name."""
    from flwr.supercore.inflatable.inflatable_object import (
        get_all_nested_objects,
        get_object_tree,
        no_object_id_recompute,
    )

    with no_object_id_recompute():
        name_message(reply, reply.object_id)
        parts = get_all_nested_objects(reply)
        yield get_object_tree(reply), {name: part.deflate() for name, part in parts.items()}


def run_node(arguments: Sequence[str]) -> None:
    """Run ``flower-supernode`` with these arguments in this process until it ends."""
    from flwr.supernode.cli.flower_supernode import flower_supernode

    sys.argv = ["flower-supernode", *arguments]
    flower_supernode()
