import pytest

from cmrfed.core.errors import DataError
from cmrfed.data.sources.text import decoded, frame_number

TEXT = "Größe: 1\r\nED: 12\r\n"


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252", "iso-8859-1"]
)
def test_encodings(tmp_path, encoding):
    (tmp_path / "a").write_bytes(TEXT.encode(encoding))
    assert decoded(tmp_path / "a") == TEXT


@pytest.mark.parametrize("data", [b"", b"\xff", b"\xff\xfe", b"\xff\xfe\x00", b"\x00", bytes(range(256)), b"\xef\xbb"])
def test_any_bytes_are_some_text(tmp_path, data):
    (tmp_path / "a").write_bytes(data)
    assert isinstance(decoded(tmp_path / "a"), str)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="gone cannot be read"):
        decoded(tmp_path / "gone")


def test_a_file_that_is_too_large(tmp_path):
    with (tmp_path / "a").open("wb") as handle:
        handle.truncate(1 << 31)
    with pytest.raises(DataError, match="no table or settings"):
        decoded(tmp_path / "a")


@pytest.mark.parametrize("text", ["7", "07", " 7 ", "7.0", "7,0", "7.", "+7", "7e0", "0.7E1", "007,000"])
def test_numbers_of_frames(text):
    assert frame_number(text, "ED", "the CSV", 1) == 7


@pytest.mark.parametrize(
    "text",
    [
        "inf",
        " inf",
        "nan",
        "1e400",
        "-1",
        "12.7",
        "",
        "first",
        None,
        "0",
        "1_0",
        "0x7",
        "7 8",
        "1e9",
        "9" * 400,
        "٧.٧",
        "1/2",
    ],
)
def test_what_is_no_frame(text):
    with pytest.raises(DataError, match=r"the CSV does not say which frame of B1 is ED.*a frame number from 1"):
        frame_number(text, "ED", "the CSV", 1, patient="B1")
