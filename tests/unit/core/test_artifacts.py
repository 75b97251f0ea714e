import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from cmrfed.core import artifacts
from cmrfed.core.artifacts import (
    digest_bytes,
    digest_folder,
    digest_json,
    digest_state,
    load_state,
    locked,
    new_folder,
    read_json,
    save_state,
    write_bytes,
    write_json,
)
from cmrfed.core.errors import DataError

STATE = {"b": torch.arange(6.0).view(2, 3), "a": torch.tensor(3), "c": torch.zeros(2, dtype=torch.bfloat16)}


# --- whole or absent ----------------------------------------------------------------------------
def test_a_write_that_fails_leaves_the_old_content_and_nothing_beside_it(tmp_path, monkeypatch):
    path = write_bytes(tmp_path / "deep" / "file", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(artifacts.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


KILLED = """
import os, signal, sys
from pathlib import Path
from cmrfed.core.artifacts import new_folder, write_bytes
Path.{method} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
out = Path(sys.argv[1])
if {folder}:
    with new_folder(out) as part:
        (part / "name").write_text("new")
else:
    write_bytes(out, b"new")
"""


@pytest.mark.parametrize(("method", "folder"), [("replace", False), ("rename", True)])
def test_a_kill_between_write_and_rename_leaves_the_old_content(tmp_path, method, folder):
    out = tmp_path / "out"
    if folder:
        out.mkdir()
        (out / "name").write_text("old")
    else:
        out.write_text("old")
    program = KILLED.format(method=method, folder=folder)
    done = subprocess.run([sys.executable, "-c", program, out], env=os.environ, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert (out / "name" if folder else out).read_text() == "old"


def test_a_folder_appears_when_its_block_succeeds_and_replaces_the_old_one(tmp_path):
    out = tmp_path / "out"
    for text in ("old", "new"):
        with new_folder(out) as part:
            (part / text).write_text(text)
            assert not (out / "new").exists()
    assert [path.name for path in out.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_a_folder_whose_block_fails_leaves_the_old_one_and_nothing_beside_it(tmp_path, stop):
    out = tmp_path / "out"
    with new_folder(out) as part:
        (part / "old").write_text("old")

    def broken():
        with new_folder(out) as part:
            (part / "new").write_text("new")
            raise stop

    with pytest.raises(stop):
        broken()
    assert [path.name for path in out.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


# --- JSON -----------------------------------------------------------------------------------------
def test_json_round_trip_and_refusal_of_what_is_no_json(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"é": [1, 2.5, None]}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert read_json(tmp_path / "a.json") == {"é": [1, 2.5, None]}


def test_reading_what_is_missing_or_torn_names_the_file(tmp_path):
    with pytest.raises(DataError, match=r"a\.json is missing"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(DataError, match=r"a\.json is not JSON\. Got: "):
        read_json(tmp_path / "a.json")


# --- tensors ----------------------------------------------------------------------------------------
def test_tensors_and_metadata_survive(tmp_path):
    save_state(tmp_path / "s.safetensors", STATE, {"key": "value"})
    state, told = load_state(tmp_path / "s.safetensors")
    assert told == {"key": "value"}
    assert digest_state(state) == digest_state(STATE)
    assert all(torch.equal(state[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("content", [b"", b"nonsense that is long enough to be a header", None])
def test_a_damaged_or_missing_state_is_named(tmp_path, content):
    path = tmp_path / "s.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=r"s\.safetensors is (damaged|missing)"):
        load_state(path)


# --- digests ----------------------------------------------------------------------------------------
def test_the_digest_of_json_is_of_the_value_not_of_its_layout():
    text = '{"b": 1, "a": [1, 2]}'
    assert digest_json(json.loads(text)) == digest_json({"a": [1, 2], "b": 1})
    assert digest_json({"a": 1}) != digest_json({"a": 2})
    assert digest_bytes(b"") == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_the_digest_of_a_state_sees_names_types_shapes_and_bits_and_no_order():
    turned = dict(reversed(STATE.items()))
    assert digest_state(turned) == digest_state(STATE)
    x = torch.arange(4.0)
    different = [{"x": x}, {"y": x}, {"x": x.view(2, 2)}, {"x": x.double()}, {"x": x + 1}, {}, {"x": x[0]}]
    assert len({digest_state(state) for state in different}) == len(different)
    assert digest_state({"x": x.view(2, 2).T}) == digest_state({"x": x.view(2, 2).T.contiguous()})


def test_the_digest_of_a_folder_sees_names_and_contents(tmp_path):
    digests = set()
    for name, text in (("a", "1"), ("a", "2"), ("b", "1"), ("c/a", "1")):
        folder = tmp_path / f"{name[0]}{text}"
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
        digests.add(digest_folder(folder))
    assert len(digests) == 4


def test_tensors_are_readable_by_whom_other_files_are(tmp_path):
    tensors, text = save_state(tmp_path / "a", {"w": torch.ones(2)}), write_bytes(tmp_path / "b", b"b")
    assert tensors.stat().st_mode == text.stat().st_mode


HOLDER = """
import sys, time
from pathlib import Path
from cmrfed.core.artifacts import locked
with locked(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_a_lock_is_waited_for_and_is_free_when_its_holder_is_killed(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "a"], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "mine\n"
    entered = threading.Event()

    def enter():
        with locked(tmp_path / "a"):
            entered.set()

    waiting = threading.Thread(target=enter)
    waiting.start()
    assert not entered.wait(0.3)
    with locked(tmp_path / "b"):  # another name is another lock
        holder.kill()
        holder.wait()
    assert entered.wait(10)
    waiting.join()
