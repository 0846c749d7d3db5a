"""Our reading of tokenizer files in many layouts against transformers' ``AutoTokenizer``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tokenizer_layouts import LAYOUTS, TEXT, Layout, write_layout

from pocketlm.export.tokenizers import open_tokenizer
from pocketlm.runtime.tokenizer import Tokenizer

pytestmark = pytest.mark.optimum


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_ids_are_those_of_transformers(layout: Layout, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    write_layout(tmp_path, layout)
    if "config.json" not in layout.files:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    source = open_tokenizer(tmp_path)
    files = source.folder_files(source.read())
    ours = tmp_path / "ours.json"
    ours.write_bytes(files["tokenizer.json"])
    tokenizer = Tokenizer.open(ours)
    expected = theirs.encode(TEXT, add_special_tokens=False)
    assert tokenizer.encode(TEXT, add_special_tokens=False) == expected
    for skip in (True, False):
        text = theirs.decode(expected, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert tokenizer.decode(expected, skip_special_tokens=skip) == text
    special = {i for i, token in theirs.added_tokens_decoder.items() if token.special}
    assert tokenizer.special_ids == special
