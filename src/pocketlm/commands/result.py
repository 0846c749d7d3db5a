"""What a finished text is told as: a JSON object, a line of statistics, a table of alternatives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pocketlm.export.quantities import duration_text, size_text
from pocketlm.streams import printable

if TYPE_CHECKING:
    from pocketlm.commands.writer import Writer
    from pocketlm.runtime.circumstances import Circumstances
    from pocketlm.runtime.prompt_cache import PromptCacheFile
    from pocketlm.runtime.text import Result, Timings


def as_json(made: Circumstances, result: Result, prompt: str) -> dict[str, Any]:
    """A text and how it came about."""
    return {**completion(result), "prompt": prompt, **_circumstances(made, result.timings)}


def completion(result: Result) -> dict[str, Any]:
    """What belongs to one of several texts."""
    found: dict[str, Any] = {
        "text": result.text,
        "token_ids": result.token_ids,
        "finish_reason": result.finish_reason,
    }
    if result.logprobs is not None:
        found["logprobs"] = result.logprobs
    if result.tops is not None:
        found["top_logprobs"] = [dict(top) for top in result.tops]
    return found


def _circumstances(made: Circumstances, timings: Timings) -> dict[str, Any]:
    return {
        "prompt_tokens": timings.prompt_tokens,
        "reused_tokens": timings.reused_tokens,
        "slides": timings.slides,
        "recomputed_tokens": timings.recomputed_tokens,
        "new_tokens": timings.new_tokens,
        "timings": {
            "load_seconds": made.load_seconds,
            "first_token_seconds": timings.first_token_seconds,
            "prefill_seconds": timings.prefill_seconds,
            "decode_seconds": timings.decode_seconds,
            "constraint_seconds": timings.constraint_seconds,
            "guessed_tokens": timings.guessed_tokens,
            "right_guesses": timings.right_guesses,
            "prefill_tokens_per_second": timings.prefill_rate,
            "decode_tokens_per_second": timings.decode_rate,
        },
        "peak_rss_bytes": made.peak_rss_bytes,
        "threads": made.threads,
        "provider": made.provider,
        "kv": made.kv,
        "prefill": made.prefill,
        "prefill_note": made.prefill_note,
        "fallback": made.fallback,
        "model": {
            "path": made.path,
            "architecture": made.architecture,
            "precision": made.precision,
        },
    }


def statistics(
    made: Circumstances, result: Result, prompt_cache: PromptCacheFile | None = None
) -> str:
    """A line of times, rates and memory, and of what ``prompt_cache`` was good for."""
    timings = result.timings
    return (
        f"load {duration_text(made.load_seconds)}, "
        f"first token {duration_text(timings.first_token_seconds)}, "
        f"prefill {_prefill_rate(timings)} ({timings.prompt_tokens} tokens{_kept(prompt_cache)}), "
        f"decode {timings.decode_rate:.0f} tokens/s ({timings.new_tokens} tokens), "
        f"{_constraint(timings)}{_guesses(timings)}"
        f"peak memory {size_text(made.peak_rss_bytes)}, {made.threads} threads "
        f"on {made.provider}, KV cache in {made.kv}, {_prefill(made)}"
        f"finished by {result.finish_reason}"
    )


def _prefill(made: Circumstances) -> str:
    return "" if made.prefill == "none" else f"prompts with {made.prefill} weights, "


def _prefill_rate(timings: Timings) -> str:
    if timings.reused_tokens == timings.prompt_tokens:
        return "none"
    return f"{timings.prefill_rate:.0f} tokens/s"


def _kept(cache: PromptCacheFile | None) -> str:
    if cache is None:
        return ""
    wrote = f", wrote {cache.path}" if cache.written else ""
    return f", {cache.reused} of them from {cache.path}{wrote}"


def _constraint(timings: Timings) -> str:
    if not timings.constraint_seconds:
        return ""
    return f"constraint {duration_text(timings.constraint_seconds / timings.new_tokens)} a token, "


def _guesses(timings: Timings) -> str:
    if not timings.guessed_tokens:
        return ""
    return f"{timings.right_guesses} of {timings.guessed_tokens} guesses right, "


def alternatives(writer: Writer, result: Result) -> list[str]:
    """A line for each token: its log-probability, its text, and what was likely in its place."""
    if result.logprobs is None:
        return []
    tops = result.tops or [()] * len(result.logprobs)
    rows = zip(result.token_ids, result.logprobs, tops, strict=True)
    return [
        "  ".join([f"{logprob:8.4f}", _shown(writer, token), *_others(writer, top)])
        for token, logprob, top in rows
    ]


def _others(writer: Writer, top: Sequence[tuple[int, float]]) -> list[str]:
    return [f"{_shown(writer, token)} {logprob:.4f}" for token, logprob in top]


def _shown(writer: Writer, token: int) -> str:
    """Quoted, on one line; what is no text by itself as its id."""
    text = writer.spelled(token)
    return repr(printable(text)) if text else f"<{token}>"
