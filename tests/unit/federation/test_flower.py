"""What is relied on in Flower beyond its announced modules, and that nothing else is."""

import ast
import inspect
import tomllib
from pathlib import Path

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.corestate.in_memory_corestate import InMemoryCoreState
from flwr.supercore.inflatable import inflatable_object
from flwr.supernode import start_client_internal

from cmrfed.core.errors import FederationError
from cmrfed.deploy.node import Guard
from cmrfed.federation import client_app, flower
from cmrfed.federation.local_grid import LocalGrid
from cmrfed.pipeline import server_app

ROOT = Path(__file__).parents[3]
ANNOUNCED = ("flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy")
OURS = Path("cmrfed/federation/flower.py")
OTHER = "this version of Flower was not tested.*Got: flwr 1.42.0.*Expected: flwr 1.41.*pip install"


def imports(path: Path) -> list[tuple[str, str]]:
    """Module and name of everything of Flower that a file imports."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found += [(node.module or "", alias.name) for alias in node.names]
    return [(module, name) for module, name in found if module.partition(".")[0] == "flwr"]


def test_one_module_alone_imports_what_flower_does_not_announce():
    elsewhere = {
        f"{path.relative_to(ROOT)}: {module} {name}"
        for folder in ("cmrfed", "client", "server")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for module, name in imports(path)
        if path.relative_to(ROOT) != OURS and (module not in ANNOUNCED or name.startswith("_"))
    }
    assert elsewhere == set()
    assert {module for module, _ in imports(ROOT / OURS)} - set(ANNOUNCED)


def test_the_tested_release_is_the_one_that_is_installed_and_required():
    required = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    major, minor = map(int, flower.TESTED.split("."))
    assert [each for each in required if each.startswith("flwr")] == [f"flwr>={major}.{minor},<{major}.{minor + 1}"]
    flower.check_version()


# --- another release ---------------------------------------------------------------------------------
@pytest.fixture
def another(monkeypatch):
    monkeypatch.setattr(flower, "_version", lambda: "1.42.0")


@pytest.mark.parametrize("version", ["1.4", "1.410.0", "2.41.0", "1.40.9"])
def test_only_the_tested_release_passes(monkeypatch, version):
    monkeypatch.setattr(flower, "_version", lambda: version)
    with pytest.raises(FederationError, match="was not tested"):
        flower.check_version()


def test_another_release_starts_no_grid_no_server_and_no_node(another, tmp_path):
    for start in (lambda: LocalGrid([]), lambda: server_app.main(None, None), Guard(tmp_path).install):
        with pytest.raises(FederationError, match=OTHER):
            start()


def test_another_release_answers_no_request_before_a_site_is_opened(monkeypatch, tmp_path):
    """No handler is reached: the site's folder, which is no site, would be another error."""
    grid = LocalGrid([tmp_path])
    message = Message(RecordDict(), grid.get_node_ids()[0], "train")
    monkeypatch.setattr(flower, "_version", lambda: "1.42.0")
    for kind in ("train", "train.shares", "train.masked", "train.unmask", "query"):
        message.metadata.message_type = kind
        with pytest.raises(FederationError, match=OTHER):
            client_app.app(message, Context(1, 2, {"site-root": str(tmp_path)}, RecordDict(), {}))


# --- each part that is relied on ---------------------------------------------------------------------
def test_error_codes_and_the_number_of_the_superlink():
    assert isinstance(flower.SUPERLINK_NODE_ID, int)
    assert flower.ErrorCode.INVALID_FAB != flower.ErrorCode.CLIENT_APP_RAISED_EXCEPTION


def test_a_message_can_be_made_and_named_in_a_process_that_said_what_it_is():
    run = flower.begin_run(7)
    assert run.run_id == 7
    message = Message(RecordDict(), 3, "train")
    assert (message.metadata.run_id, message.metadata.src_node_id) == (7, flower.SUPERLINK_NODE_ID)
    flower.name_message(message, "m1")
    assert message.metadata.message_id == "m1"
    flower.begin_run(1)


def test_the_node_opens_its_connection_and_stores_bundles_where_the_guard_stands():
    assert list(inspect.signature(start_client_internal.http_request_response).parameters)[:2] == [
        "server_address",
        "insecure",
    ]
    assert list(inspect.signature(InMemoryCoreState.store_fab).parameters) == ["self", "fab"]
    assert {"hash_str", "content"} <= set(inspect.signature(flower.Fab).parameters)
    opened = inspect.signature(inspect.unwrap(start_client_internal._init_connection)).return_annotation
    assert str(opened).count("Callable") == 7, "receive, send, get_run, get_fab, pull, push and confirm"


def test_a_reply_is_taken_apart_as_flower_does():
    flower.begin_run(1)
    reply = Message(RecordDict(), 3, "train")
    with flower.as_objects(reply) as (tree, parts):
        assert tree.object_id == reply.metadata.message_id
        assert tree.object_id in parts
        assert all(isinstance(part, bytes) for part in parts.values())
    assert callable(inflatable_object.no_object_id_recompute)
