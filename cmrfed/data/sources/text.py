"""Small text files as editors and spreadsheets of all systems write them, and the numbers in them."""

import codecs
import re
from decimal import Decimal
from pathlib import Path

from cmrfed.core.errors import DataError

MAX_BYTES = 64 << 20
"""Largest text file that is read: a table of patients with a million blank rows has some 12 MB."""
MAX_FRAME = 100_000
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_NUMBER = re.compile(r"\+?(\d{1,9}([.,]\d{0,9})?|[.,]\d{1,9})(e[+-]?\d)?", re.IGNORECASE | re.ASCII)


def decoded(path: Path) -> str:
    """Read text in UTF-8, UTF-16 or UTF-32 (by its mark, or by its zero bytes), else in Windows-1252.

    Raises:
        DataError: The file cannot be read, or is too large to be such a text.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path} is no table or settings of patients", got=f"{path.stat().st_size} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read", got=error.strerror, do="check who may read it") from None
    for mark, encoding in _MARKS:
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, errors="replace")
    if wide := _wide(data):
        return data.decode(wide, errors="replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def _wide(data: bytes) -> str | None:
    """UTF-16 without a mark: of Latin text every second byte is zero."""
    even, odd = data[0:4096:2], data[1:4096:2]
    if len(odd) > 1 and odd.count(0) > 0.4 * len(odd) and even.count(0) < 0.1 * len(even):
        return "utf-16-le"
    if len(odd) > 1 and even.count(0) > 0.4 * len(even) and odd.count(0) < 0.1 * len(odd):
        return "utf-16-be"
    return None


def frame_number(text: str | None, phase: str, source: str, first: int, *, patient: str = "") -> int:
    """Read the number of a frame: 1, 01, 1.0 and 1,0 are one.

    Args:
        text: As the file has it.
        phase: What the number is of, for the message.
        source: What has it, for the message.
        first: The smallest number that there is.
        patient: Whose frame it is, for the message.

    Raises:
        DataError: It is no whole number from ``first``.
    """
    value = (text or "").strip()
    if _NUMBER.fullmatch(value):
        number = Decimal(value.replace(",", "."))
        if number == number.to_integral_value() and first <= number <= MAX_FRAME:
            return int(number)
    raise DataError(
        f"{source} does not say which frame {f'of {patient} ' if patient else ''}is {phase}",
        got=f"{phase}: {value or 'nothing'}",
        expected=f"a frame number from {first}",
        do="correct the value",
    )
