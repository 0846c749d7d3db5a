"""The process in which forms of strangers are compiled first: one JSON object per line in and out.

What llguidance makes of a schema, a regular expression or a grammar is bounded in many ways, but
its compiler calls itself as deep as rules refer to one another, and some expressions take it
minutes. Whatever ends this process, or takes too long, is refused where it was asked for.

    ready    {} when everything is imported, or {"missing": name} without llguidance
    request  {"source": a grammar of llguidance's}
    reply    {}: it ends, well or with an error that it tells again

The stack is smaller here than that of any thread which compiles it again.
"""

from __future__ import annotations

import faulthandler
import json
import sys
import threading
from typing import Any

from .template_worker import limit_memory

STACK_BYTES = 1024 * 1024
NUM_STEPS = 8  # of a text: what is done at the first ones is done at all


def serve(seconds: float, num_bytes: int) -> None:
    """Answers requests from stdin on stdout until stdin ends; one takes ``seconds`` at most."""
    requests, replies = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # what prints by mistake must not be taken for a reply

    def reply(value: dict[str, Any]) -> None:
        replies.write(json.dumps(value).encode() + b"\n")
        replies.flush()

    try:
        import llguidance
    except ModuleNotFoundError as error:
        return reply({"missing": error.name})
    limit_memory(num_bytes)
    threading.stack_size(STACK_BYTES)
    tokenizer = llguidance.LLTokenizer("byte")
    limits = llguidance.LLParserLimits(verbose_errors=False)

    def attempt(source: str) -> None:
        matcher = llguidance.LLMatcher(tokenizer, source, log_level=0, limits=limits)
        for _ in range(NUM_STEPS):
            if matcher.is_error() or matcher.is_stopped():
                break
            bits = matcher.compute_bitmask()
            allowed = [token for token in range(256) if bits[token // 8] >> token % 8 & 1]
            if not allowed:
                break
            matcher.try_consume_tokens(allowed[len(allowed) // 2 :][:1])

    reply({})
    for line in requests:
        faulthandler.dump_traceback_later(seconds, exit=True)  # needs no turn of the interpreter
        work = threading.Thread(target=attempt, args=(json.loads(line)["source"],))
        work.start()
        work.join()
        faulthandler.cancel_dump_traceback_later()
        reply({})
