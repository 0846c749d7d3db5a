"""A model that is closed, or that nobody has any more: its memory is free, and what uses it ends.

Whatever is asked of a closed one is an error that says what to do: never a crash, never a wait.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from model_folders import with_files

import pocketlm
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.bound_graph import BoundGraph
from pocketlm.runtime.cancellation import Cancellation
from pocketlm.runtime.session import Session

PATIENCE = 60.0  # of a test that fails
CLOSED = "this model was closed, expected an open one; load it again with pocketlm.load"
LONG: dict[str, Any] = {"max_tokens": 150, "ignore_eos": True}


async def first_piece(model: pocketlm.Model) -> None:
    async for _ in model.astream("a", **LONG):
        break


MESSAGES: Any = [{"role": "user", "content": "Hi"}]
USES: dict[str, Callable[[pocketlm.Model], object]] = {
    "astream": lambda model: asyncio.run(first_piece(model)),
    "beams": lambda model: model.beams("a", 2, max_tokens=20),
    "chat": lambda model: list(model.chat(MESSAGES, transcript=True)),
    "chat_prompt": lambda model: model.chat_prompt(MESSAGES, transcript=True),
    "chat_template": lambda model: model.chat_template,
    "classifier": lambda model: model.classifier(["a", "b"], "{text}:").classify("c"),
    "completions": lambda model: model.completions("a", 2, **LONG),
    "generate": lambda model: model.generate("a", **LONG),
    "generate_many": lambda model: list(model.generate_many(["a", "b"], **LONG)),
    "logprobs": lambda model: model.logprobs("abc"),
    "new_background": lambda model: model.new_background(),
    "new_cache": lambda model: model.new_cache(),
    "new_job": lambda model: model.new_job("a"),
    "new_scorer": lambda model: model.new_scorer(),
    "new_session": lambda model: model.new_session(),
    "prefix_cache": lambda model: model.prefix_cache,
    "row_group": lambda model: model.row_group,
    "request": lambda model: model.request("a"),
    "score": lambda model: model.score("a", ["b"]),
    "session": lambda model: model.session,
    "stream": lambda model: list(model.stream("a")),
    "submit": lambda model: model.submit("a", **LONG).result(PATIENCE),
    "tokenizer": lambda model: model.tokenizer,
    "try_forms_apart": lambda model: model.try_forms_apart(),
}
STILL_THERE = {"close", "closed", "end_ids", "fallback", "folder", "load_seconds"}
STILL_THERE |= {"sampling_defaults", "start_id"}


@pytest.fixture
def model(tiny_folder: ModelFolder) -> pocketlm.Model:
    return pocketlm.Model(tiny_folder, threads=1)


@pytest.fixture(scope="module")
def closed(tiny_folder: ModelFolder) -> pocketlm.Model:
    model = pocketlm.Model(tiny_folder, threads=1)
    model.close()
    return model


def refuses(use: Callable[[], object]) -> None:
    with pytest.raises(pocketlm.ClosedError, match=CLOSED):
        use()


# After it ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", USES)
def test_whatever_is_asked_of_a_closed_model_says_what_to_do(
    closed: pocketlm.Model, name: str
) -> None:
    refuses(lambda: USES[name](closed))


def test_no_use_is_left_out(tiny_model: pocketlm.Model) -> None:
    names = {name for name in (*vars(tiny_model), *dir(pocketlm.Model)) if name[0] != "_"}
    assert names == USES.keys() | STILL_THERE


def test_what_a_model_is_can_be_read_when_it_is_closed(closed: pocketlm.Model) -> None:
    assert closed.folder.path.is_dir() and closed.closed and not hasattr(closed, "nothing")


def test_an_error_of_closing_is_ours_and_a_runtime_error() -> None:
    assert issubclass(pocketlm.ClosedError, pocketlm.PocketLMError)
    assert issubclass(pocketlm.ClosedError, RuntimeError)


def test_a_with_block_closes_well_or_not_and_closing_again_does_nothing(
    model: pocketlm.Model, tiny_folder: ModelFolder
) -> None:
    with model as entered:
        assert entered is model and not model.closed
        model.generate("a", max_tokens=2)
    assert model.closed
    model.close()
    with pytest.raises(ZeroDivisionError), pocketlm.Model(tiny_folder, threads=1) as other:
        raise ZeroDivisionError
    assert other.closed
    other.close()


def test_what_was_opened_before_ends_with_the_error(model: pocketlm.Model) -> None:
    stream, many = model.stream("a", **LONG), model.generate_many(["a", "b"], **LONG)
    begun = model.stream("a", **LONG)
    next(begun)
    text, cache, scorer = model.new_session(), model.new_cache(), model.new_scorer()
    text.append("abc")
    text.generate(max_tokens=2)
    classifier = model.classifier(["a", "b"], "{text}:")
    session = model.session
    model.close()
    refuses(lambda: next(stream))
    refuses(lambda: next(begun))
    refuses(lambda: next(many))
    refuses(text.generate)
    refuses(text.fork)
    refuses(text.compute)
    refuses(lambda: text.append("a"))
    refuses(lambda: text.text)
    refuses(lambda: classifier.classify("c"))
    refuses(lambda: scorer.score("a", ["b"]))
    refuses(cache.copy)
    refuses(lambda: session.engine)
    refuses(lambda: session.step([1], cache.cache))
    refuses(session.new_caches)
    refuses(lambda: session.prepare(1))
    session.close()


def test_a_draft_that_is_closed_is_an_error_of_the_generation(
    model: pocketlm.Model, tiny_folder: ModelFolder
) -> None:
    draft = pocketlm.Model(tiny_folder, threads=1)
    stream = model.stream("a", draft=draft, temperature=0, **LONG)
    next(stream)
    draft.close()
    refuses(lambda: list(stream))
    refuses(lambda: model.stream("a", draft=draft))
    assert model.generate("a", max_tokens=2, ignore_eos=True).finish_reason == "length"


def test_of_two_models_one_may_be_closed(model: pocketlm.Model, tiny_folder: ModelFolder) -> None:
    other = pocketlm.Model(tiny_folder, threads=2)
    options: dict[str, Any] = {"temperature": 0, "max_tokens": 10}
    expected = model.generate("abc", **options).text
    assert other.generate("abc", **options).text == expected
    stream = model.stream("abc", **options)
    pieces = [next(stream).text]
    other.close()
    assert "".join([*pieces, *(piece.text for piece in stream)]) == expected


# In the middle of it -----------------------------------------------------------------------------


@pytest.fixture
def endless(monkeypatch: pytest.MonkeyPatch) -> Callable[[], threading.Semaphore]:
    """Makes every run wait until it is told to end; the semaphore says that one has begun."""
    begun = threading.Semaphore(0)
    run = BoundGraph._run_bound

    def wait(graph: BoundGraph, stopping: Cancellation) -> None:
        begun.release()
        for _ in range(int(PATIENCE * 1000)):
            if stopping.run_options.terminate:
                break
            threading.Event().wait(0.001)
        run(graph, stopping)

    def prepare() -> threading.Semaphore:
        monkeypatch.setattr(BoundGraph, "_run_bound", wait)
        return begun

    return prepare


def in_thread(use: Callable[[], object]) -> tuple[threading.Thread, list[BaseException | None]]:
    ended: list[BaseException | None] = []

    def work() -> None:
        try:
            use()
            ended.append(None)
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    return thread, ended


RUNNING = ["beams", "classifier", "completions", "generate", "generate_many", "score", "submit"]


@pytest.mark.parametrize("name", [*RUNNING, "astream"])
def test_closing_ends_what_another_thread_has_under_way(
    model: pocketlm.Model, endless: Callable[[], threading.Semaphore], name: str
) -> None:
    """Within a step, which is told to end; the graph is free although the error is still held."""
    gone = weakref.ref(model.session.engine)
    begun = endless()
    thread, ended = in_thread(lambda: USES[name](model))
    assert begun.acquire(timeout=PATIENCE)
    model.close()
    thread.join(PATIENCE)
    assert [type(error) for error in ended] == [pocketlm.ClosedError]
    for _ in range(1000):  # the thread of a job may still be on its way out
        if gone() is None:
            break
        threading.Event().wait(0.01)
    assert gone() is None


def test_closing_between_two_steps_is_an_error_too(model: pocketlm.Model) -> None:
    """And not the end of a text: whatever moment it is."""
    begun = threading.Semaphore(0)

    def work() -> None:
        while True:
            for _ in model.stream("a", **LONG):
                begun.release()

    thread, ended = in_thread(work)
    for _ in range(20):
        assert begun.acquire(timeout=PATIENCE)
    model.close()
    thread.join(PATIENCE)
    assert [type(error) for error in ended] == [pocketlm.ClosedError]


def test_closing_uses_up_no_cancellation(
    model: pocketlm.Model,
    tiny_model: pocketlm.Model,
    endless: Callable[[], threading.Semaphore],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    stopping = Cancellation()
    begun = endless()
    thread, ended = in_thread(lambda: model.generate("a", cancellation=stopping, **LONG))
    assert begun.acquire(timeout=PATIENCE)
    model.close()
    thread.join(PATIENCE)
    monkeypatch.undo()
    assert isinstance(ended[0], pocketlm.ClosedError) and not stopping.cancelled
    found = tiny_model.generate("a", cancellation=stopping, max_tokens=3, ignore_eos=True)
    assert found.finish_reason == "length"


def test_what_was_cancelled_before_is_cancelled(
    model: pocketlm.Model, endless: Callable[[], threading.Semaphore]
) -> None:
    """Who stops a text and closes a window gets no error."""
    stream = model.stream("a", **LONG)
    begun = endless()
    thread, ended = in_thread(lambda: list(stream))
    assert begun.acquire(timeout=PATIENCE)
    stream.cancel()
    model.close()
    thread.join(PATIENCE)
    assert (ended, stream.finish_reason) == ([None], "cancelled")


def test_a_step_may_be_closed_by_its_own_thread(
    model: pocketlm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by the handler of a signal; waiting for the step would be for ever."""
    run = BoundGraph._run_bound

    def close(graph: BoundGraph, stopping: Cancellation) -> None:
        model.close()
        run(graph, stopping)

    stream = model.stream("a", **LONG)
    next(stream)
    monkeypatch.setattr(BoundGraph, "_run_bound", close)
    refuses(lambda: list(stream))


def test_a_step_within_a_step_is_refused(
    model: pocketlm.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would write over what is bound."""
    run, errors = BoundGraph._run_bound, []

    def again(graph: BoundGraph, stopping: Cancellation) -> None:
        with pytest.raises(pocketlm.RequestError, match="found a step within a step") as caught:
            model.generate("b", max_tokens=1)
        errors.append(caught.value)
        run(graph, stopping)

    monkeypatch.setattr(BoundGraph, "_run_bound", again)
    found = model.generate("abc", max_tokens=2, temperature=0, ignore_eos=True)
    monkeypatch.undo()
    assert len(errors) == len(found.token_ids) == 2
    assert found.text == model.generate("abc", max_tokens=2, temperature=0, ignore_eos=True).text


def test_a_job_may_close_its_model(model: pocketlm.Model) -> None:
    job = model.submit("a", **LONG)
    for _ in job:
        model.close()
        break
    refuses(lambda: job.result(PATIENCE))


def test_a_listener_may_close_the_model(model: pocketlm.Model) -> None:
    """In the thread that computes."""
    ended = threading.Event()

    def listen(piece: pocketlm.Piece | None) -> None:
        model.close()
        if piece is None:
            ended.set()

    job = model._new_job(model.request("a", **LONG), listener=listen)
    model._run_in_background(job)
    assert ended.wait(PATIENCE)
    refuses(lambda: job.result(PATIENCE))


# Memory ------------------------------------------------------------------------------------------


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What is free is so because nobody has it, not because cycles are searched for."""
    gc.disable()
    yield
    gc.enable()


def test_closing_frees_all_that_was_opened_whatever_is_still_held(
    prefill_folder: ModelFolder,
) -> None:
    model = pocketlm.Model(prefill_folder, threads=1, prefill="int8")
    stream, job = model.stream("a", **LONG), model.submit("a", max_tokens=2)
    next(stream)
    job.result(PATIENCE)
    model.generate([5] * 100, max_tokens=1)
    held = [stream, job, model.new_session(), model.classifier(["a", "b"], "{text}:")]
    session, prefixes = model.session, model.prefix_cache
    assert session._prompts is not None and session._prompts.is_open and len(prefixes)
    gone = [weakref.ref(session.engine), weakref.ref(session._prompts)]
    model.close()
    assert [reference() for reference in gone] == [None, None]
    assert (len(prefixes), prefixes.num_bytes, session._spare.take()) == (0, 0, [])
    del held


def test_a_closed_prefix_cache_keeps_nothing(model: pocketlm.Model) -> None:
    prefixes = model.prefix_cache
    prefixes.close()
    model.generate([5] * 40, max_tokens=1)
    assert len(prefixes) == 0


@pytest.mark.parametrize("asked", ["stream", "submit", "new_session", "generate_many"])
def test_a_model_that_is_dropped_is_free_at_once(
    tiny_folder: ModelFolder, no_collection: None, asked: str
) -> None:
    model = pocketlm.Model(tiny_folder, threads=1)
    gone = weakref.ref(model.session.engine)
    held: Any
    if asked == "new_session":
        held = model.new_session()
        held.append("a")
        next(held.stream(**LONG))
    else:
        held = getattr(model, asked)(["a"] if asked == "generate_many" else "a", **LONG)
        next(iter(held))
    if asked == "submit":
        held.cancel()
        held.result(PATIENCE)
    del model, held
    for _ in range(1000):  # the thread of a job
        if gone() is None:
            break
        threading.Event().wait(0.01)
    assert gone() is None


def test_a_stream_whose_model_is_dropped_goes_on(
    tiny_folder: ModelFolder, tiny_model: pocketlm.Model
) -> None:
    model = pocketlm.Model(tiny_folder, threads=1)
    stream = model.stream("abc", temperature=0, max_tokens=10)
    first = next(stream).text
    del model
    gc.collect()
    text = first + "".join(piece.text for piece in stream)
    assert text == tiny_model.generate("abc", temperature=0, max_tokens=10).text


def test_the_process_of_a_template_ends_with_its_model(
    tiny_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    files = {"chat_template.jinja": "{{ messages[0]['content'] }}"}
    folder = with_files(tiny_folder, tmp_path_factory.mktemp("chat") / "copy", files)
    model = pocketlm.Model(folder, threads=1)
    model.chat_prompt(MESSAGES)
    template = model.chat_template
    assert template is not None
    child = template._process._child
    del template
    assert child is not None and child.poll() is None
    model.close()
    assert child.poll() is not None


FIFTY = """
import sys
import pocketlm
from pocketlm.export.memory import rss_bytes

def use(model):
    model.generate("Once upon a time there was", max_tokens=8)
    model.score("Once", [" upon"])
    text = model.new_session()
    text.append("It was")
    next(text.stream(max_tokens=8))

def closed():
    model = pocketlm.load(threads=int(sys.argv[1]))
    use(model)
    model.close()

def left():
    with pocketlm.load(threads=int(sys.argv[1])) as model:
        use(model)

def dropped():
    use(pocketlm.load(threads=int(sys.argv[1])))

for way in (closed, left, dropped):  # what is there once for all models
    way()
before = rss_bytes()
for number in range(50):
    (closed, left, dropped)[number % 3]()
print(rss_bytes() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="how much is resident is asked of Linux")
def test_the_memory_of_fifty_models_is_given_back() -> None:
    """More threads than cores, since it is they who used to keep some."""
    pocketlm.load()  # made here
    command = [sys.executable, "-c", FIFTY, "4"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=10 * PATIENCE)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) <= 10_000_000


HOLDER = """
import sys
from pocketlm import Model
from pocketlm.export.folder import ModelFolder

class Holder:
    model = Model(ModelFolder.open(sys.argv[1]), threads=1)
    def __del__(self, close=model.close):
        close()

holder = Holder()
"""


def test_what_closes_its_model_as_it_goes_may_go_with_the_interpreter(
    tiny_folder: ModelFolder,
) -> None:
    """When nothing can be imported any more."""
    command = [sys.executable, "-c", HOLDER, str(tiny_folder.path)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_closing_does_not_wait_where_a_step_goes_on_for_ever(tiny_folder: ModelFolder) -> None:
    """In a fork, whose parent had one under way."""
    session = Session(tiny_folder, threads=1)
    with session._lock:
        child = os.fork()
        if child == 0:
            threading.Timer(PATIENCE, os._exit, (1,)).start()
            worker = threading.Thread(target=session.close)
            worker.start()
            worker.join()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    session.step([1], session.new_cache())
