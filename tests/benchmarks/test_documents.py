"""Files to documents: what a separator or a line divides, whatever block it lies in; refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pocketlm.benchmarks.quality import documents
from pocketlm.benchmarks.quality.documents import Text, check_files, read_documents
from pocketlm.export.errors import RequestError


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("documents") / "text.txt"


def read(path: Path, separator: str | None = None) -> list[str]:
    return ["".join(blocks) for blocks in read_documents(path, separator)]


@pytest.mark.parametrize("separator", ["|", "||", "<|>", "\n\n", "é—é"])
def test_a_text_is_cut_as_str_split_cuts_it(file: Path, separator: str) -> None:
    parts = st.sampled_from([separator, separator[:1], separator[1:], "a", " b ", "\r\n", "é"])

    @given(st.lists(parts, min_size=1).map("".join).filter(bool), st.integers(1, 9))
    @example(f"{separator}\n{separator}", 1)
    def check(text: str, block_size: int) -> None:
        file.write_bytes(text.encode())
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(documents, "BLOCK_SIZE", block_size)
            found = read(file, separator)
        whole = [part.strip("\r\n") for part in text.split(separator)]
        assert found == [part for part in whole if part]
        if found and separator in text:
            (checked,) = check_files([file], separator)
            assert checked == Text(file, len(found), len("".join(found).encode()))

    check()


def test_without_a_separator_a_text_is_one_document_as_it_is(file: Path) -> None:
    file.write_bytes("\n one \n\n<|endoftext|>\n é".encode())
    assert read(file) == ["\n one \n\n<|endoftext|>\n é"]
    assert check_files([file]) == [Text(file, 1, 25)]


def test_json_lines_have_a_document_a_line(tmp_path: Path) -> None:
    path = tmp_path / "stories.JSONL"
    rows = [{"text": "One.\n"}, {"id": 7, "text": ""}, {"text": "漢字 <|endoftext|> two"}]
    path.write_text("\n\n".join(json.dumps(row) for row in rows) + "\n")
    assert read(path) == ["One.\n", "", "漢字 <|endoftext|> two"]
    assert check_files([path]) == [Text(path, 3, 29)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"content": "a"}', "line 1: found the fields content, expected text; correct the line"),
        ('{"text": "a"}\n{"story": "b"}', "line 2: found the fields story, expected text too"),
        ('{"text": "a"}\n["b"]', "line 2 holds a JSON array, expected a JSON object"),
        ('{"text": 3}', "line 1: found text '3', expected a text"),
        (
            r'{"text": "a\ud800"}',
            "line 1 has a string with half a surrogate pair, expected Unicode",
        ),
        ("\n \n", "found no document, expected at least one; give another text"),
    ],
)
def test_what_is_no_line_of_text_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "stories.jsonl"
    path.write_text(content)
    with pytest.raises(RequestError, match=f"stories.jsonl[,:] {message}"):
        check_files([path])


def test_a_separator_that_divides_nothing_is_refused(tmp_path: Path) -> None:
    text, other, lines = (tmp_path / name for name in ("text.txt", "other.txt", "lines.jsonl"))
    text.write_text("one<|end|>")
    other.write_text("two")
    lines.write_text('{"text": "three<|end|>"}')
    assert [found.documents for found in check_files([text, other, lines], "<|end|>")] == [1] * 3
    for separator, message in (("</s>", "'</s>', .* nowhere in .*text.txt"), ("", "empty, ")):
        with pytest.raises(RequestError, match=f"split is {message}"):
            check_files([text, other], separator)
    with pytest.raises(RequestError, match="split is given with JSON lines alone, .* leave it out"):
        check_files([lines], "<|end|>")
    text.write_text("\n<|end|>\r\n")
    with pytest.raises(RequestError, match="text.txt: found no document"):
        check_files([text], "<|end|>")


def test_missing_json_lines_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="no.jsonl: cannot be read .No such file.*check path"):
        check_files([tmp_path / "no.jsonl"])
