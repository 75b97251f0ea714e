"""Files are UTF-8 whatever the locale, and no locale makes a command fail."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cmrfed.core.artifacts import read_json, read_object, write_json
from cmrfed.core.errors import DataError
from tests.support import SOURCES

C_LOCALE = {"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


# --- no call leaves the encoding to the locale ------------------------------------------------------
def calls_by_locale(source: str) -> Iterator[int]:
    """Lines with calls that read or write text in the encoding of the locale."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and "encoding" not in {word.arg for word in node.keywords} and _is_text(node):
            yield node.lineno


def _is_text(call: ast.Call) -> bool:
    words = {word.arg: word.value for word in call.keywords}
    if any(getattr(words.get(name), "value", False) is True for name in ("text", "universal_newlines")):
        return True
    method = call.func.attr if isinstance(call.func, ast.Attribute) else None
    name = method or (call.func.id if isinstance(call.func, ast.Name) else "")
    if name in ("fdopen", "TemporaryFile", "NamedTemporaryFile", "FileHandler", "savetxt", "loadtxt", "genfromtxt"):
        return True
    if method in ("read_text", "write_text"):
        return True
    if name != "open":
        return False
    place = 0 if method else 1
    mode = words.get("mode", call.args[place] if len(call.args) > place else None)
    if isinstance(mode, ast.Constant) and isinstance(mode.value, str):
        return "b" not in mode.value
    return mode is None and (not method or not call.args)


def test_calls_are_found():
    text = 'p.read_text()\np.write_text("")\np.open()\np.open("w")\np.open(newline="")\nopen(p)\nopen(p, "a")\n'
    assert [*calls_by_locale(text + "run(c, text=True)\n")] == [*range(1, 9)]
    fine = 'p.read_text(encoding="utf-8")\nread_text(p)\np.open("rb")\nCohort.open(p)\nos.open(p, 3)\nopen(p, "wb")\n'
    assert not [*calls_by_locale(fine)]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_no_module_leaves_the_encoding_to_the_locale(path):
    assert not [*calls_by_locale(path.read_text(encoding="utf-8"))]


# --- a locale without UTF-8 ---------------------------------------------------------------------------
def in_locale(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "cmrfed", *map(str, words)],
        capture_output=True, encoding="utf-8", env={**os.environ, **C_LOCALE, **environment},
    )  # fmt: skip


RECIPE = """
name: sizes
data: {size_px: 16, cohorts: [“Zürich” × ε]}
mask: {generator: {backbone: {channels: [8]}}}
image: {generator: {backbone: {channels: [8]}}}
privacy: {unit: patient, epsilon: 8, declared_patients: 20}
federation: {weighting: equal}
"""


@pytest.mark.parametrize("environment", [{}, {"PYTHONIOENCODING": "ascii:strict"}])
def test_a_command_speaks_in_a_locale_without_utf_8(tmp_path, environment):
    (tmp_path / "ε.yaml").write_text(RECIPE, encoding="utf-8")
    done = in_locale("run", tmp_path / "ε.yaml", "--run-dir", tmp_path / "run", "--dry-run", **environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert ("“Zürich” × ε" if not environment else "Z") in done.stdout


def test_the_same_files_are_written_in_every_locale(tmp_path):
    """A phantom, its cohort and its check, with names that no ASCII has."""
    for name, environment in (("c", C_LOCALE), ("utf-8", {"LC_ALL": "C.UTF-8"})):
        folder = tmp_path / name
        for words in (["phantom", folder / "Bälge", "--patients", "2", "--sites", "1"],
                      ["prepare", folder / "Bälge" / "site-0", folder / "Köln", "--source", "acdc", "--size", "16"],
                      ["verify", folder / "Köln"]):  # fmt: skip
            done = in_locale(*words, **environment)
            assert done.returncode == 0, done.stderr
    names = ("patients.jsonl", "cohort.json")
    first, second = ([(tmp_path / at / "Köln" / name).read_bytes() for name in names] for at in ("c", "utf-8"))
    assert first == second


def test_a_name_that_is_no_text_is_one_paragraph(tmp_path):
    folder = os.fsencode(tmp_path) + b"/\xff\xfe"
    os.mkdir(folder)
    done = subprocess.run(
        [sys.executable, "-m", "cmrfed", "phantom", folder + b"/x", "--patients", "1", "--sites", "1"],
        capture_output=True, env={**os.environ, **C_LOCALE},
    )  # fmt: skip
    said = done.stderr.decode("utf-8", "backslashreplace")
    assert "Traceback" not in said
    assert done.returncode in (0, 1)


# --- JSON that people edit ------------------------------------------------------------------------------
def test_json_is_utf_8_and_a_byte_order_mark_is_taken(tmp_path):
    write_json(tmp_path / "x.json", {"name": "Zürich"})
    (tmp_path / "y.json").write_bytes(b"\xef\xbb\xbf" + (tmp_path / "x.json").read_bytes())
    assert read_json(tmp_path / "y.json") == read_json(tmp_path / "x.json") == {"name": "Zürich"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('{"name": "Zürich"}'.encode("latin-1"), "is not a readable file. Got: byte 0xfc in line 1"),
        ('{"name": "Zürich"}'.encode("utf-16"), "UTF-16, by its first bytes"),
        (b'{"name": 1, "name": 2}', "is not JSON. Got: the key 'name' is there twice"),
        (b'{"style": NaN}', "is not JSON. Got: NaN is no number in JSON"),
        (b'{"style": 1', "is not JSON"),
        (b"[" * 100_000, "is not JSON. Got: it is nested too deeply"),
        (b"[1]", "is damaged. Got: list. Expected: an object"),
    ],
)
def test_json_that_cannot_be_used_is_one_paragraph(tmp_path, data, words):
    (tmp_path / "site.json").write_bytes(data)
    with pytest.raises(DataError, match=words):
        read_object(tmp_path / "site.json")


def test_the_folder_of_the_project_has_no_file_in_another_encoding():
    root = Path(__file__).parents[2]
    for path in [*(root / "configs").rglob("*.yaml"), *(root / "docs").rglob("*.md"), *SOURCES]:
        path.read_bytes().decode("utf-8")
