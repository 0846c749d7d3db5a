"""The recipes that come with pocketlm as a page shows them: prompts ready but for {text}."""

from __future__ import annotations

from typing import Any

from pocketlm.commands.recipes import find, read_recipe

TEXT = "{text}"  # fills its own place


def served_recipes() -> tuple[dict[str, Any], ...]:
    """Mappings of name, title, prompt with the place {text}, stop, and an example for the place."""
    assistant = read_recipe("assistant", ("text",))
    translation = read_recipe("translate", ("text",), ("from", "to"), ("translation",))
    sentiment = read_recipe("sentiment", ("text",))
    languages = {"from": "English", "to": "Korean"}
    return (
        {
            "name": "assistant",
            "title": "Answer a question",
            "prompt": assistant.fill({"text": TEXT}),
            "stop": list(assistant.stop),
            "example": "Why do leaves fall in autumn?",
        },
        {
            "name": "english-korean",
            "title": "Translate from English to Korean",
            "prompt": translation.fill({**languages, "text": TEXT}, _translations()),
            "stop": list(translation.stop),
            "example": "I like to read in the evening.",
        },
        {
            "name": "sentiment",
            "title": "Tell whether a review is good or bad",
            "prompt": sentiment.fill({"text": TEXT}),
            "stop": list(sentiment.stop),
            "example": "I would watch it again tomorrow.",
        },
    )


def _translations() -> list[dict[str, str]]:
    """From English to Korean, of examples that are written the other way around."""
    lines = find("ko-en.tsv", ".tsv").read_text("utf-8").splitlines()
    pairs = [line.split("\t") for line in lines if line.strip()]
    return [{"text": english, "translation": korean} for korean, english in pairs]
