"""Tab-separated fields: what is written is read back, and a bad line is named by its number."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketlm.commands.options import unescape
from pocketlm.commands.tsv import Input, escape
from pocketlm.export.errors import RequestError

# Among them what Python takes for the end of a line and the file does not.
texts = st.text(alphabet=st.sampled_from("aé글 \\nt\t\n\r\x0b\x0c\x85\u2028\ufeff"), max_size=8)
rows = st.lists(st.lists(texts, min_size=1, max_size=3).map(tuple), min_size=1, max_size=5)


@given(text=st.text(max_size=20))
def test_unescape_inverts_escape(text: str) -> None:
    assert unescape(escape(text)) == text
    assert not set(escape(text)) & {"\t", "\n", "\r"}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tsv") / "a.tsv"


@given(rows=rows, bom=st.booleans(), end=st.sampled_from(["\n", "\r\n"]), last=st.booleans())
def test_fields_come_back_as_they_were_written(
    path: Path, rows: list[tuple[str, ...]], bom: bool, end: str, last: bool
) -> None:
    rows = [("a",), *rows]
    lines = ["\t".join(map(escape, row)) for row in rows]
    text = end.join(lines) + end * (last or not lines[-1])
    path.write_bytes(("\ufeff" * bom + text).encode())
    found = Input(path, ("first",), ("second", "third")).rows
    assert [row.number for row in found] == list(range(1, len(rows) + 1))
    blank = [not line.strip() for line in lines]
    assert [row.fields for row in found] == [
        () if empty else row for row, empty in zip(rows, blank, strict=True)
    ]


@given(data=st.binary(max_size=40))
def test_whatever_a_file_holds_is_rows_or_an_error_of_ours(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    try:
        found = Input(path, ("first", "second"))
    except RequestError as error:
        assert str(error).startswith(str(path))
    else:
        assert all(len(row.fields) in (0, 2) for row in found.rows)
    left = data.removesuffix(b"\n").count(b"\n") + 1
    if data.decode("utf-8-sig", "replace").strip():
        assert len(Input(path, ("first", "second"), skip_bad=True).rows) == left


def test_without_columns_a_line_is_a_text_as_it_stands(path: Path) -> None:
    path.write_bytes(b"a\tb\\n\r\n  \n c ")
    assert [row.fields for row in Input(path).rows] == [("a\tb\\n",), (), (" c ",)]


BAD = [
    (b"a\tb\nc\n", "line 2: found 1 field, expected 2: text<TAB>label; correct the line"),
    (b"a\tb\nc\td\te\n", "line 2: found 3 fields, expected 2: text<TAB>label"),
    (b"a\tb\nc\t\xff\n", "line 2: found the byte 0xff at 2, expected UTF-8 text"),
    (b"\xff\xfea\x00\n", "line 1: found the byte 0xff at 0, expected UTF-8 text"),
]


@pytest.mark.parametrize(("data", "message"), BAD)
def test_a_bad_line_is_named_by_its_number(path: Path, data: bytes, message: str) -> None:
    path.write_bytes(data)
    with pytest.raises(RequestError, match=message) as caught:
        Input(path, ("text", "label"))
    assert "--skip-bad" not in str(caught.value)
    with pytest.raises(RequestError, match=f"{message}.*, or leave such lines out: --skip-bad$"):
        Input(path, ("text", "label"), skip_bad=False)


def test_bad_lines_are_left_out_and_counted(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_bytes(b"a\tb\nc\n\nd\te\tf\ng\th\n")
    found = Input(path, ("text", "label"), skip_bad=True)
    assert [row.fields for row in found.rows] == [("a", "b"), (), (), (), ("g", "h")]

    def refuse(row: object) -> None:
        raise RequestError("found what, expected that")

    found.check(refuse)
    assert not any(row.fields for row in found.rows)
    found.tell_bad()
    assert capsys.readouterr().err.startswith(
        f"pocketlm: left out 4 bad lines; the first: {path}, line 2: found 1 field, expected 2"
    )


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf", b" \n"])
def test_a_file_without_a_text_is_refused(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with pytest.raises(RequestError, match="found no text, expected a line or more"):
        Input(path, ("text",), skip_bad=True)
