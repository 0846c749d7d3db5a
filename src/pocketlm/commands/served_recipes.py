"""The recipes that come with pocketlm as a page shows them: prompts ready but for {text}."""

from __future__ import annotations

from typing import Any

from pocketlm.commands.recipes import find, read_recipe

TEXT = "{text}"  # fills its own place


def served_recipes() -> tuple[dict[str, Any], ...]:
    """Mappings of name, title, prompt with the place {text}, stop, and an example for the place."""
    return (_assistant(), _translation(), _sentiment())


def _assistant() -> dict[str, Any]:
    recipe = read_recipe("assistant", ("text",))
    return {
        "name": "assistant",
        "title": "Answer a question",
        "prompt": recipe.fill({"text": TEXT}),
        "stop": list(recipe.stop),
        "example": "Why do leaves fall in autumn?",
    }


def _translation() -> dict[str, Any]:
    recipe = read_recipe("translate", ("text",), ("from", "to"), ("translation",))
    lines = find("ko-en.tsv", ".tsv").read_text("utf-8").splitlines()
    pairs = [line.split("\t") for line in lines if line.strip()]
    examples = [{"text": english, "translation": korean} for korean, english in pairs]
    return {
        "name": "english-korean",
        "title": "Translate from English to Korean",
        "prompt": recipe.fill({"from": "English", "to": "Korean", "text": TEXT}, examples),
        "stop": list(recipe.stop),
        "example": "I like to read in the evening.",
    }


def _sentiment() -> dict[str, Any]:
    recipe = read_recipe("sentiment", ("text",))
    return {
        "name": "sentiment",
        "title": "Tell whether a review is good or bad",
        "prompt": recipe.fill({"text": TEXT}),
        "stop": list(recipe.stop),
        "example": "I would watch it again tomorrow.",
    }
