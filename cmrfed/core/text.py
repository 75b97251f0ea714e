"""Text that people write, read as UTF-8 whatever the locale; another encoding is an error that names the place."""

import errno
import json
import re
from pathlib import Path
from typing import Any, NoReturn

from cmrfed.core.errors import CmrfedError, DataError

LARGEST_BYTES = 64 << 20
"""No file of text that the project reads whole is nearly as large."""
_BOMS = {b"\xff\xfe\x00\x00": "UTF-32", b"\x00\x00\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
DEEPEST = 100
"""Levels of JSON; nothing that the project reads has nearly as many."""
_SAVE = "save it as UTF-8: the editor's Save as, or iconv -f {encoding} -t UTF-8"


def read_text(
    path: Path, kind: str = "file", *, error: type[CmrfedError] = DataError, largest: int = LARGEST_BYTES
) -> str:
    """Read a file of UTF-8, with or without a byte order mark.

    Args:
        path: The file.
        kind: What it is, in errors: "recipe".
        error: What is raised for a file that cannot be used.
        largest: Bytes.

    Raises:
        FileNotFoundError: There is no such file; what that means is known to the caller alone.
        CmrfedError: It cannot be read, is larger than ``largest``, or is not UTF-8.
    """
    try:
        with path.open("rb") as handle:
            data = handle.read(largest + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as problem:
        if isinstance(problem, OSError) and problem.errno in (errno.ENAMETOOLONG, errno.ENOTDIR):
            raise FileNotFoundError(errno.ENOENT, "No such file", str(path)) from None
        got = problem.strerror if isinstance(problem, OSError) else problem
        raise error(f"{path} is not a readable {kind}", got=got, expected="a file that this user may read") from None
    if len(data) > largest:
        raise error(
            f"{path} is not a readable {kind}", got=f"more than {largest} bytes", do="see that it is the right file"
        )
    return decode(data, f"{path} is not a readable {kind}", error=error)


def decode(data: bytes, what: str, *, error: type[CmrfedError] = DataError) -> str:
    """Decode UTF-8, with or without a byte order mark.

    Args:
        data: The bytes of a file.
        what: How the error begins: "x.yaml is not a readable recipe".
        error: What is raised.

    Raises:
        CmrfedError: The bytes are UTF-16, another encoding, or no text.
    """
    for mark, encoding in _BOMS.items():
        if data.startswith(mark):
            _refuse(what, f"{encoding}, by its first bytes", encoding, error)
    if (place := data.find(b"\0")) >= 0:
        odd = data[1:200:2].count(b"\0") * 4 > len(data[1:200:2])
        even = data[:200:2].count(b"\0") * 4 > len(data[:200:2])
        if odd != even:
            _refuse(what, "UTF-16 without a byte order mark", "UTF-16LE" if odd else "UTF-16BE", error)
        raise error(what, got=f"a NUL byte in {_line(data, place)}", expected="text in UTF-8", do="restore the file")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        got = f"byte 0x{data[problem.start]:02x} in {_line(data, problem.start)}, which is not UTF-8"
        _refuse(what, got, "WINDOWS-1252", error)


def _refuse(what: str, got: str, encoding: str, error: type[CmrfedError]) -> NoReturn:
    raise error(what, got=got, expected="text in UTF-8", do=_SAVE.format(encoding=encoding))


def _line(data: bytes, place: int) -> str:
    number = data.count(b"\n", 0, place) + 1
    return f"line {number}"


def parse_json(text: str) -> Any:
    """Parse JSON in which every key of an object is there once, every number is finite and nothing is nested deeply.

    Raises:
        ValueError: It is not such JSON.
    """
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_constant=_finite, parse_float=_float)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if text.count("[") + text.count("{") > DEEPEST and _is_deep(found):
        raise ValueError(f"it is nested too deeply, more than {DEEPEST} levels")
    return found


def _is_deep(tree: Any) -> bool:
    """Whether there are more than `DEEPEST` levels of arrays and objects."""
    level: list[Any] = [[tree]]
    for _ in range(DEEPEST + 1):
        inner = (each for outer in level for each in (outer.values() if isinstance(outer, dict) else outer))
        level = [each for each in inner if isinstance(each, dict | list)]
    return bool(level)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} is there twice")
    return found


def _finite(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number in JSON")


def _float(word: str) -> float:
    value = float(word)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"{word} is too large")
    return value


def one_line(text: object) -> str:
    """Text with all runs of white space, line breaks among them, as single spaces."""
    return re.sub(r"\s+", " ", str(text)).strip()
