"""F1: OpenAI's own Python client against a server, without a word of its retries.

Every answer is parsed by the client's types, and every error by the class that it raises.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from chat_models import CAT, HERMES, NOW, WEATHER, base_model, chat_model
from figure import Conditions, Figure, NotRun
from served import Served, served

import pocketlm

KEY = "a-key-of-the-tests"
ASKED: list[Any] = [{"role": "user", "content": "Why?"}]
SETTINGS: dict[str, Any] = {"max_tokens": 12, "seed": 3, "temperature": 1.0}
TOOLS: list[Any] = [WEATHER, NOW]
REQUIRED: dict[str, Any] = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
ENOUGH = SETTINGS | {"max_tokens": 120}
SCHEMA = {"name": "cat", "schema": CAT, "strict": True}
FORM: Any = {"type": "json_schema", "json_schema": SCHEMA}
FLAT: list[Any] = [{"type": "function", **tool["function"]} for tool in TOOLS]

Check = Callable[[str, bool], None]


@dataclass(frozen=True)
class Client:
    """OpenAI's client, and what it talks to.

    many   a server of all models, with a key
    few    one that takes a single text at a time
    """

    api: Any
    many: Served
    few: Served

    def of(self, server: Served, **options: Any) -> Any:
        """Another one."""
        import openai

        options = {"api_key": KEY, "max_retries": 0, "timeout": 60.0} | options
        return openai.OpenAI(base_url=f"{server.url}/v1", **options)


def measure(conditions: Conditions) -> Figure:
    """How many assertions hold; all of them in any run, as it takes seconds."""
    if importlib.util.find_spec("openai") is None:
        raise NotRun("needs the package openai: pip install openai==3.57.0")
    figure = Figure("failed assertions", 0.0)
    with _clients() as client:
        for case in CASES:
            _run(case, client, figure, conditions)
    figure.worst = float(figure.fail)
    if figure.ok + figure.fail < 60:
        figure.check(False, conditions, "count", "fewer than 60 assertions were made")
    return figure


def _run(
    case: Callable[[Client, Check], None], client: Client, figure: Figure, conditions: Conditions
) -> None:
    name = case.__name__.strip("_")

    def check(says: str, right: bool) -> None:
        figure.check(right, conditions, f"{name}-{figure.ok + figure.fail}", f"{name}: {says}")

    try:
        case(client, check)
    except Exception as error:
        check(f"{type(error).__name__}: {error}", False)


@contextmanager
def _clients() -> Iterator[Client]:
    with TemporaryDirectory() as place:
        folder = Path(place)
        base = base_model(folder)
        chat = chat_model(base, folder / "chat", HERMES)
        opened = {
            name: partial(pocketlm.load, found.path, threads=1)
            for name, found in (("chat", chat), ("base", base))
        }
        only = {"chat": opened["chat"]}
        with (
            served(opened, api_key=KEY) as many,
            served(only, api_key=KEY, parallel=1, most_waiting=0) as few,
        ):
            client = Client(None, many, few)
            yield Client(client.of(many), many, few)


def _raised(call: Callable[[], Any]) -> Any:
    """What ``call`` raises, None if nothing."""
    try:
        call()
    except Exception as error:
        return error
    return None


# Models ------------------------------------------------------------------------------------------


def _models(client: Client, check: Check) -> None:
    models = client.api.models.list()
    check("all are listed", [model.id for model in models] == ["chat", "base"])
    check("they say what they are", all(model.object == "model" for model in models))
    check("one is told of", client.api.models.retrieve("base").id == "base")


# Completions -------------------------------------------------------------------------------------


def _completion(client: Client, check: Check) -> None:
    body = {"model": "base", "prompt": "Once", **SETTINGS}
    found = client.api.completions.create(**body)
    check("a text", found.object == "text_completion" and bool(found.choices[0].text))
    check("its end", found.choices[0].finish_reason == "length")
    check("its tokens", found.usage.completion_tokens == 12)
    check("all tokens", found.usage.total_tokens == found.usage.prompt_tokens + 12)
    check(
        "the same seed, the same text",
        client.api.completions.create(**body).choices == found.choices,
    )
    other = client.api.completions.create(**body | {"seed": 4})
    check("another seed, another text", other.choices[0].text != found.choices[0].text)
    told = list(client.api.completions.create(**body, stream=True))
    text = "".join(chunk.choices[0].text for chunk in told)
    check("a stream says the same", text == found.choices[0].text)
    check("and ends", told[-1].choices[0].finish_reason == "length")
    several = client.api.completions.create(**body | {"n": 3})
    check("n texts", [choice.index for choice in several.choices] == [0, 1, 2])
    check("the first is that of the seed", several.choices[0].text == found.choices[0].text)
    echoed = client.api.completions.create(**body, echo=True, logprobs=2)
    check("the prompt is echoed", echoed.choices[0].text == "Once" + found.choices[0].text)
    logprobs = echoed.choices[0].logprobs
    check("all have logprobs", len(logprobs.token_logprobs) == found.usage.total_tokens)
    check("and what else might have come", len(logprobs.top_logprobs[-1]) >= 1)
    check("offsets begin at the beginning", logprobs.text_offset[0] == 0)


def _prompts(client: Client, check: Check) -> None:
    found = client.api.completions.create(model="base", prompt=["a", "b"], **SETTINGS)
    alone = client.api.completions.create(model="base", prompt="b", **SETTINGS)
    check("a text of each prompt", len(found.choices) == 2)
    check("each is its own", found.choices[1].text == alone.choices[0].text)
    ids = client.api.completions.create(model="base", prompt=[65, 66], **SETTINGS)
    check("token ids are a prompt", ids.usage.prompt_tokens == 2)


# Chats -------------------------------------------------------------------------------------------


def _chat(client: Client, check: Check) -> None:
    body = {"model": "chat", "messages": ASKED, **SETTINGS}
    found = client.api.chat.completions.create(**body)
    message = found.choices[0].message
    check("an answer", message.role == "assistant" and bool(message.content))
    check("nothing is refused", message.refusal is None and message.tool_calls is None)
    check("its end", found.choices[0].finish_reason == "length")
    check("a kind", found.object == "chat.completion" and found.model == "chat")
    check("a time", abs(found.created - time.time()) < 3600)
    check("the request is named", found._request_id is not None)
    again = client.api.chat.completions.create(**body)
    check("each answer has an id of its own", again.id != found.id)
    check("the same seed, the same answer", again.choices == found.choices)
    bounded = body | {"max_tokens": None, "max_completion_tokens": 3}
    check(
        "the newer name of the limit",
        client.api.chat.completions.create(**bounded).usage.completion_tokens == 3,
    )
    stop = message.content[4:6]
    stopped = client.api.chat.completions.create(**body | {"stop": [stop]}).choices[0]
    check("a stop string ends it", stopped.finish_reason == "stop")
    check("and is no part of it", stop not in stopped.message.content)
    sent = [*ASKED, message, {"role": "user", "content": "And?"}]
    more = client.api.chat.completions.create(**body | {"messages": sent})
    check("what it said is sent back", more.usage.prompt_tokens > found.usage.prompt_tokens)
    parts = [{"role": "user", "content": [{"type": "text", "text": "Why?"}]}]
    check(
        "a content of parts",
        client.api.chat.completions.create(**body | {"messages": parts}).choices == found.choices,
    )


def _chat_stream(client: Client, check: Check) -> None:
    body = {"model": "chat", "messages": ASKED, **SETTINGS}
    whole = client.api.chat.completions.create(**body).choices[0].message.content
    chunks = list(
        client.api.chat.completions.create(
            **body, stream=True, stream_options={"include_usage": True}
        )
    )
    check("the role comes first", chunks[0].choices[0].delta.role == "assistant")
    check("usage comes last", chunks[-1].usage.completion_tokens == 12)
    check("and with no choice", chunks[-1].choices == [])
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks[:-1]]
    check("a stream says the same", "".join(texts) == whole)
    check("it has an end", chunks[-2].choices[0].finish_reason == "length")
    check("all are of one answer", len({chunk.id for chunk in chunks}) == 1)
    # It takes an answer that was cut for an error.
    formed = body | {"max_tokens": 60, "response_format": FORM}
    with client.api.chat.completions.stream(**formed) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0].message.content
    check("the client's own events", "content.delta" in kinds and "chunk" in kinds)
    ended = client.api.chat.completions.create(**formed).choices[0].message.content
    check("and what it makes of them", final == ended)


def _logprobs(client: Client, check: Check) -> None:
    body = {"model": "chat", "messages": ASKED, **SETTINGS, "logprobs": True, "top_logprobs": 3}
    found = client.api.chat.completions.create(**body).choices[0]
    tokens = found.logprobs.content
    check("a logprob of each token", len(tokens) == 12 and all(t.logprob <= 0 for t in tokens))
    check("three alternatives", all(len(token.top_logprobs) == 3 for token in tokens))
    spelled = b"".join(bytes(token.bytes) for token in tokens)
    check("their bytes are the text", spelled.decode("utf-8", "replace") == found.message.content)


def _several(client: Client, check: Check) -> None:
    body = {"model": "chat", "messages": ASKED, **SETTINGS, "n": 2}
    whole = client.api.chat.completions.create(**body).choices
    check("two answers", len({choice.message.content for choice in whole}) == 2)
    texts = ["", ""]
    for chunk in client.api.chat.completions.create(**body, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    check("streamed beside each other", texts == [choice.message.content for choice in whole])


def _forms(client: Client, check: Check) -> None:
    from typing import Literal

    import pydantic

    body = {"model": "chat", "messages": ASKED, **ENOUGH}
    found = client.api.chat.completions.create(**body, response_format=FORM).choices[0]
    check("JSON by a schema", json.loads(found.message.content)["kind"] in ("cat", "dog"))
    check("that is complete", found.finish_reason == "stop")
    Cat = pydantic.create_model("Cat", kind=(Literal["cat", "dog"], ...), old=(bool, ...))
    parsed = client.api.chat.completions.parse(**body, response_format=Cat).choices[0].message
    check("parsed by a model of pydantic's", parsed.parsed.kind in ("cat", "dog"))
    plain = {"response_format": {"type": "text"}, "max_tokens": 5}
    check("a text is a form", bool(client.api.chat.completions.create(**body | plain).choices))


def _tools(client: Client, check: Check) -> None:
    import openai
    import pydantic

    body = {"model": "chat", "messages": ASKED, **ENOUGH}
    found = client.api.chat.completions.create(**body, **REQUIRED).choices[0]
    check("it ends for a call", found.finish_reason == "tool_calls")
    check("and says nothing", found.message.content is None)
    (call,) = found.message.tool_calls
    check("a call of a function", call.type == "function" and bool(call.id))
    check("that there is", call.function.name in ("weather", "now"))
    check("with arguments in JSON", isinstance(json.loads(call.function.arguments), dict))
    named = {"type": "function", "function": {"name": "weather"}}
    forced = client.api.chat.completions.create(**body, tools=TOOLS, tool_choice=named)
    (only,) = forced.choices[0].message.tool_calls
    arguments = json.loads(only.function.arguments)
    check("the one that is named", only.function.name == "weather")
    check("its arguments satisfy the schema", arguments["city"] in ("Paris", "Seoul"))
    returned = {"role": "tool", "tool_call_id": call.id, "content": "22 degrees"}
    messages = [*ASKED, found.message, returned]
    after = client.api.chat.completions.create(
        **body | {"messages": messages, "max_tokens": 5, "tools": TOOLS}
    )
    check("and what it returned is read", after.usage.completion_tokens == 5)
    Weather = pydantic.create_model("Weather", sunny=(bool, ...))
    parsed = client.api.chat.completions.parse(
        **body, tools=[openai.pydantic_function_tool(Weather)], tool_choice="required",
        parallel_tool_calls=False,
    )  # fmt: skip
    (told,) = parsed.choices[0].message.tool_calls
    check("parsed by a model of pydantic's", told.function.parsed_arguments.sunny in (True, False))
    silent = client.api.chat.completions.create(
        **body | {"max_tokens": 5}, tools=TOOLS, tool_choice="none"
    )
    check("none where none is wanted", silent.choices[0].message.tool_calls is None)


def _tools_stream(client: Client, check: Check) -> None:
    body = {"model": "chat", "messages": ASKED, **ENOUGH, **REQUIRED}
    whole = client.api.chat.completions.create(**body).choices[0].message.tool_calls[0].function
    name, arguments = "", ""
    reasons = []
    for chunk in client.api.chat.completions.create(**body, stream=True):
        reasons.append(chunk.choices[0].finish_reason)
        for part in chunk.choices[0].delta.tool_calls or ():
            name += part.function.name or ""
            arguments += part.function.arguments or ""
    check("the name is streamed", name == whole.name)
    check("the arguments are", arguments == whole.arguments)
    check("it ends for a call", reasons[-1] == "tool_calls")


# Responses ---------------------------------------------------------------------------------------


def _responses(client: Client, check: Check) -> None:
    body = {"model": "chat", "input": "Why?", "max_output_tokens": 12, "temperature": 1.0}
    body["extra_body"] = {"seed": 3}
    found = client.api.responses.create(**body)
    chat = client.api.chat.completions.create(model="chat", messages=ASKED, **SETTINGS)
    check("it says what a chat does", found.output_text == chat.choices[0].message.content)
    check("it is cut", found.status == "incomplete")
    check("for its length", found.incomplete_details.reason == "max_output_tokens")
    check("its tokens", found.usage.output_tokens == 12)
    events = list(client.api.responses.create(**body, stream=True))
    check("it is created first", events[0].type == "response.created")
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    check("a stream says the same", "".join(deltas) == found.output_text)
    check("and tells the whole last", events[-1].response.output_text == found.output_text)
    numbers = [event.sequence_number for event in events]
    check("events are numbered", numbers == list(range(len(events))))
    called = client.api.responses.create(
        **body | {"max_output_tokens": 120},
        tools=FLAT,
        tool_choice="required",
        parallel_tool_calls=False,
    )
    (call,) = called.output
    check("a call is an item", call.type == "function_call" and bool(call.call_id))
    returned = {"type": "function_call_output", "call_id": call.call_id, "output": "22"}
    items = [{"role": "user", "content": "Why?"}, call, returned]
    after = client.api.responses.create(**body | {"input": items})
    check("which goes back with what it returned", after.usage.output_tokens == 12)
    formed = body | {"max_output_tokens": 60, "text": {"format": {"type": "json_schema", **SCHEMA}}}
    with client.api.responses.stream(**formed) as stream:
        final = stream.get_final_response() if list(stream) else None
    ended = client.api.responses.create(**formed).output_text
    check("by the client's own events", final is not None and final.output_text == ended)


def _response_forms(client: Client, check: Check) -> None:
    import openai
    import pydantic

    Old = pydantic.create_model("Old", old=(bool, ...))
    found = client.api.responses.parse(
        model="chat", input="Why?", text_format=Old, max_output_tokens=60
    )
    check("parsed by a model of pydantic's", found.output_parsed.old in (True, False))
    check("it is complete", found.status == "completed")
    kept = partial(client.api.responses.create, model="chat", input="a")
    error = _raised(partial(kept, previous_response_id="resp_1"))
    check("no response is kept", isinstance(error, openai.BadRequestError))
    check("which is said", error.param == "previous_response_id")


# Errors ------------------------------------------------------------------------------------------


def _bad_requests(client: Client, check: Check) -> None:
    import openai

    create = partial(client.api.chat.completions.create, model="chat", messages=ASKED)
    image = {"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}
    for param, body in (
        ("temperature", {"temperature": -1}),
        ("top_p", {"top_p": 2}),
        ("n", {"n": 0}),
        ("nonsense", {"extra_body": {"nonsense": 1}}),
        ("messages", {"messages": []}),
        ("messages[0].content[0]", {"messages": [{"role": "user", "content": [image]}]}),
        ("tools[0].type", {"tools": [{"type": "retrieval"}]}),
    ):
        error = _raised(partial(create, **body))
        check(f"{param} is a BadRequestError", isinstance(error, openai.BadRequestError))
        check(f"that names {param}", error is not None and error.param == param)
    long = _raised(partial(create, messages=[{"role": "user", "content": "a b " * 3000}]))
    check("a long prompt has a code", long is not None and long.code == "context_length_exceeded")
    base = _raised(partial(create, model="base"))
    check("a base model chats not", base is not None and base.code == "no_chat_template")
    script = client.api.chat.completions.create(
        model="base", messages=ASKED, **SETTINGS, extra_body={"transcript": True}
    )
    check("but by a script", script.usage.completion_tokens == 12)


def _other_errors(client: Client, check: Check) -> None:
    import openai

    unknown = _raised(partial(client.api.completions.create, model="nobody", prompt="a"))
    check("an unknown model is a NotFoundError", isinstance(unknown, openai.NotFoundError))
    check("with its code", unknown is not None and unknown.code == "model_not_found")
    check("and those that there are", "chat" in str(unknown))
    path = _raised(client.api.files.list)
    check("so is an unknown path", isinstance(path, openai.NotFoundError))
    stranger = client.of(client.many, api_key="another-key")
    wrong = _raised(stranger.models.list)
    check("a wrong key is an AuthenticationError", isinstance(wrong, openai.AuthenticationError))
    check(
        "which says nothing of the key", "another-key" not in str(wrong) and KEY not in str(wrong)
    )
    foreign = client.of(client.many, default_headers={"Origin": "http://elsewhere.example"})
    refused = _raised(foreign.models.list)
    check("a foreign page is refused", isinstance(refused, openai.PermissionDeniedError))
    embedding = _raised(partial(client.api.embeddings.create, model="chat", input="a"))
    check("what is not to be had is told", isinstance(embedding, openai.BadRequestError))
    hurried = client.of(client.many, timeout=0.001)
    late = _raised(partial(hurried.completions.create, model="base", prompt="a", max_tokens=900))
    check("who does not wait times out", isinstance(late, openai.APITimeoutError))


def _overload(client: Client, check: Check) -> None:
    import openai

    api = client.of(client.few)
    body = {"model": "chat", "messages": ASKED, **SETTINGS}
    stream = api.chat.completions.create(**body | {"max_tokens": 1500}, stream=True)
    next(iter(stream))
    error = _raised(partial(api.chat.completions.create, **body))
    check("too many are a RateLimitError", isinstance(error, openai.RateLimitError))
    seconds = 0 if error is None else int(error.response.headers["retry-after"])
    check("that says when to come back", 1 <= seconds <= 5)
    stream.close()
    check("a stream that is closed leaves its place", _is_idle(client.few))
    check("for the next", api.chat.completions.create(**body).usage.completion_tokens == 12)


def _is_idle(server: Served) -> bool:
    """Whether nothing is held for a client any more, soon."""
    engine = server.service.pool.served["chat"].engine
    assert engine is not None
    for _ in range(200):
        if not engine.num_held:
            return True
        time.sleep(0.05)
    return False


# The other client --------------------------------------------------------------------------------


def _asynchronous(client: Client, check: Check) -> None:
    import openai

    body = {"model": "chat", "messages": ASKED, **SETTINGS}
    whole = client.api.chat.completions.create(**body).choices[0].message.content

    async def ask() -> None:
        url = f"{client.many.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=KEY, max_retries=0) as api:
            asked = (api.chat.completions.create(**body) for _ in range(5))
            found = await asyncio.gather(*asked)
            texts = {answer.choices[0].message.content for answer in found}
            check("five at once say the same", texts == {whole})
            stream = await api.chat.completions.create(**body, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
            check("a stream does, too", "".join(pieces) == whole)
            long = await api.chat.completions.create(**body | {"max_tokens": 1500}, stream=True)
            async for _ in long:
                break
            await long.close()
            check(
                "one that is closed leaves its place",
                await asyncio.to_thread(_is_idle, client.many),
            )

    asyncio.run(ask())


def _raw(client: Client, check: Check) -> None:
    raw = client.api.chat.completions.with_raw_response.create(
        model="chat", messages=ASKED, **SETTINGS
    )
    check("headers name the request", len(raw.headers["x-request-id"]) == 32)
    check("the body is JSON", raw.headers["content-type"] == "application/json")
    check("and is parsed", raw.parse().usage.completion_tokens == 12)
    told = client.api.chat.completions.create(
        model="chat", messages=ASKED, **SETTINGS, extra_body={"details": True, "top_k": 1}
    )
    check("options of ours", told.model_extra["details"]["choices"][0]["finish_reason"] == "length")


CASES: list[Callable[[Client, Check], None]] = [
    *(_models, _completion, _prompts, _chat, _chat_stream, _logprobs, _several, _forms),
    *(_tools, _tools_stream, _responses, _response_forms),
    *(_bad_requests, _other_errors, _overload, _asynchronous, _raw),
]
