"""An error that begins with names of arguments gets the options in their place.

"top_k is 0, expected …" is what a caller from Python can act on, and "found top_k "x", expected …"
what a client of a server can; here it is --top-k.
"""

from __future__ import annotations

import re

import click

from pocketlm.export.errors import SLIDE

# The names that a message begins with: "top_k is", "stop[0] has", "logit_bias of token 7 is", …
VALUE = r"[\"\[{\d-]|true|false|null"  # in JSON
SUBJECT = re.compile(
    r"(?P<before>found |token id -?\d+ is in )?"
    r"(?P<names>\w+(?: (?:and|with|without) \w+)*)(?:\[\d+\])?"
    rf"(?(before)(?=,| (?:{VALUE}))|(?= (?:is|are|has|was|holds|must|of token) |: ))"
)


def with_options(message: str, command: click.Command) -> str:
    """``message`` with the options that ``command`` has for the arguments that are named first.

    And for the context, if it may slide; a command that has no option for it does not tell of that.
    """
    options = {
        param.name: max(param.opts, key=len) for param in command.params if param.opts[0][0] == "-"
    }
    if message.endswith(SLIDE):
        message = message.removesuffix(SLIDE)
        message += ", or add --context slide" if "context" in options else ""
    subject = SUBJECT.match(message)
    if subject is None:
        return message
    words = subject["names"].split(" ")
    if not any(word in options for word in words):
        return message
    told = " ".join(options.get(word, word) for word in words)
    return (subject["before"] or "") + told + message[subject.end() :]
