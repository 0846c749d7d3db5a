"""A model of ours as LangChain's ``BaseLLM``: the same texts by every way that it is asked."""

from __future__ import annotations

import asyncio
import copy
import pickle
from typing import Any

import pytest
from source_tree import ROOT

import pocketlm
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder

pytest.importorskip("langchain_core")
pytestmark = pytest.mark.plugins

PROMPTS = ["the house", "and a", "went"]


@pytest.fixture(scope="module")
def model(tiny_folder: ModelFolder) -> Any:
    from pocketlm.langchain import PocketLM

    options = {"max_tokens": 6, "temperature": 0}
    return PocketLM(path=str(tiny_folder.path), loading={"threads": 1}, options=options)


def alone(tiny_model: pocketlm.Model, prompt: str, **options: Any) -> str:
    chosen = {"max_tokens": 6, "temperature": 0, **options}
    return tiny_model.generate(prompt, reproducible=True, **chosen).text


def test_every_way_of_asking_has_the_same_texts(model: Any, tiny_model: pocketlm.Model) -> None:
    texts = [alone(tiny_model, prompt) for prompt in PROMPTS]
    assert [model.invoke(prompt) for prompt in PROMPTS] == model.batch(PROMPTS) == texts
    assert ["".join(model.stream(prompt)) for prompt in PROMPTS] == texts


def test_so_has_the_event_loop(model: Any, tiny_model: pocketlm.Model) -> None:
    async def ask() -> tuple[str, str]:
        pieces = [text async for text in model.astream(PROMPTS[0])]
        return "".join(pieces), await model.ainvoke(PROMPTS[1])

    expected = tuple(alone(tiny_model, prompt) for prompt in PROMPTS[:2])
    assert asyncio.run(ask()) == expected


def test_a_call_has_options_of_its_own(model: Any, tiny_model: pocketlm.Model) -> None:
    assert model.invoke("the house", max_tokens=2) == alone(tiny_model, "the house", max_tokens=2)
    text = alone(tiny_model, "the house")
    assert text[2] not in model.invoke("the house", stop=[text[2]])
    assert text[2] not in "".join(model.stream("the house", stop=[text[2]]))


def test_a_result_tells_how_it_ended_and_its_tokens(model: Any) -> None:
    (generation,) = model.generate(["the house"]).generations[0]
    assert generation.generation_info["finish_reason"] == "length"
    assert generation.generation_info["new_tokens"] == 6
    assert generation.generation_info["prompt_tokens"] > 0


def test_callbacks_hear_every_piece(model: Any) -> None:
    from langchain_core.callbacks import BaseCallbackHandler

    heard: list[str] = []

    class Listener(BaseCallbackHandler):  # type: ignore[misc]
        def on_llm_new_token(self, token: str, **_: Any) -> None:
            heard.append(token)

    assert list(model.stream("the house", config={"callbacks": [Listener()]})) == heard


def test_it_is_one_link_of_a_chain(model: Any, tiny_model: pocketlm.Model) -> None:
    from langchain_core.prompts import PromptTemplate

    chain = PromptTemplate.from_template("the {what}") | model
    assert chain.invoke({"what": "house"}) == alone(tiny_model, "the house")


def test_errors_pass(model: Any) -> None:
    with pytest.raises(RequestError, match="max_tokens is -1"):
        model.invoke("the house", max_tokens=-1)
    with pytest.raises(RequestError, match=r"requests\[0\]: temperature is -1"):
        model.batch(["the house"], temperature=-1)


def test_without_a_path_it_is_the_demo() -> None:
    from pocketlm.langchain import PocketLM

    assert PocketLM(loading={"threads": 1}).invoke("Once upon a time", max_tokens=2)


def test_it_stays_a_short_file() -> None:
    assert len((ROOT / "src/pocketlm/langchain.py").read_text("utf-8").splitlines()) < 100


def test_tokens_are_counted_by_the_model_itself(model: Any, tiny_model: pocketlm.Model) -> None:
    """And not by GPT-2's tokenizer, which LangChain fetches from the hub."""
    assert model.get_token_ids("the house") == tiny_model.tokenizer.encode("the house")
    assert model.get_num_tokens("the house") == len(tiny_model.tokenizer.encode("the house"))


def test_it_goes_to_another_process_and_is_opened_anew_there(model: Any) -> None:
    """As a path and options; the model that is open here stays here, and open."""
    expected = model.invoke("the house")
    sent = pickle.loads(pickle.dumps(model))
    assert (sent.path, sent.loading, sent.options) == (model.path, model.loading, model.options)
    assert "model" not in vars(sent) and "model" in vars(model)
    assert sent.invoke("the house") == expected


def test_a_copy_of_a_chain_shares_what_is_open_and_nothing_else(model: Any) -> None:
    expected = model.invoke("the house")
    copied = copy.deepcopy(model)
    assert copied.model is model.model and copied.invoke("the house") == expected
    copied.options["max_tokens"] = 1
    assert model.invoke("the house") == expected


def test_an_argument_that_is_none_is_refused(tiny_folder: ModelFolder) -> None:
    """It would have had no effect: options of ``Model.stream`` stand in ``options``."""
    from pocketlm.langchain import PocketLM

    with pytest.raises(ValueError, match="temperature"):
        PocketLM(path=str(tiny_folder.path), temperature=0)


def test_a_path_may_be_one(tiny_folder: ModelFolder, model: Any) -> None:
    """Which never means the hub."""
    from pocketlm.langchain import PocketLM

    given = PocketLM(path=tiny_folder.path, loading=model.loading, options=model.options)
    assert given.invoke("the house") == model.invoke("the house")
    with pytest.raises(pocketlm.PocketLMError, match="nowhere"):
        PocketLM(path=tiny_folder.path / "nowhere").invoke("the house")
