import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cmrfed.core.errors import DataError
from cmrfed.data.sources.table import PatientTable, cell
from cmrfed.data.sources.walk import walk

KEY = "External code"
COLUMNS = ("ED", "ES", "Pathology", "Vendor")
HEADER = ["", KEY, "Vendor", "ED", "ES", "Pathology"]
ROWS = [["0", "A0S9V9", "Siemens", "0", "5", "HCM"], ["1", "B1", "Philips", "2", "7", "Other; rare"]]


def table(tmp_path, data, name="info.csv", **more):
    (tmp_path / "scans").mkdir(exist_ok=True)
    (tmp_path / "scans" / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    return PatientTable(walk(tmp_path / "scans"), KEY, COLUMNS, **more)


def values(found, name):
    return [cell(found.row(name), column) for column in COLUMNS]


def written(rows, separator=",", end="\n", quoting=csv.QUOTE_MINIMAL):
    out = io.StringIO()
    csv.writer(out, delimiter=separator, lineterminator=end, quoting=quoting).writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_what_spreadsheets_write(tmp_path, separator, end, quoting, encoding):
    found = table(tmp_path, written([HEADER, *ROWS], separator, end, quoting).encode(encoding))
    assert values(found, "A0S9V9") == ["0", "5", "HCM", "Siemens"]
    assert values(found, "B1") == ["2", "7", "Other; rare", "Philips"]
    assert found.names == ["A0S9V9", "B1"]


NAMES = st.text(st.characters(codec="utf-8", categories=("Lu", "Ll", "Nd")), min_size=1, max_size=8)
VALUES = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Zl", "Zp", "Zs")), min_size=1, max_size=9
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.dictionaries(NAMES.map(lambda name: f"p{name}".casefold()), VALUES, min_size=1, max_size=5),
    separator=st.sampled_from(",;\t|"),
    blank=st.integers(0, 3),
)
def test_any_table_is_read_back(tmp_path, rows, separator, blank):
    lines = [["Vendor ", KEY.upper(), *[""] * blank], *([v, k, *[""] * blank] for k, v in rows.items())]
    lines += [[""] * (2 + blank)] * blank
    found = table(tmp_path, written(lines, separator, "\r\n", csv.QUOTE_ALL).encode("utf-8-sig"))
    for name, value in rows.items():
        assert cell(found.row(name), "vendor") == value


@pytest.mark.parametrize(
    "key", ["external code", "EXTERNAL_CODE", " External  code ", "External-Code", '"External code"']
)
def test_names_of_columns_in_any_spelling(tmp_path, key):
    found = table(tmp_path, f"sep=;\n{key};vendor;E.D.;es \nB1;GE;1;2\n")
    assert values(found, "b1") == ["1", "2", None, "GE"]


def test_lines_above_the_names_and_blank_rows(tmp_path):
    blank = ",,,,,\n" * 20_000
    found = table(tmp_path, f"M&Ms data set\n\n{blank}{written([HEADER, *ROWS])}{blank}")
    assert found.names == ["A0S9V9", "B1"]


def test_a_quote_that_is_not_closed_costs_one_row(tmp_path):
    rows = "\n".join(f"P{i},GE,1,2" for i in range(20))
    found = table(tmp_path, f'External code,Vendor,ED,ES\nA,"GE,1,2\n{rows}\nZ,"two\nlines",3,4\n')
    assert [name for name in found.names if name.startswith("P")] == sorted(f"P{i}" for i in range(20))
    assert values(found, "Z") == ["3", "4", None, "two\nlines"]


def test_numbers_that_lost_their_zeros(tmp_path):
    found = table(tmp_path, "External code;ED;ES\n1;0;5\n42.0;0;5\n", digits=3)
    assert found.names == ["001", "042"]
    assert cell(found.row("001"), "ES") == cell(found.row("042"), "ES") == "5"
    assert found.others(["001"]) == ["042"]


def test_rows_that_contradict_each_other(tmp_path):
    text = "External code,ED,ES,Age\nA,0,5,40\nA,0,6,40\nB,0,5,40\nB,0,5,41\nC,1,2,\n"
    found = table(tmp_path, text)
    with pytest.raises(DataError, match=r"contradicts itself about A.*es: 5 and 6"):
        found.row("A")
    assert values(found, "B")[:2] == ["0", "5"]
    assert cell(found.row("C"), "Age") is None


def test_several_tables_are_read_together(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "a_results.csv").write_text("External code,Dice\nA,0.9\n")
    (tmp_path / "scans" / "other.csv").write_text("x,y\n1,2\n")
    (tmp_path / "scans" / "~$info.csv").write_bytes(b"lock of a spreadsheet")
    found = table(tmp_path, "External code,ED,ES\nA,0,5\n")
    assert values(found, "A")[:2] == ["0", "5"]


def test_a_table_above_a_folder_that_is_named_from_where_one_stands(tmp_path, monkeypatch):
    (tmp_path / "a" / "scans").mkdir(parents=True)
    (tmp_path / "info.txt").write_bytes("External code\tED\tES\r\nA\t0\t5\r\n".encode("utf-16"))
    monkeypatch.chdir(tmp_path / "a")
    assert PatientTable(walk(Path("scans")), KEY, COLUMNS).names == ["A"]


def test_a_table_above_the_folder(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "info.csv").write_text("External code,ED,ES\nA,0,5\n")
    assert PatientTable(walk(tmp_path / "scans"), KEY, COLUMNS).names == ["A"]


@pytest.mark.parametrize(
    ("name", "words"),
    [("info.xlsx", "no CSV, but info.xlsx.*save the spreadsheet as CSV"), ("other.csv", r"\['other.csv'\]")],
)
def test_no_table(tmp_path, name, words):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / name).write_text("x;y\n1;2\n")
    with pytest.raises(DataError, match=f"no table of patients.*{words}"):
        PatientTable(walk(tmp_path / "scans"), KEY, COLUMNS)


def test_a_table_behind_a_broken_link(tmp_path):
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans" / "info.csv").symlink_to("/nowhere/info.csv")
    with pytest.raises(DataError, match=r"info\.csv is a link whose target is missing"):
        PatientTable(walk(tmp_path / "scans"), KEY, COLUMNS)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.one_of(
        st.binary(max_size=300), st.text(max_size=200).map(lambda s: f"External code,ED\n{s}".encode(errors="replace"))
    )
)
def test_any_bytes_are_a_table_or_an_error_in_words(tmp_path, data):
    try:
        found = table(tmp_path, data)
    except DataError:
        return
    for name in found.names:
        try:
            found.row(name)
        except DataError as error:
            assert "contradicts itself" in str(error)  # noqa: PT017
