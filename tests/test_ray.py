"""The stage for Ray Data: the rows that came, with the text of each; the same wherever it runs."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_folders import with_files
from source_tree import ROOT

import pocketlm
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.ray import Columns, Generator, prompt_seed

PROMPTS = ["the house", "and a", "the house", "went 글"]


def column(values: list[Any]) -> Any:
    """As Ray makes it: an array of objects, whatever they are."""
    found = np.empty(len(values), object)
    found[:] = values
    return found


@pytest.fixture(scope="module")
def generator(tiny_folder: ModelFolder) -> Generator:
    return Generator(str(tiny_folder.path), max_tokens=5)


def test_rows_come_back_with_what_their_prompts_get_alone(
    generator: Generator, tiny_model: pocketlm.Model
) -> None:
    number = np.arange(4)
    found = generator({"prompt": column(PROMPTS), "number": number})
    assert list(found) == ["prompt", "number", "text", "finish_reason", "num_tokens"]
    assert found["number"] is number and found["num_tokens"].dtype == np.int64
    for i, prompt in enumerate(PROMPTS):
        seed = prompt_seed(0, prompt)
        alone = tiny_model.generate(prompt, max_tokens=5, seed=seed, reproducible=True)
        assert found["text"][i] == alone.text
        assert found["finish_reason"][i] == alone.finish_reason
        assert found["num_tokens"][i] == alone.timings.new_tokens
    assert found["text"][0] == found["text"][2]


def test_the_rest_of_a_batch_changes_no_row(generator: Generator) -> None:
    together = generator({"prompt": column(PROMPTS)})["text"]
    turned = generator({"prompt": column(PROMPTS[::-1])})["text"]
    alone = [generator({"prompt": column([prompt])})["text"][0] for prompt in PROMPTS]
    assert [*together] == [*turned[::-1]] == alone


def test_seeds_are_of_a_column_or_of_the_prompt(
    tiny_folder: ModelFolder, tiny_model: pocketlm.Model
) -> None:
    generator = Generator(
        tiny_folder.path, prompt_column="q", seed_column="s", max_tokens=4, kv="fp32"
    )
    found = generator({"q": column(["the house", [5, 6, 7]]), "s": np.array([3, 4])})
    pairs: list[tuple[Any, int]] = [("the house", 3), ([5, 6, 7], 4)]
    for i, (prompt, seed) in enumerate(pairs):
        alone = tiny_model.generate(prompt, max_tokens=4, seed=seed, reproducible=True)
        assert found["text"][i] == alone.text
    ids = np.array([[5, 6], [6, 5]])  # as Ray has lists of one length
    other = Generator(tiny_folder.path, seed=1, max_tokens=4)
    alone = tiny_model.generate([6, 5], max_tokens=4, seed=prompt_seed(1, [6, 5]))
    assert other({"prompt": ids})["text"][1] == alone.text
    assert len({prompt_seed(seed, prompt) for seed in (0, 1) for prompt in ("a", "b", [1])}) == 6


def test_a_prompt_may_be_a_message(tiny_folder: ModelFolder, tmp_path: Path) -> None:
    template = "{% for m in messages %}{{ m['content'] }}:{% endfor %}"
    folder = with_files(tiny_folder, tmp_path / "chat", {"chat_template.jinja": template})
    generator = Generator(folder.path, chat=True, max_tokens=4)
    alone = generator.model.generate(
        generator.model.chat_prompt([{"role": "user", "content": "the house"}]),
        max_tokens=4,
        seed=prompt_seed(0, "the house"),
        reproducible=True,
    )
    assert generator({"prompt": column(["the house"])})["text"][0] == alone.text


def test_what_cannot_be_is_refused(generator: Generator, tiny_folder: ModelFolder) -> None:
    for options, message in (
        ({"temperature": -1}, "temperature is -1, expected"),
        ({"promt": "x"}, "found the option 'promt', expected one of"),
    ):
        with pytest.raises(RequestError, match=message):
            Generator(tiny_folder.path, **options)
    for batch, message in (
        ({"text": column(["a"])}, "found the columns text, expected one called 'prompt'; name"),
        ({"prompt": column(["a"]), "text": column(["a"])}, "found a column 'text', which is to be"),
        ({"prompt": column([3])}, "the row with the prompt 3: prompt is 3 of type int, expected"),
        ({"prompt": column(["a b" * 99])}, "the row with the prompt 'a ba b.*: the prompt has"),
    ):
        with pytest.raises(RequestError, match=message):
            generator(batch)
    assert [*generator({"prompt": column([])})["text"]] == []


# --- on a cluster ---


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """Ray on this machine, with two workers at most."""
    ray = pytest.importorskip("ray")
    pytest.importorskip("ray.data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
        ray.init(num_cpus=2, include_dashboard=False, logging_level="ERROR")
        yield ray
        ray.shutdown()


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_loses_and_doubles_no_row(
    ray: Any, tiny_folder: ModelFolder, tiny_model: pocketlm.Model, tmp_path: Path
) -> None:
    """One of two is killed with its second batch answered, but not handed over."""
    marker = tmp_path / "killed"

    class Dying(Generator):  # here, so that Ray pickles it and not its name
        calls = 0

        def __call__(self, batch: Columns) -> Columns:
            found = super().__call__(batch)
            self.calls += 1
            if self.calls == 2 and not marker.exists():
                marker.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
            return found

    rows = [{"prompt": f"the house {n % 7}", "number": n} for n in range(48)]
    answered = ray.data.from_items(rows, override_num_blocks=12).map_batches(
        Dying,
        fn_constructor_kwargs={"model": str(tiny_folder.path), "max_tokens": 4},
        concurrency=2,
        batch_size=4,
    )
    found = answered.take_all()
    assert marker.exists() and int(marker.read_text()) != os.getpid()
    assert sorted(row["number"] for row in found) == list(range(48))
    for row in found:
        seed = prompt_seed(0, row["prompt"])
        alone = tiny_model.generate(row["prompt"], max_tokens=4, seed=seed, reproducible=True)
        assert (row["text"], row["num_tokens"]) == (alone.text, alone.timings.new_tokens)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_the_example_of_the_docs_runs(ray: Any, capsys: pytest.CaptureFixture[str]) -> None:
    text = (ROOT / "docs" / "batch.md").read_text("utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(program, {})
    assert len(re.findall(r"^(?:Once upon a time|It was) ", capsys.readouterr().out, re.M)) == 2
