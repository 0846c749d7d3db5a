"""A model of ours as a ``BaseLLM`` of LangChain: text in, text out.

    from pocketlm.langchain import PocketLM

    model = PocketLM(path="demo", options={"max_tokens": 40, "temperature": 0})
    model.invoke("Once upon a time")
    model.batch(["Once upon a time", "It was"])    # computed together
    for text in model.stream("Once upon a time", stop=["."]): ...

With an event loop LangChain runs the same in a thread. Source: ``BaseLLM`` of langchain-core.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from pocketlm.export.importing import importing
from pocketlm.models.loading import load
from pocketlm.runtime.model import Model
from pocketlm.runtime.text import Result

with importing("a model for LangChain", "langchain"):
    from langchain_core.language_models.llms import BaseLLM
    from langchain_core.outputs import Generation, GenerationChunk, LLMResult
    from pydantic import ConfigDict, Field


class PocketLM(BaseLLM):  # type: ignore[misc]
    """Opened by the first call; raises what ``pocketlm.load`` and ``Model.stream`` raise.

    path      what ``pocketlm.load`` opens; the demo model unless given
    loading   other arguments of ``pocketlm.load``, as {"threads": 4, "kv": "int8"}
    options   how tokens are chosen: those of ``Model.stream`` that ``Model.request`` takes too;
              a call's own win
    """

    model_config = ConfigDict(extra="forbid")  # else a misspelled option would have no effect
    path: str | Path | None = None
    loading: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)

    @cached_property
    def model(self) -> Model:
        """The model itself, for what LangChain has no word for."""
        return load(self.path, **self.loading)

    @property
    def _llm_type(self) -> str:
        return "pocketlm"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"path": self.path, "loading": self.loading, "options": self.options}

    def get_token_ids(self, text: str) -> list[int]:
        """Those of the model; LangChain itself would ask the hub for GPT-2's."""
        if self.custom_get_token_ids is not None:
            return list(self.custom_get_token_ids(text))
        return self.model.tokenizer.encode(text)

    def __getstate__(self) -> dict[str, Any]:
        own = {name: value for name, value in vars(self).items() if name != "model"}
        return {**super().__getstate__(), "__dict__": own}  # what is open stays in its process

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Any:
        opened = vars(self).get("model")  # which copies share
        return super().__deepcopy__({**(memo or {}), id(opened): opened})

    def _choosing(self, stop: list[str] | None, own: dict[str, Any]) -> dict[str, Any]:
        return {**self.options, **({} if stop is None else {"stop": stop}), **own}

    def _generate(
        self, prompts: list[str], stop: list[str] | None = None, run_manager: Any = None, **own: Any
    ) -> LLMResult:
        found: list[Any] = [None] * len(prompts)
        for result in self.model.generate_many(prompts, **self._choosing(stop, own)):
            if result.error is not None:
                raise result.error
            found[result.index] = [_generation(result)]
        return LLMResult(generations=found)

    def _stream(
        self, prompt: str, stop: list[str] | None = None, run_manager: Any = None, **own: Any
    ) -> Iterator[GenerationChunk]:
        for piece in self.model.stream(prompt, reproducible=True, **self._choosing(stop, own)):
            chunk = GenerationChunk(text=piece.text)
            if run_manager:
                run_manager.on_llm_new_token(piece.text, chunk=chunk)
            yield chunk


def _generation(result: Result) -> Generation:
    took = result.timings
    counts = {"prompt_tokens": took.prompt_tokens, "new_tokens": took.new_tokens}
    info: dict[str, Any] = {"finish_reason": result.finish_reason, **counts}
    return Generation(text=result.text, generation_info=info)
