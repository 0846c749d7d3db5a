"""Windows of token ids to calibrate on: what the model itself says, or a text.

    rows = dream(ModelFolder.open("out-int8"), tokens=16384)       # (32, 512) int64
    rows = windows_of(["novel.txt"], tokenizer)                    # likewise

A dream is sampled at temperature 1, many rows at once. A row begins with the model's begin token,
half of the rows of an instruct model with a question in its chat template; after the end of a text
the row goes on with the begin token and the next one. A model without a begin token gets a common
word instead. The same folder, seed and number of threads give the same rows on the same machine.
Letters: B rows at once, C window, K key/value heads, E head size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..export.errors import RequestError
from ..export.folder import GROWING, DecoderShape, ModelFolder, cache_names
from ..export.memory import memory_errors
from ..runtime.chat import template_ids
from ..runtime.chat_template import ChatTemplate
from ..runtime.generation_config import GenerationConfig
from ..runtime.sampling import Sampler, SamplingOptions, make_sampler
from ..runtime.session import Session
from ..runtime.tokenizer import Tokenizer

TOKENS, WINDOW = 16384, 512
# Measured on a small model: calibrated on 2,048 tokens int4 loses a fifth more than on 16,384. With
# fewer, most directions of a wide input have not been seen at all.
LEAST_TOKENS = 2048
CACHE_BYTES = 5 << 28  # of the rows that are dreamt at once: 32 of GPT-2 124M's
CHARACTERS_PER_TOKEN = 16  # of a text that are read at most

Windows = NDArray[np.int64]  # (rows, window)
Progress = Callable[[int, int], None]  # tokens done, tokens in all

# What rows of a model begin with that has no begin token: those that are one token of its own.
WORDS = (
    "The",
    "In",
    "It",
    "A",
    "He",
    "She",
    "We",
    "I",
    "This",
    "When",
    "But",
    "And",
    "There",
    "As",
)

# What an instruct model is asked before it dreams.
QUESTIONS = (
    "Why is the sky blue?",
    "Write a short story about a lighthouse.",
    "How do I make tomato soup?",
    "Explain photosynthesis to a child.",
    "What is the capital of Norway?",
    "Write a Python function that reverses a list.",
    "Give me three tips for better sleep.",
    "What is 17 times 6? Show each step.",
    "Translate 'good morning' into French and Spanish.",
    "Who was Marie Curie?",
    "Summarize what a contract is in two sentences.",
    "Write a polite email that asks for a day off.",
    "What is the difference between weather and climate?",
    "List five animals that live in the desert.",
    "How does a bicycle stay upright?",
    "Write a poem about autumn rain.",
    "What should I pack for a week in the mountains?",
    "Explain recursion with an example.",
    "Is it better to rent or to buy a home?",
    "Describe the taste of an orange.",
    "How are rainbows formed?",
    "Write a JSON object that describes a book.",
    "What happened in the year 1969?",
    "Recommend a board game for four players.",
    "Correct this sentence: he go to school yesterday.",
    "What does a database index do?",
    "Tell me a joke about cats.",
    "How can I learn to play the guitar?",
    "Name the planets in order.",
    "Write a dialogue between a teacher and a student.",
    "What are the causes of inflation?",
    "Convert 20 degrees Celsius to Fahrenheit.",
)


def dream(
    folder: ModelFolder,
    tokens: int = TOKENS,
    window: int | None = None,
    seed: int = 0,
    openings: Sequence[Sequence[int]] = (),
    *,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Windows:
    """What the model of ``folder`` says by itself: (tokens / window, window), whole windows.

    The window is as ``window_for`` says unless given. ``openings`` are token ids with which every
    other row begins, as ``chat_openings`` gives them; a longer one is cut off. Raises RequestError
    for a window that the model cannot hold, ids it does not have, or a graph whose cache grows, and
    what opening and running the model raises.
    """
    if folder.graph().cache.layout == GROWING:
        raise RequestError(
            f"{folder.path}: found a traced graph, expected one that pocketlm declared; give a "
            "text to calibrate on instead"
        )
    window = window_for(folder.shape) if window is None else window
    if not 2 <= window <= min(tokens, folder.shape.context_length):
        raise RequestError(
            f"found windows of {window:,} in {tokens:,} tokens, expected 2 to "
            f"{min(tokens, folder.shape.context_length):,} (what there is to dream, and the "
            "context length)"
        )
    dreamer = Dreamer(folder, openings, seed)
    session = Session(folder, threads)
    count = tokens // window
    most = max(1, CACHE_BYTES // (window * folder.shape.kv_bytes_per_token))
    at_once = -(-count // -(-count // most))  # groups of about the same size
    rows = np.empty((count, window), np.int64)
    for start in range(0, count, at_once):
        some = rows[start : start + at_once]
        for done in dreamer.fill(session, some, start):
            if progress is not None:
                progress(start * window + done * len(some), rows.size)
    return rows


class Dreamer:
    """How rows of one model begin, go on and end."""

    def __init__(self, folder: ModelFolder, openings: Sequence[Sequence[int]], seed: int) -> None:
        tokenizer = Tokenizer.open(folder.path / "tokenizer.json")
        config_file = folder.path / "generation_config.json"
        config = GenerationConfig.read(config_file, folder.shape.vocab_size)
        self.begin = config.start_id
        self._ends = config.end_ids
        self._words = [] if self.begin is not None else common_words(tokenizer)
        # Ids without a token, of a padded vocabulary, are never drawn.
        self._known = min(tokenizer.vocab_size, folder.shape.vocab_size)
        self._openings = [list(opening) for opening in openings if len(opening)]
        size = folder.shape.vocab_size
        for number, opening in enumerate(self._openings):
            _check_ids(opening, size, f"openings[{number}]")
        _check_ids(
            self._words if self.begin is None else [self.begin], size, "generation_config.json"
        )
        self._seed = seed
        self._shape = folder.shape

    def fill(self, session: Session, rows: Windows, first: int) -> Iterator[int]:
        """Fills ``rows``, the first of which is number ``first`` of all; yields columns done."""
        batch, capacity = rows.shape
        what = f"dreaming {batch} rows of {capacity} tokens"
        with memory_errors(what, rows.size * self._shape.kv_bytes_per_token):
            steps = Steps(session, batch, capacity)
            samplers = [self.sampler(first + row) for row in range(batch)]
            given = [self.opening(first + row)[:capacity] for row in range(batch)]
            for row, ids in enumerate(given):
                rows[row, : len(ids)] = ids
            for column in range(1, capacity):
                logits = steps.run(rows[:, column - 1])
                for row, sampler in enumerate(samplers):
                    if column >= len(given[row]):
                        before = int(rows[row, column - 1])
                        rows[row, column] = self._next(before, logits[row], sampler)
                yield column
            yield capacity

    def opening(self, row: int) -> list[int]:
        """What row number ``row`` begins with."""
        if self._openings and row % 2:
            return self._openings[row // 2 % len(self._openings)]
        return [self._words[row % len(self._words)] if self.begin is None else self.begin]

    def _next(self, before: int, logits: NDArray[np.float32], sampler: Sampler) -> int:
        if self.begin is not None and before in self._ends and before != self.begin:
            return self.begin
        return sampler(logits[: self._known], ())

    def sampler(self, row: int) -> Sampler:
        """Of a row by itself: what it draws does not depend on how many are dreamt at once."""
        (state,) = np.random.SeedSequence((self._seed, row)).generate_state(1, np.uint64)
        return make_sampler(SamplingOptions(seed=int(state)))


class Steps:
    """One token of B rows at a time, all of the same length, in a cache of fixed capacity.

    The cache is bound as past and present, so that the kernel appends in place; the mask has the
    capacity's length and ends in zeros.
    """

    def __init__(self, session: Session, batch: int, capacity: int) -> None:
        shape = session.shape
        self._session = session.engine
        self._length = 0
        self._token = np.zeros((batch, 1), np.int64)
        self._position = np.zeros((batch, 1), np.int64)
        self._mask = np.zeros((batch, capacity), np.int64)
        self._logits = np.empty((batch, 1, shape.vocab_size), np.float32)
        self._binding = self._session.io_binding()
        given = {
            "input_ids": self._token,
            "position_ids": self._position,
            "attention_mask": self._mask,
        }
        for value in self._session.get_inputs():
            if value.name in given:
                self._bind(self._binding.bind_input, value.name, given[value.name])
        self._bind(self._binding.bind_output, "logits", self._logits)
        size = (batch, shape.kv_heads, capacity, shape.head_size)
        self._cache = []
        for past, present in cache_names(shape.num_layers):
            buffer = np.zeros(size, np.float32)
            self._cache.append(buffer)
            self._bind(self._binding.bind_input, past, buffer)
            self._bind(self._binding.bind_output, present, buffer)

    def run(self, tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        """Appends a token to each row, (B,): the logits after it, (B, V), until the next call."""
        assert self._length < self._mask.shape[1]  # or the kernel overwrites the last rows
        self._token[:, 0] = tokens
        self._position[:] = self._length
        self._mask[:, self._length] = 1
        self._session.run_with_iobinding(self._binding)
        self._length += 1
        logits: NDArray[np.float32] = self._logits[:, 0]
        return logits

    def _bind(self, bind: Callable[..., None], name: str, array: NDArray[Any]) -> None:
        bind(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def chat_openings(folder: ModelFolder) -> list[list[int]]:
    """``QUESTIONS`` as the chat template of ``folder`` asks them; none where it has no template.

    Raises ModelFolderError for a template that fails, MissingExtraError without what renders it.
    """
    template = ChatTemplate.open(folder)
    if template is None:
        return []
    tokenizer = Tokenizer.open(folder.path / "tokenizer.json")
    longest = CHARACTERS_PER_TOKEN * folder.shape.context_length
    return [
        template_ids(template, tokenizer, [{"role": "user", "content": question}], longest)
        for question in QUESTIONS
    ]


def common_words(tokenizer: Tokenizer) -> list[int]:
    """The ids of ``WORDS`` that are one token each; a tokenizer without any: of their letters."""
    encoded = [tokenizer.encode(word, add_special_tokens=False) for word in WORDS]
    whole = [ids[0] for ids in encoded if len(ids) == 1]
    return whole or [ids[0] for ids in encoded if ids] or [0]


def window_for(shape: DecoderShape) -> int:
    """Tokens of a window: 512, or the context of a model that has fewer."""
    return min(WINDOW, shape.context_length)


def _check_ids(ids: Sequence[int], size: int, what: str) -> None:
    """The kernel turns an id outside the vocabulary into zeros or worse."""
    wrong = [token for token in ids if not 0 <= token < size]
    if wrong:
        raise RequestError(
            f"{what} has the token id {wrong[0]}, expected 0 to {size - 1}; use ids of this "
            "model's tokenizer"
        )


# A text instead ----------------------------------------------------------------------------------


def windows_of(
    files: Sequence[str | Path],
    tokenizer: Tokenizer,
    window: int = WINDOW,
    tokens: int = TOKENS,
) -> Windows:
    """Whole windows of UTF-8 ``files``, (rows, window), at most ``tokens``: from each file in turn.

    Each begins with what the tokenizer puts before a text. Only as much of a file is read as can
    be used. Raises RequestError for a file that is no text, or for fewer tokens than calibration
    needs.
    """
    each = [_windows_of(Path(file), tokenizer, window, tokens) for file in files]
    count = max(1, tokens // window)
    rows = [
        windows[number]
        for number in range(max(map(len, each), default=0))
        for windows in each
        if number < len(windows)
    ][:count]
    least = min(tokens, LEAST_TOKENS)
    found = len(rows) * window
    if found < least:
        raise RequestError(
            f"{', '.join(str(file) for file in files) or 'no file'}: found {found:,} tokens in "
            f"whole windows of {window}, expected at least {least:,}: with fewer, most of what "
            "the model can compute was never seen; add text, or calibrate on what the model dreams"
        )
    return np.array(rows, np.int64)


def _windows_of(file: Path, tokenizer: Tokenizer, window: int, tokens: int) -> list[list[int]]:
    begin = tokenizer.encode("")[:1]
    try:
        with open(file, encoding="utf-8") as stream:
            text = stream.read(CHARACTERS_PER_TOKEN * tokens)
    except (OSError, ValueError) as error:
        raise RequestError(
            f"{file}: cannot be read ({error}), expected a text in UTF-8; convert it, or name "
            "another"
        ) from error
    ids = tokenizer.encode(text, add_special_tokens=False, max_characters=len(text))
    room = window - len(begin)
    return [[*begin, *ids[start : start + room]] for start in range(0, len(ids) - room + 1, room)]
