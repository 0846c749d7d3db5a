"""``Model``: a model folder that is open; text goes in, text comes out.

What a text alone does not need (chat, scores, beams, batches, files of prompts) is imported by the
method that does: importing it all takes as long as opening a small model.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn
from weakref import WeakSet

from ..export.errors import RequestError
from ..export.folder import ModelFolder
from ..export.later import later
from ..export.memory import memory_errors
from ..export.whole_number import brief
from .cancellation import Cancellation
from .decode import choose_loop
from .generation_config import GenerationConfig
from .placement import open_session
from .prefix import Prefixes
from .prefix_cache import PrefixCache
from .request import ChatPrompt, Request
from .requests import CHARACTERS_PER_TOKEN, Requests, check_number_of_texts, check_truth
from .reuse import ReusableCache
from .row_rule import MOST_ROWS, RowRule
from .session import Session, closed_error
from .text import Piece, Result, TextStream
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from .beams import Beam
    from .chat_template import ChatTemplate
    from .labels import Classifier
    from .messages import Message
    from .prompt_cache import PromptCacheFile
    from .scheduler import Background, Job, Listener
    from .scoring import Score, TextLogprobs, TextScorer
    from .text_session import TextSession
else:  # for ``typing.get_type_hints``
    Background = later("pocketlm.runtime.scheduler.Background")
    Beam = later("pocketlm.runtime.beams.Beam")
    ChatTemplate = later("pocketlm.runtime.chat_template.ChatTemplate")
    Classifier = later("pocketlm.runtime.labels.Classifier")
    Job = later("pocketlm.runtime.scheduler.Job")
    Listener = later("pocketlm.runtime.scheduler.Listener")
    Message = later("pocketlm.runtime.messages.Message")
    Score = later("pocketlm.runtime.scoring.Score")
    TextLogprobs = later("pocketlm.runtime.scoring.TextLogprobs")
    TextScorer = later("pocketlm.runtime.scoring.TextScorer")
    TextSession = later("pocketlm.runtime.text_session.TextSession")

# What a model has no more when it is closed.
FREED = frozenset(
    {"prefix_cache", "tokenizer", "session", "chat_template"}
    | {"_row_rule", "_requests", "_background", "_answer_end_ids", "_first_id"}
)

# For a model that does not say: a little below its own distribution.
SAMPLING_DEFAULTS = {"temperature": 0.8, "top_p": 0.95}


class Model:
    """A model that is open: text goes in, text comes out. ``pocketlm.load`` makes one.

        model = pocketlm.load()
        for piece in model.stream("Once upon a time", max_tokens=20):
            print(piece.text, end="", flush=True)
        text = model.generate("Once upon a time", temperature=0, max_tokens=20).text

    ``stream`` and ``generate`` continue a text, ``chat`` answers messages; what they have in common
    is described at ``stream``. Threads may share a model: their steps take turns. Ctrl-C ends a
    generation of the main thread with KeyboardInterrupt; one in a daemon thread ends with the
    process.

    session             token ids to logits, the rung below: see ``session.step``
    tokenizer           ``encode`` and ``decode``
    folder              the model folder: its ``path``, ``manifest`` and ``shape``
    sampling_defaults   how tokens are chosen where a call does not say
    end_ids, start_id   the tokens with which a text ends, and begins if the prompt is empty
    prefix_cache        prompts that were computed lately, a ``PrefixCache``: what begins as one of
                        them is not computed again
    fallback            why it is on the CPU although ONNX Runtime is built for CUDA, else None
    load_seconds        what opening it took
    closed              whether ``close`` was called

    What it takes of memory is free when nobody has it any more, or when it is closed:

        with pocketlm.load() as model:
            model.generate("Once upon a time", max_tokens=20).text
    """

    def __init__(
        self,
        folder: ModelFolder,
        threads: int | None = None,
        provider: str = "auto",
        kv: str = "auto",
        prefix_cache_bytes: int | None = None,
        prefill: str = "auto",
    ) -> None:
        """Opens ``folder``; the options and errors are those of ``load``."""
        started = time.perf_counter()
        self.closed = False
        self.folder = folder = folder.anchored()
        with memory_errors(f"{folder.path}: opening it", folder.weights_bytes):
            folder.verify()
            self.tokenizer = Tokenizer.open(folder.path / "tokenizer.json")
            session, self.fallback = open_session(folder, threads, provider, kv, prefill)
            self.prefix_cache = PrefixCache(session.kv_bytes_per_token, prefix_cache_bytes)
            self.session = session  # the last to go, for it gives memory back
            config_file = folder.path / "generation_config.json"
            config = GenerationConfig.read(config_file, folder.shape.vocab_size)
        self.end_ids = config.end_ids
        self.start_id = config.start_id
        self.sampling_defaults = {**SAMPLING_DEFAULTS, **config.sampling}
        self._drafts: WeakSet[Model] = WeakSet()  # those that were found to have its tokens
        self._row_rule = RowRule(self.session)
        self.load_seconds = time.perf_counter() - started

    def close(self) -> None:
        """Frees what it takes of memory, at once; for it to be free it need not be called.

        What another thread has under way ends with ClosedError, as does whatever is asked of the
        model, its streams and sessions later. A job ends with that error soon after. What caches
        and sessions hold goes with them. To close it again does nothing.
        """
        self.closed = True
        if (prefixes := self.__dict__.get("prefix_cache")) is not None:
            prefixes.close()
        session = self.__dict__.get("session")
        for name in FREED:
            self.__dict__.pop(name, None)
        if session is not None:
            session.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"{self.folder.path}: a model cannot be copied or sent to another process; give that "
            "the path, and load the model there"
        )

    if not TYPE_CHECKING:  # for whom it would be any name

        def __getattr__(self, name: str) -> Any:
            if name in FREED and self.closed:
                raise closed_error(self.folder.path)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def stream(
        self,
        prompt: str | Sequence[int] | ChatPrompt = "",
        *,
        max_tokens: int = 256,
        max_seconds: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        typical_p: float | None = None,
        repetition_penalty: float | None = None,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        penalty_window: int | None = None,
        no_repeat_ngram_size: int | None = None,
        logit_bias: Mapping[int, float] | None = None,
        banned_tokens: Sequence[int] | None = None,
        banned_strings: Sequence[str] | None = None,
        min_tokens: int = 0,
        seed: int | None = None,
        json_schema: Mapping[str, Any] | str | None = None,
        regex: str | None = None,
        choices: Sequence[str] | None = None,
        grammar: str | None = None,
        stop: str | Sequence[str] | None = (),
        ignore_eos: bool = False,
        logprobs: bool | int | None = None,
        cancellation: Cancellation | None = None,
        context: str = "error",
        keep: int = 1,
        cache: ReusableCache | None = None,
        prompt_cache: str | os.PathLike[str] | None = None,
        reproducible: bool = False,
        lookup: bool = False,
        draft: Model | None = None,
    ) -> TextStream:
        """Generates text after ``prompt``, piece by piece, as it comes.

        prompt              a string, a sequence of token ids, or what ``chat_prompt`` returns; an
                            empty one starts from the token a text begins with
        max_tokens          most tokens to generate
        max_seconds         ends it at the next token once they are over; None: no limit
        temperature         0 takes the likeliest token (greedy); above it, the larger the wilder
        top_k               sample from the ``top_k`` likeliest tokens only; 0: from all
        top_p               from the likeliest that together reach this probability, up to 1
        min_p               from those with at least this share, 0 to 1, of the likeliest's
        typical_p           from those whose surprise is nearest to the expected one, that together
                            reach this probability, up to 1
        repetition_penalty  above 1 makes tokens that already appeared less likely
        frequency_penalty   taken from a token's logit for every time it was generated
        presence_penalty    taken once if it was generated; both -100 to 100, as OpenAI's
        penalty_window      the last so many tokens are all that these three penalties look at
        no_repeat_ngram_size  so many tokens in a row appear once only; 0: as often as they come
        logit_bias          {token id: number}, added to its logit; -100 all but bans it
        banned_tokens       token ids that are never chosen
        banned_strings      strings that the output does not contain: no token is chosen that would
                            complete one
        min_tokens          no token that ends a text before so many were generated
        seed                an integer: the same one and the same settings give the same tokens on
                            one machine; None takes fresh randomness
        json_schema         a mapping, or its text: the output is JSON that satisfies this schema,
                            written as Python's ``json.dumps`` does
        regex               the output is matched by this regular expression as a whole
        choices             the output is one of these strings
        grammar             the output has the form that this Lark grammar says
        stop                a string, or several, before whose first appearance the text ends
        ignore_eos          go on after a token that ends a text
        logprobs            True: each step has the natural log of its token's probability, by the
                            model alone, before any option; a number, up to 100: in ``top`` those of
                            so many of the likeliest tokens in its place, too
        cancellation        a ``Cancellation``, to end it from another thread; ``cancel()`` of the
                            stream does the same
        context             when the text outgrows the context: "error" refuses a longer prompt, and
                            the text ends when the context is full; "stop" ends with a longer prompt
                            at once, too; "slide" goes on with the first ``keep`` tokens and the
                            newest half of what else fits, computed again: see ``Timings.slides``
        keep                of "slide", 1: the token that a text begins with
        cache               from ``new_cache``: what it holds of the prompt is not computed again
        prompt_cache        a file that keeps what was computed of a prompt: what this one has in
                            common with it is not computed again, and the file is written if it
                            holds less of it
        reproducible        True: the tokens are, bit by bit, those of ``generate_many`` in whatever
                            company; each takes up to a fifth longer where kernels take rows in
                            pairs, which is found at the first use, and twice as long as in int4
                            where a second set of weights in W8A8 computes it (``prefill``)
        lookup              True: guess that the text goes on as it did when it last said the same
                            words, and compute the guesses at once; as fast again where it copies,
                            and given up where it does not
        draft               a smaller ``Model`` of the same tokens, whose guesses are computed so

        How tokens are chosen is the model's own default where it is None: ``sampling_defaults``.
        Nothing runs before the first piece is asked for. Of the four forms of output one may be
        given; they need the extra "grammar". A text ends where its form is complete: with an end
        token where it could go on, else at once; one that ``max_tokens`` or a stop string cuts is
        a beginning only.

        Raises RequestError, before anything runs, for an argument out of range, a prompt longer
        than the context, or a form that is wrong or that no text satisfies; at the first piece, for
        a ``prompt_cache`` that is damaged or was computed with something else; MissingExtraError
        for a form without the extra; ResourceError when memory runs out, and NumericsError for a
        model whose numbers are not finite.
        """
        check_truth("lookup", lookup)
        check_truth("reproducible", reproducible)
        request = self.request(
            prompt,
            max_tokens=max_tokens,
            max_seconds=max_seconds,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            typical_p=typical_p,
            repetition_penalty=repetition_penalty,
            frequency_penalty=frequency_penalty,
            presence_penalty=presence_penalty,
            penalty_window=penalty_window,
            no_repeat_ngram_size=no_repeat_ngram_size,
            logit_bias=logit_bias,
            banned_tokens=banned_tokens,
            banned_strings=banned_strings,
            min_tokens=min_tokens,
            seed=seed,
            json_schema=json_schema,
            regex=regex,
            choices=choices,
            grammar=grammar,
            stop=stop,
            ignore_eos=ignore_eos,
            logprobs=logprobs,
            context=context,
            keep=keep,
        )
        prefixes: Prefixes | None = self.prefix_cache if cache is None else None
        kept = None
        if prompt_cache is not None:
            _check_one_cache(cache)
            prefixes = kept = self._prompt_cache_file(prompt_cache)
        return TextStream(
            self.session,
            self.tokenizer,
            request,
            cancellation,
            cache,
            choose_loop(
                request,
                self._row_rule,
                lookup=lookup,
                draft=self._drafting(draft),
                reproducible=reproducible,
            ),
            prefixes,
            reproducible,
            kept,
        )

    def _prompt_cache_file(self, path: str | os.PathLike[str]) -> PromptCacheFile:
        from .prompt_cache import Owner, PromptCacheFile

        return PromptCacheFile(path, Owner.of(self.folder, self.session))

    def request(self, prompt: str | Sequence[int] | ChatPrompt = "", **options: Any) -> Request:
        """A request of the options of ``stream``, to be run by ``generate_many``.

        That are all but those of a text that runs alone: ``cancellation``, ``cache``,
        ``prompt_cache``, ``reproducible``, ``lookup`` and ``draft``.

        Raises RequestError for an argument out of range, a prompt longer than the context, or a
        form that is wrong; MissingExtraError for a form without the extra "grammar".
        """
        config = GenerationConfig(self.end_ids, self.start_id, self.sampling_defaults)
        return self._requests.make(config, prompt, **options)

    def try_forms_apart(self) -> None:
        """Has forms of output compiled in a process of their own before they are compiled here.

        For who serves strangers: a grammar may crash llguidance's compiler, or keep it for minutes.
        One that does, or takes longer than 2 s, is a RequestError then.
        """
        self._requests.try_forms_apart()

    @property
    def row_group(self) -> int | None:
        """In multiples of how many rows texts are computed together, so that none shows in another.

        None: each by itself. It is found by trying when it is first asked for.
        """
        return self._row_rule.reproducible().group

    @cached_property
    def _requests(self) -> Requests:
        return Requests(self.session, self.tokenizer)

    def generate_many(
        self,
        requests: Iterable[Any],
        *,
        rows: int = MOST_ROWS,
        kv_bytes: int | None = None,
        reproducible: bool = True,
        **options: Any,
    ) -> Iterator[Result]:
        """Runs many requests at once; their results as they finish, each with its ``index``.

            prompts = ["Once upon a time", "It was", "She said"]
            for result in model.generate_many(prompts, max_tokens=20, seed=1):
                print(result.index, result.text)

        requests            prompts as ``stream`` takes them, mappings of a "prompt" and options of
                            its own, or what ``request`` returns; taken only as fast as they run
        rows                most requests under way at once, up to 32
        kv_bytes            most that their keys and values may come to take: who finds no room
                            waits; None: half of the memory that is free; beside it there is what
                            ``prefix_cache`` may take
        reproducible        True: each gets the tokens that it gets alone with ``reproducible``,
                            whatever its company; False: faster by up to a row a step
        options             those of ``request``, for all that have none of their own

        Requests join and leave between steps, first come first served; a long prompt delays the
        others by a chunk at most, and one that begins as another is not computed twice. One that
        fails ends with the finish reason "error" and changes nobody else's tokens. Raises
        RequestError for a request that is none, with its index, ResourceError where there is no
        memory for a step.
        """
        from .scheduler import Scheduler, half_of_free

        if isinstance(requests, str | Mapping) or not isinstance(requests, Iterable):
            raise RequestError(
                f"requests is {brief(requests)} of type {type(requests).__name__}, expected "
                "several; put them in a list"
            )
        check_truth("reproducible", reproducible)
        self.session.check_usable()
        steps = self._row_rule.reproducible() if reproducible else self._row_rule.fastest()
        room = half_of_free(kv_bytes)
        scheduler = Scheduler(self.session, steps, rows, room, self.prefix_cache)
        yield from scheduler.run(
            self._job(asked, options, index) for index, asked in enumerate(requests)
        )

    def submit(self, prompt: Any = "", **options: Any) -> Job:
        """Runs a request in the background, together with others that were submitted; a ``Job``.

        Takes a prompt and the options of ``request``. Its tokens are those that ``stream`` gives
        with ``reproducible``. Raises RequestError for an argument
        out of range.
        """
        job = self.new_job(prompt, **options)
        self._run_in_background(job)
        return job

    async def astream(self, prompt: Any = "", **options: Any) -> AsyncIterator[Piece]:
        """``submit`` for asyncio: the pieces as they come, while the event loop goes on.

        Ended before its end, as by ``break``, it cancels the request. Raises what ``stream`` does.
        """
        import asyncio

        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[Piece | None] = asyncio.Queue()

        def listener(piece: Piece | None) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(arrived.put_nowait, piece)

        job = self.new_job(prompt, listener=listener, **options)
        self._run_in_background(job)
        try:
            while (piece := await arrived.get()) is not None:
                yield piece
        finally:
            job.cancel()
        if job.error is not None:
            raise job.error

    def completions(
        self,
        prompt: Any = "",
        n: int = 2,
        *,
        rows: int = MOST_ROWS,
        kv_bytes: int | None = None,
        reproducible: bool = True,
        **options: Any,
    ) -> list[Result]:
        """``n`` texts after one prompt, which is computed once; the seeds count from ``seed`` up.

            first, second = model.completions("Once upon a time", 2, max_tokens=20, seed=1)

        Takes the options of ``generate_many``, and raises the same errors.
        """
        number = check_number_of_texts(n)
        request = self.request(prompt, **options)
        asked = [request.seeded(place) for place in range(number)]
        results = self.generate_many(asked, rows=rows, kv_bytes=kv_bytes, reproducible=reproducible)
        found = sorted(results, key=lambda result: result.index)
        if error := next((result.error for result in found if result.error), None):
            raise error
        return found

    def beams(
        self,
        prompt: Any = "",
        beams: int = 4,
        *,
        length_penalty: float = 1.0,
        max_tokens: int = 256,
        ignore_eos: bool = False,
        cancellation: Cancellation | None = None,
    ) -> list[Beam]:
        """The ``beams`` likeliest texts that are found after a prompt, the best first.

            best = model.beams("Once upon a time", 4, max_tokens=20)[0]
            best.text, best.score, best.finish_reason

        Texts are compared by the log of their probability over their length to the power of
        ``length_penalty``: above 1 favours long ones, 0 the likeliest. Raises RequestError for an
        argument out of range, and what ``stream`` raises.
        """
        from .beams import beam_search, check_beams, with_text

        width = check_beams(beams, length_penalty)
        request = self.request(prompt, max_tokens=max_tokens, ignore_eos=ignore_eos)
        found = beam_search(self.session, request, width, length_penalty, cancellation)
        return [with_text(beam, request, self.tokenizer) for beam in found]

    def _drafting(self, draft: Model | None) -> Session | None:
        """What ``draft`` guesses with; RequestError for one of other tokens."""
        if draft is None:
            return None
        if not isinstance(draft, Model):
            raise RequestError(
                f"draft is {brief(draft)}, expected a Model; open one with pocketlm.load"
            )
        if draft in self._drafts:
            return draft.session
        count = min(draft.session.shape.vocab_size, self.session.shape.vocab_size)
        if draft.tokenizer.all_bytes(count) != self.tokenizer.all_bytes(count):
            raise RequestError(
                f"draft is {draft.folder.path}: found other tokens than those of "
                f"{self.folder.path}, expected the same; use a model with its tokenizer"
            )
        self._drafts.add(draft)
        return draft.session

    def _run_in_background(self, job: Job) -> None:
        self.session.check_usable()
        self._background.run(job)

    @cached_property
    def _background(self) -> Background:
        return self.new_background()

    def new_background(
        self,
        *,
        rows: int = MOST_ROWS,
        kv_bytes: int | None = None,
        reproducible: bool = True,
        after_step: Callable[[], None] = lambda: None,
    ) -> Background:
        """What runs jobs together in a thread: that of ``submit``, with limits of one's own.

            background = model.new_background(rows=8, kv_bytes=2_000_000_000)
            job = model.new_job("Once upon a time", max_tokens=20)
            background.run(job)
            job.result().text

        The options are those of ``generate_many``, which says what they mean and raises.
        ``after_step`` is called by the thread, when the listeners of jobs have been told what a
        step came to.
        """
        from .scheduler import Background, Scheduler, check_limits, half_of_free

        check_limits(rows, kv_bytes)
        check_truth("reproducible", reproducible)
        # Without a reference to the model: it is to be freed as soon as nobody has it any more.
        session, rule, prefixes = self.session, self._row_rule, self.prefix_cache
        return Background(
            lambda: Scheduler(
                session,
                rule.reproducible() if reproducible else rule.fastest(),
                rows,
                half_of_free(kv_bytes),
                prefixes,
            ),
            after_step,
        )

    def new_job(self, prompt: Any = "", *, listener: Listener | None = None, **options: Any) -> Job:
        """A request that is not yet run, for a ``new_background``; what ``submit`` takes.

        ``listener`` is told every piece, and None at the end, by the thread that computes.
        """
        return self._new_job(self._as_request(prompt, options), listener=listener)

    def _new_job(self, request: Request, index: int = 0, listener: Listener | None = None) -> Job:
        from .scheduler import Job

        return Job(request, self.tokenizer, index, listener)

    def _as_request(self, asked: Any, options: Mapping[str, Any]) -> Request:
        if isinstance(asked, Request):
            self._requests.check(asked)  # it may be for another model
            return asked
        if isinstance(asked, Mapping):
            return self.request(**{"prompt": "", **options, **asked})
        return self.request(asked, **options)

    def _job(self, asked: Any, options: Mapping[str, Any], index: int) -> Job:
        try:
            return self._new_job(self._as_request(asked, options), index)
        except RequestError as error:
            raise RequestError(f"requests[{index}]: {error}") from error

    def chat(
        self,
        messages: Sequence[Message],
        *,
        transcript: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_args: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> TextStream:
        """Answers ``messages``, piece by piece; takes the options of ``stream``.

        A message is {"role": "system", "user" or "assistant", "content": text}; roles and their
        order are up to the model's chat template. Where the last one is the assistant's, the
        answer goes on with it. ``tools`` are the functions that the model may call, as JSON;
        ``template_args`` are further variables of its template, such as {"enable_thinking":
        False}. A base model has none: ``transcript=True`` gives
        it the conversation as a script to go on with. Nothing is remembered: give the whole
        conversation each time, and a ``cache``, if it goes on, so that only what is new is
        computed.

            cache = model.new_cache()
            messages = [{"role": "user", "content": "Why is the sky blue?"}]
            stream = model.chat(messages, transcript=True, cache=cache, max_tokens=20)
            answer = "".join(piece.text for piece in stream)
            messages += [{"role": "assistant", "content": answer}]

        For the whole answer at once: ``generate(chat_prompt(messages))``. Raises what
        ``chat_prompt`` and ``stream`` raise.
        """
        prompt = self.chat_prompt(
            messages, transcript=transcript, tools=tools, template_args=template_args
        )
        return self.stream(prompt, **options)

    def chat_prompt(
        self,
        messages: Sequence[Message],
        *,
        transcript: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        template_args: Mapping[str, Any] | None = None,
    ) -> ChatPrompt:
        """``messages`` as the model was trained to read them: token ids, and what ends an answer.

        A message that spells a token of the template's own is read as that text. A model without a
        chat template is a base model: with ``transcript`` it gets the conversation as a script to
        go on with.

        Raises RequestError for a model without a template, and for messages that are none, do not
        fit or are refused by the template; ModelFolderError for a template that fails or takes too
        much time or memory; MissingExtraError without the extra "chat".
        """
        from .chat import TRANSCRIPT_STOPS, refuse_template_options, template_ids, transcript_ids

        longest = CHARACTERS_PER_TOKEN * self.session.shape.context_length
        if transcript:
            refuse_template_options(tools, template_args)
            ids = transcript_ids(self.tokenizer, messages, longest)
            return ChatPrompt(ids, stop=TRANSCRIPT_STOPS)
        if self.chat_template is None:
            raise RequestError(
                f"{self.folder.path}: found no chat template (chat_template.jinja, or in "
                "tokenizer_config.json), expected one to chat by: this is a base model, which "
                "continues a text; leave --chat out, or talk to it with: pocketlm chat (in Python: "
                "transcript=True)"
            )
        ids = template_ids(
            self.chat_template, self.tokenizer, messages, longest, tools, template_args
        )
        return ChatPrompt(ids, end_ids=self._answer_end_ids)

    @cached_property
    def chat_template(self) -> ChatTemplate | None:
        """The template of the model folder; None for a base model. Raises ModelFolderError."""
        from .chat_template import ChatTemplate

        if self.closed:
            raise closed_error(self.folder.path)
        return ChatTemplate.open(self.folder)

    @cached_property
    def _answer_end_ids(self) -> frozenset[int]:
        from .chat import answer_end_ids

        template = self.chat_template
        return frozenset() if template is None else answer_end_ids(template, self.tokenizer)

    def new_cache(self) -> ReusableCache:
        """An empty cache for one conversation, to be given to one call after another.

        A call computes its prompt from where that differs from what the cache holds. One call at a
        time may use it: RequestError otherwise.
        """
        return ReusableCache(self.session)

    def new_session(self, file: str | os.PathLike[str] | None = None) -> TextSession:
        """A text that is held: append to it, let the model go on with it, take back, fork.

            text = model.new_session()
            text.append("Once upon a time")
            result = text.generate(max_tokens=20, seed=1)
            other = text.fork()
            other.rewind(10)
            other.generate(max_tokens=20, seed=2)

        ``file`` is one that ``TextSession.save`` wrote. Raises RequestError for one that is damaged
        or was computed with something else.
        """
        from .text_session import TextSession

        return TextSession(self, file)

    def generate(self, prompt: str | Sequence[int] | ChatPrompt = "", **options: Any) -> Result:
        """The whole text at once.

            result = model.generate("Once upon a time", max_tokens=20, seed=1, logprobs=True)
            result.text, result.finish_reason, result.timings.decode_rate, result.logprobs

        Takes the options of ``stream``, and raises the same errors.
        """
        stream = self.stream(prompt, **options)
        return stream.result_of(stream)

    def score(self, context: str, continuations: Sequence[str]) -> tuple[Score, ...]:
        """How likely each of several texts is after ``context``: a ``Score`` of each.

            scores = model.score("The capital of France is", [" Paris", " Rome"])
            scores[0].loglikelihood, scores[0].mean, scores[0].is_greedy, scores[0].logprobs

        Nothing is put between the two: a word begins with its space. The context is computed once;
        an empty one is the token a text begins with. Raises RequestError, before anything runs, for
        a pair longer than the context length and for a text that adds no token; NumericsError for a
        model whose numbers are not finite.
        """
        return self.new_scorer().score(context, continuations)

    def logprobs(self, text: str, *, top: int = 0) -> TextLogprobs:
        """How likely every token of ``text`` is after those before it, as a ``TextLogprobs``.

            found = model.logprobs("Once upon a time", top=5)
            found.logprobs, found.top_ids[0], found.top_logprobs[0]

        The first token comes after the one a text begins with. ``top`` adds the likeliest tokens at
        each place. Raises RequestError, before anything runs, for a text longer than the context
        length or without a token; NumericsError as ``score``.
        """
        return self.new_scorer().logprobs(text, top)

    def classifier(
        self,
        labels: Sequence[str],
        template: str,
        *,
        examples: Sequence[tuple[str, str]] = (),
        calibrate: bool = False,
    ) -> Classifier:
        """What tells which of ``labels`` fits a text, by the text's place in ``template``.

            classifier = model.classifier(["positive", "negative"], "Review: {text}\\nSentiment:")
            found = classifier.classify("I loved it.")
            found.label, found.probability, found.probabilities

        A label follows the template after a space, or where {label} stands at its end. ``examples``
        are texts and their labels, shown to the model before each text. ``calibrate`` divides by
        what the model says of an empty text, and so takes out the label that it prefers anyhow.
        Raises RequestError for labels or a template that cannot be.
        """
        from .labels import Classifier

        parts = (self.session, self.tokenizer, self._first_id)
        return Classifier(*parts, labels, template, examples, calibrate)

    def new_scorer(self) -> TextScorer:
        """What ``score`` and ``logprobs`` ask, for one text after another in one thread.

        It computes a context that comes again once, and what follows of it does not change a bit.
        """
        from .scoring import TextScorer

        return TextScorer(self.session, self.tokenizer, self._first_id)

    @cached_property
    def _first_id(self) -> int | None:
        from .scoring import start_token

        return start_token(self.tokenizer, self.folder)


def _check_one_cache(cache: ReusableCache | None) -> None:
    if cache is not None:
        raise RequestError(
            "found cache with prompt_cache, expected one of them; leave one out, or save what a "
            "new_session() holds"
        )
