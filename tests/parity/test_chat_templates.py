"""Our texts of chat templates against transformers' ``apply_chat_template``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from chat_templates import QUESTION, STYLES, TALK, Style
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pocketlm.runtime.chat import template_ids
from pocketlm.runtime.chat_template import ChatTemplate
from pocketlm.runtime.tokenizer import Tokenizer as OurTokenizer

pytestmark = pytest.mark.optimum


def theirs(style: Style, messages: list[dict[str, str]], add_generation_prompt: bool) -> Any:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab={}, merges=[])), **style.tokens
    )
    return tokenizer.apply_chat_template(
        messages,
        chat_template=style.source,
        tokenize=False,
        add_generation_prompt=add_generation_prompt,
    )


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("style", STYLES.values(), ids=STYLES)
def test_texts_are_those_of_transformers(style: Style, add_generation_prompt: bool) -> None:
    template = ChatTemplate(style.source, "chat_template.jinja", style.tokens)
    for messages in (QUESTION, TALK) if style.talk is not None else (QUESTION,):
        found = template.render(
            messages, max_characters=10_000, add_generation_prompt=add_generation_prompt
        )
        assert found == theirs(style, messages, add_generation_prompt)


@pytest.mark.parametrize("name", [name for name in STYLES if name != "json"])
@pytest.mark.parametrize("begun", ["Good day.", "Good day. ", " Good\nday"])
def test_going_on_with_an_answer_is_that_of_transformers(name: str, begun: str) -> None:
    style = STYLES[name]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    library = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(list(style.specials))
    transformers = pytest.importorskip("transformers")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=library, **style.tokens)
    messages = [*QUESTION, {"role": "assistant", "content": begun}]
    expected = theirs.apply_chat_template(
        messages, chat_template=style.source, tokenize=False, continue_final_message=True
    )
    template = ChatTemplate(style.source, "chat_template.jinja", style.tokens)
    tokenizer = OurTokenizer(library, Path("tokenizer.json"))
    ids = template_ids(template, tokenizer, messages, 10_000)
    assert tokenizer.decode(ids, skip_special_tokens=False) == expected
