"""Bodies about as large as any may be, each dear in another way, of what is taken or refused."""

from __future__ import annotations

import json
from typing import Any

COMPLETIONS, CHAT, RESPONSES = "/v1/completions", "/v1/chat/completions", "/v1/responses"
ASKED: dict[str, Any] = {"prompt": "a", "max_tokens": 1}
MESSAGE = {"role": "user", "content": "a"}
RESPONSE: dict[str, Any] = {"input": "a", "transcript": True, "max_output_tokens": 1}
NESTED = 40_000  # lists and objects
VALUES = 290_000  # and keys


def large_bodies() -> dict[str, tuple[str, bytes]]:
    """(path, body) of each by its name, less than 4 MB; for ``chatty``, a model of 300 tokens."""
    ids = [place % 250 for place in range(VALUES)]
    keyed = {f"k{place}": place for place in range(VALUES // 2)}
    integers = {f"p{place}": {"type": "integer"} for place in range(NESTED)}
    bias = {str(place): 0.5 for place in range(VALUES // 2)}
    function = {"name": "f", "parameters": {"type": "object", "$defs": integers}}
    bodies: dict[str, tuple[str, dict[str, Any]]] = {
        "bias": (COMPLETIONS, ASKED | {"logit_bias": bias}),
        "bias-of-next": ("/next", {"prompt": "a", "logit_bias": bias}),
        "wrong-bias": (COMPLETIONS, ASKED | {"logit_bias": bias | {"x": 1}}),
        "banned": (COMPLETIONS, ASKED | {"banned_tokens": ids}),
        "banned-of-next": ("/next", {"prompt": "a", "banned_tokens": ids}),
        "wrong-banned": (COMPLETIONS, ASKED | {"banned_tokens": [*ids, "x"]}),
        "schema": (COMPLETIONS, ASKED | {"json_schema": {"$defs": integers}}),
        "schema-text": (COMPLETIONS, ASKED | {"json_schema": json.dumps({"$defs": integers})}),
        "choices": (COMPLETIONS, ASKED | {"choices": [str(place) for place in range(VALUES)]}),
        "ids": (
            COMPLETIONS,
            ASKED | {"prompt": ids, "context": "slide", "details": True, "stream": True},
        ),
        "prompts": (COMPLETIONS, ASKED | {"prompt": [[5]] * NESTED}),
        "many-lists": (COMPLETIONS, ASKED | {"prompt": [[5]] * VALUES}),
        "unknown": (COMPLETIONS, ASKED | keyed),
        "messages": (CHAT, {"messages": [MESSAGE] * NESTED, "max_tokens": 1}),
        "wrong-message": (CHAT, {"messages": [MESSAGE] * NESTED + [5]}),
        "functions": (CHAT, {"messages": [MESSAGE], "tools": [{"type": "function"}] * NESTED}),
        "function": (
            CHAT,
            {"messages": [MESSAGE], "tools": [{"type": "function", "function": function}]},
        ),
        "metadata": (RESPONSES, RESPONSE | {"metadata": keyed, "stream": True}),
        "tokenize": ("/tokenize", {"prompt": "qz j" * 50_000, "texts": True}),
        "detokenize": ("/detokenize", {"tokens": ids}),
        "compare": ("/compare", {"models": ["chatty"], "token_ids": ids}),
    }
    bodies["surrogates"] = (COMPLETIONS, ASKED | {"metadata": keyed, "user": "\U0001f986"})
    return {name: (path, json.dumps(body).encode()) for name, (path, body) in bodies.items()}
