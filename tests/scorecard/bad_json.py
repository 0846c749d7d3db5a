"""Bodies that no server may take: broken as JSON, or asking for what cannot be."""

from __future__ import annotations

import codecs
import gzip
import json
from collections.abc import Mapping
from typing import Any

from tiny_server import MARKER

# A good body for each address that has one here.
GOOD: Mapping[str, Mapping[str, Any]] = {
    "/v1/completions": {"model": "tiny", "prompt": MARKER, "max_tokens": 1},
    "/v1/chat/completions": {
        "model": "tiny",
        "messages": [{"role": "user", "content": MARKER}],
        "max_tokens": 1,
    },
}


def broken() -> dict[str, bytes]:
    """Bodies that are no JSON object, or none that every parser understands alike."""
    text = json.dumps({"model": "tiny", "prompt": MARKER, "x": 1})
    good, end = text.encode(), text[:-1].encode()

    def x(value: str) -> bytes:
        return text.replace('"x": 1', f'"x": {value}').encode()

    return {
        "empty": b"",
        "blank": b" \r\n\t ",
        "null": b"null",
        "true": b"true",
        "number": b"17",
        "string": b'"hush"',
        "array": b"[]",
        "array-of-objects": b"[" + good + b"]",
        "open": end,
        "half": good[: len(good) // 2],
        "single-quotes": good.replace(b'"', b"'"),
        "trailing-comma": end + b",}",
        "two-commas": end + b",,}",
        "comment": end + b"/* x */}",
        "line-comment": b"// x\n" + good,
        "two-objects": good + good,
        "lines": good + b"\n" + good,
        "rest": good + b"x",
        "no-colon": b'{"prompt" "a"}',
        "key-of-number": b'{1: "a"}',
        "key-without-quotes": b'{prompt: "a"}',
        "nan": x("NaN"),
        "infinity": x("Infinity"),
        "minus-infinity": x("-Infinity"),
        "too-large": x("1e999"),
        "too-small": x("-1e999"),
        "5000-digits": x("9" * 5000),
        "401-digits": x("9" * 401),
        "5000-digit-fraction": x("1." + "9" * 5000 + "e9999"),
        "hex": x("0x10"),
        "leading-zero": x("01"),
        "plus": x("+1"),
        "point-first": x(".5"),
        "point-last": x("5."),
        "python-true": x("True"),
        "python-none": x("None"),
        "undefined": x("undefined"),
        "utf-16": text.encode("utf-16"),
        "utf-16-le": text.encode("utf-16-le"),
        "utf-16-be": text.encode("utf-16-be"),
        "utf-32": text.encode("utf-32"),
        "byte-order-mark": codecs.BOM_UTF8 + good,
        "byte-ff": x('"\udcff"'.encode("utf-8", "surrogateescape").decode("latin-1")).replace(
            b"\xc3\xbf", b"\xff"
        ),
        "overlong": good.replace(b"hush", b"\xc0\x80"),
        "cut-character": good.replace(b"hush", b"\xf0\x9f"),
        "encoded-surrogate": good.replace(b"hush", b"\xed\xa0\x80"),
        "beyond-unicode": good.replace(b"hush", b"\xf4\x90\x80\x80"),
        "high-surrogate": x(r'"\ud83d"'),
        "low-surrogate": x(r'"\ude00"'),
        "swapped-surrogates": x(r'"\ude00\ud83d"'),
        "surrogate-in-key": good.replace(b'"x"', rb'"\uD83D"'),
        "same-key-twice": end + b', "x": 2}',
        "same-key-twice-inside": x('{"a": 1, "a": 2}'),
        "deep-arrays": x("[" * 10_000 + "]" * 10_000),
        "deep-objects": x('{"a":' * 10_000 + "1" + "}" * 10_000),
        "deep-and-open": b"[" * 100_000,
        "101-levels": x("[" * 101 + "]" * 101),
        "many-values": x("[" + "1," * 1_200_000 + "1]"),
        "many-objects": x("[" + "{}," * 600_000 + "{}]"),
        "raw-line-feed": good.replace(b"hush", b"a\nb"),
        "raw-nul": good.replace(b"hush", b"a\0b"),
        "raw-escape": good.replace(b"hush", b"\x1b[31m"),
        "open-string": good[: good.index(b"hush") + 2],
        "bad-escape": x(r'"\x41"'),
        "short-escape": x(r'"\u12"'),
        "zeros": bytes(1000),
        "gzip": gzip.compress(good),
        "html": b"<html><body>hush</body></html>",
        "form": b"prompt=hush&max_tokens=5",
        "xml": b"<?xml version='1.0'?><prompt>hush</prompt>",
    }


def unknown() -> dict[str, bytes]:
    """Bodies with fields that no endpoint has."""
    return {
        "long-unknown-field": json.dumps({"a" * 500_000: 1}).encode(),
        "unknown-field": json.dumps({f"{MARKER}\r\n\x1b[31m": 1}).encode(),
        "many-unknown-fields": json.dumps({f"a{n}": n for n in range(20_000)}).encode(),
    }


def wrong() -> list[tuple[str, str, bytes]]:
    """(name, path, body) of objects that ask for what is not to be had."""
    fields = [
        ("/v1/completions", _COMMON | _COMPLETION),
        ("/v1/chat/completions", _COMMON | _CHAT),
    ]
    return [
        (f"{path.split('/')[2]}-{field}-{place}", path, json.dumps(body).encode())
        for path, table in fields
        for field, values in table.items()
        for place, value in enumerate(values)
        for body in [{**GOOD[path], field: value}]
    ] + [
        (f"{path.split('/')[2]}-both-{place}", path, json.dumps({**GOOD[path], **more}).encode())
        for path, _ in fields
        for place, more in enumerate(_TOGETHER)
    ]


_DEEP: Any = {}
for _ in range(90):
    _DEEP = {"type": "object", "properties": {"a": _DEEP}}

_WRONG_NUMBERS = ["1", True, [], {}]
_COMMON: dict[str, list[Any]] = {
    "model": ["nobody", "../../etc/passwd", "/etc", "tiny/", "\x1b[31m", 5, ["tiny"], {}],
    "max_tokens": [-1, 1.5, *_WRONG_NUMBERS],
    "temperature": [-1, -1e-9, *_WRONG_NUMBERS],
    "top_p": [-0.1, 1.1, 5, *_WRONG_NUMBERS],
    "frequency_penalty": [*_WRONG_NUMBERS],
    "presence_penalty": [*_WRONG_NUMBERS],
    "logit_bias": [[], "x", True, {"x": 1}, {"-1": 1}, {"999999": 1}, {"1": "a"}, {"1": True}],
    "seed": ["x", 1.5, True, []],
    "stop": [5, True, [5], [None], {}, [""], "", ["a"] * 1000, [["a"]]],
    "stream": ["x", 1, []],
    "stream_options": ["x", {"nonsense": 1}, {"include_usage": "x"}],
    "n": [0, -1, 1.5, 10**9, *_WRONG_NUMBERS],
    "user": [5, [], {}],
    "top_k": [-1, 1.5, *_WRONG_NUMBERS],
    "min_p": [-0.1, 1.1, *_WRONG_NUMBERS],
    "typical_p": [-0.1, 1.1, *_WRONG_NUMBERS],
    "repetition_penalty": [0, -1, *_WRONG_NUMBERS],
    "no_repeat_ngram_size": [-1, 1.5, *_WRONG_NUMBERS],
    "banned_tokens": [5, [-1], [300], ["a"], [True], [1.5]],
    "banned_strings": [5, "a", [5], [""]],
    "min_tokens": [-1, 1.5, "a", True],
    "max_seconds": [-1, *_WRONG_NUMBERS],
    "json_schema": [5, [], "not json", {"type": "nonsense"}, {"$ref": "http://localhost/x"}],
    "regex": [5, "(", "[", "(?=a)"],
    "choices": [[], [5], "a", [""], 5],
    "grammar": [5, "nonsense", ""],
    "context": ["nonsense", 5, True],
    "keep": [-1, 1.5, "a", True],
    "ignore_eos": ["a", 1],
    "chat_template": ["{{ 1 }}"],
    "trust_remote_code": [True],
    "cache": ["/tmp/x", "/etc/passwd"],
    "prompt_cache": ["/tmp/x"],
}
_COMPLETION: dict[str, list[Any]] = {
    "prompt": [5, True, {}, [1.5], [-1], [300], [True], [None], [{}], [1, "a"]],
    "prompt ": ["a"],
    "suffix": ["a", 5],
    "messages": [[{"role": "user", "content": "a"}]],
    "logprobs": [-1, 10_000, "a", True, 1.5],
    "best_of": [0, -1, 10**9, "a", True],
    "echo": ["a", 1],
}
_COMPLETION["prompt"] += ["a b " * 1000, "a" * 1_000_000, "한" * 300_000, [5] * 161, [5] * 100_000]
_MESSAGE = {"role": "user", "content": "a"}
_IMAGE = {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}}
_CHAT: dict[str, list[Any]] = {
    "messages": [
        *([], "a", 5, {}, [5], [[]], [None], [{}], ["a"]),
        [{"content": "a"}],
        [{"role": "user"}],
        [{"role": 5, "content": "a"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": {"text": "a"}}],
        [{"role": "user", "content": [_IMAGE]}],
        [{"role": "user", "content": [{"type": "input_audio"}]}],
        [{"role": "user", "content": [5]}],
        [{"role": "user", "content": "a" * 1_000_000}],
        [_MESSAGE] * 10_000,
    ],
    "prompt": ["a"],
    "logprobs": ["a", 5],
    "top_logprobs": [5, -1, "a", True],
    "response_format": ["a", 5, {}, {"type": "nonsense"}, {"type": "json_schema"}, {"type": 5}],
    "tools": ["a", 5, [5], [{}], [{"type": "nonsense"}]],
    "functions": [[{"name": "f"}]],
    "max_completion_tokens": [-1, 1.5, "a", True],
    "best_of": [2],
    "echo": [True],
}
_TOGETHER: list[dict[str, Any]] = [
    {"regex": "a", "choices": ["a"]},
    {"json_schema": {}, "grammar": 'root ::= "a"'},
    {"stream_options": {"include_usage": True}, "nonsense": MARKER},
    {"json_schema": _DEEP, "regex": "a"},
]
