"""Our texts of chat templates against transformers' ``apply_chat_template``."""

from __future__ import annotations

from typing import Any

import pytest
from chat_templates import QUESTION, STYLES, TALK, Style
from tokenizers import Tokenizer, models

from pocketlm.runtime.chat_template import ChatTemplate

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
