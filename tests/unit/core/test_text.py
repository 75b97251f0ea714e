import pytest
from hypothesis import given
from hypothesis import strategies as st

from cmrfed.core.errors import ConfigError, DataError
from cmrfed.core.text import decode, parse_json, read_text

TEXT = "cap: 8  # für alle Läufe\nε: 3\n"


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    (tmp_path / "x").write_bytes(TEXT.encode("utf-8-sig"))
    assert read_text(tmp_path / "x") == TEXT


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("a: 1\n# für\n".encode("latin-1"), "byte 0xfc in line 2, which is not UTF-8. .*iconv -f WINDOWS-1252"),
        ("€".encode("cp1252"), "byte 0x80 in line 1"),
        (TEXT.encode("utf-16"), "UTF-16, by its first bytes.*iconv -f UTF-16 "),
        (TEXT.encode("utf-16-le"), "UTF-16 without a byte order mark.*UTF-16LE"),
        (TEXT.encode("utf-16-be"), "UTF-16 without a byte order mark.*UTF-16BE"),
        (TEXT.encode("utf-32"), "UTF-32, by its first bytes"),
        (b"a: 1\nb: 2\0\n" + b"# text" * 9, "a NUL byte in line 2"),
        (bytes(200), "a NUL byte in line 1"),
        (b"a: \xed\xa0\x80", "byte 0xed in line 1"),
        (b"cut \xe2\x82", "byte 0xe2 in line 1"),
    ],
)
def test_another_encoding_is_one_paragraph_with_the_place(tmp_path, data, words):
    (tmp_path / "x.yaml").write_bytes(data)
    with pytest.raises(ConfigError, match=rf"x\.yaml is not a readable policy\. Got: {words}") as error:
        read_text(tmp_path / "x.yaml", "policy", error=ConfigError)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["none", "file/below", "n" * 300], ids=["none", "below a file", "too long"])
def test_what_is_not_there_is_left_to_the_caller(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / name)


@pytest.mark.parametrize("name", ["", "nul\0byte"])
def test_what_is_no_file_is_one_paragraph(tmp_path, name):
    with pytest.raises(DataError, match="is not a readable file"):
        read_text(tmp_path / name)


def test_a_file_without_end_is_not_read_to_the_end():
    from pathlib import Path

    with pytest.raises(DataError, match="more than 1000 bytes"):
        read_text(Path("/dev/zero"), largest=1000)


@given(st.text())
def test_utf_8_comes_back_as_it_was(text):
    if "\0" not in text and not text.startswith("\ufeff"):
        assert decode(text.encode(), "x") == text


@given(st.binary(max_size=60))
def test_any_bytes_are_text_or_one_paragraph(data):
    try:
        decode(data, "x")
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' is there twice"),
        ('{"a": NaN}', "NaN is no number in JSON"),
        ("[-Infinity]", "-Infinity is no number"),
        ("[1e999]", "1e999 is too large"),
        ("[" * 100_000, "nested too deeply"),
        ("[" * 101 + "]" * 101, "nested too deeply, more than 100 levels"),
        ('{"a":' * 900 + "0" + "}" * 900, "nested too deeply"),
        ("{", "Expecting property name"),
        ("9" * 5000, "Exceeds the limit"),
    ],
)
def test_json_that_says_two_things_or_none_is_refused(text, words):
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_plain_json_is_read():
    assert parse_json("[" * 100 + "]" * 100)
    assert parse_json('"' + "[" * 5000 + '"') == "[" * 5000
    assert len(parse_json("[" + "[]," * 5000 + "[]]")) == 5001
    assert parse_json('{"a": [1, 2.5, null, "é", true]}') == {"a": [1, 2.5, None, "é", True]}
