"""lm-evaluation-harness through our model class against our own tasks, and against the formulas.

The same items in both: the harness's own tasks lambada_openai, hellaswag and piqa, pointed at local
files. Offline.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from model_folders import with_files

import pocketlm
from pocketlm.benchmarks.tasks.files import read_task
from pocketlm.benchmarks.tasks.measure import measure_tasks
from pocketlm.export.errors import RequestError
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.scoring import encode_pair

pytestmark = pytest.mark.lm_eval

PEOPLE = ("the old doctor", "a young lady", "Mr. Harding", "her brother", "the captain", "my aunt")
PLACES = ("by the fire", "in the garden", "at the gate", "upon the stairs", "in the carriage")
DEEDS = ("read the letter", "laughed aloud", "fell asleep", "wept bitterly", "called for tea")
ENDS = ("he went away", "and nobody spoke", "so that all was quiet", "[sic] which was strange")
YAML = """\
include: {tasks}/{include}
task: local_{name}
tag: null
dataset_path: json
dataset_name: null
dataset_kwargs: {{data_files: {{{split}: {data}}}}}
training_split: null
"""
TASKS = {
    "lambada": ("lambada/lambada_openai.yaml", "test"),
    "hellaswag": ("hellaswag/hellaswag.yaml", "validation"),
    "piqa": ("piqa/piqa.yaml", "validation"),
}


@pytest.fixture(scope="module", autouse=True)
def offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Set before ``datasets`` is imported, which reads them only then."""
    home = str(tmp_path_factory.mktemp("home"))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
            patch.setenv(name, "1")
        for name in ("HF_HOME", "HF_DATASETS_CACHE"):
            patch.setenv(name, home)
        yield


@pytest.fixture(scope="module")
def harness(offline: None) -> Any:
    return pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def demo() -> ModelFolder:
    """The demo model, whose choices are not those of chance."""
    return pocketlm.load(precision="int8", provider="cpu", threads=2).folder


def lines(name: str, count: int = 24) -> Iterator[dict[str, Any]]:
    """Questions in the manner of the novels that the model was trained on."""
    random = np.random.default_rng(len(name))

    def pick(words: tuple[str, ...]) -> str:
        return words[int(random.integers(len(words)))]

    for i in range(count):
        who, where, what = pick(PEOPLE), pick(PLACES), pick(DEEDS)
        if name == "lambada":
            before = f"“It is true,” said {who}. " * (60 if i == 0 else 1)  # one that is too long
            yield {"text": f"{before}{who} {what} {where}, and then {who} sat down {where}"}
        elif name == "hellaswag":
            yield {
                "activity_label": f"Being {where}",
                "ctx_a": f"{who}  [header] was {where}. [title] {pick(PEOPLE)} {what}.",
                "ctx_b": "" if i % 5 == 0 else f"then {who} É",
                "endings": [f"{what} {end}." for end in ENDS],
                "label": int(random.integers(4)) if i % 2 else str(random.integers(4)),
            }
        else:
            yield {
                "goal": f"What did {who} do {where}?",
                "sol1": f"{pick(DEEDS)}, {pick(ENDS)}",
                "sol2": pick(DEEDS),
                "label": int(random.integers(2)),
            }


def write_tasks(harness: Any, folder: Path) -> dict[str, Path]:
    """JSONL files of our own items, and the harness's tasks made to read them."""
    files = {}
    for name, (include, split) in TASKS.items():
        files[name] = folder / f"{name}.jsonl"
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines(name))
        files[name].write_text(text, encoding="utf-8")
        write_yaml(harness, folder, name, include, split, files[name])
    return files


def write_yaml(harness: Any, folder: Path, name: str, include: str, split: str, data: Path) -> None:
    tasks = Path(harness.__file__).parent / "tasks"
    text = YAML.format(tasks=tasks, include=include, name=name, split=split, data=data)
    (folder / f"{name}.yaml").write_text(text)


def their_results(folder: Path, model: Any, names: list[str]) -> dict[str, dict[str, Any]]:
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder))
    tasks = [f"local_{name}" for name in names]
    found = simple_evaluate(model, tasks=tasks, task_manager=manager, bootstrap_iters=2)
    return {name: found["results"][f"local_{name}"] for name in names}


def check_same(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Exactly, since both answered the same pairs of ids; but for the order of a sum."""
    same = {"acc": "accuracy", "acc_norm": "accuracy_normalised"}
    if ours["kind"] == "last_word":
        del same["acc_norm"]
        assert ours["perplexity"] == pytest.approx(theirs["perplexity,none"], rel=1e-12)
    for metric, name in same.items():
        assert ours[name]["value"] == pytest.approx(theirs[f"{metric},none"], rel=1e-12)
        error = theirs[f"{metric}_stderr,none"]
        found = ours[name]["standard_error"]
        # Without a spread none is known; the harness says 0 then.
        assert (0 if found is None else found) == pytest.approx(error, rel=1e-12)


def test_our_scores_are_those_of_the_harness(
    harness: Any, demo: ModelFolder, tmp_path: Path
) -> None:
    from pocketlm.lm_eval import PocketLM

    files = write_tasks(harness, tmp_path)
    theirs = their_results(tmp_path, PocketLM(str(demo.path), provider="cpu"), list(files))
    ours = measure_tasks({"demo": demo}, list(map(read_task, files.values())), threads=2)
    for entry in ours:
        check_same(entry, theirs[entry["task"]])
    by_task = {entry["task"]: entry for entry in ours}
    assert by_task["lambada"]["truncated"] == 1
    # Neither all nor none: a comparison that could also fail.
    assert all(0.05 < entry["accuracy"]["value"] < 0.95 for entry in ours[1:])


def test_our_scores_of_the_samples_are_those_of_the_harness(
    harness: Any, demo: ModelFolder, tmp_path: Path, test_data: Path
) -> None:
    from pocketlm.lm_eval import PocketLM

    names = {"lambada": "lambada_openai_1000", "hellaswag": "hellaswag_1000", "piqa": "piqa"}
    limit = int(os.environ.get("POCKETLM_TEST_ITEMS", "50"))
    tasks = [read_task(test_data / "evals" / f"{name}.jsonl", limit) for name in names.values()]
    for (name, (include, split)), task in zip(TASKS.items(), tasks, strict=True):
        found = []
        for line in task.path.read_text(encoding="utf-8").splitlines()[:limit]:
            fields = json.loads(line)
            if name == "lambada":
                fields = {"text": f"{fields['context']} {fields['continuation']}"}
            elif name == "piqa":
                goal = fields["query"].removeprefix("Question: ").removesuffix("\n")
                one, other = fields["choices"]
                fields = {"goal": goal, "sol1": one, "sol2": other, "label": fields["gold"]}
            found.append(json.dumps(fields) + "\n")
        (tmp_path / f"{name}.jsonl").write_text("".join(found))
        write_yaml(harness, tmp_path, name, include, split, tmp_path / f"{name}.jsonl")
    theirs = their_results(tmp_path, PocketLM(str(demo.path), provider="cpu"), list(names))
    ours = measure_tasks({"demo": demo}, tasks, threads=2)
    for name, entry in zip(names, ours, strict=True):
        print(name, entry)
        check_same(entry, theirs[name])


def test_the_command_line_knows_the_model(
    harness: Any, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    write_tasks(harness, tmp_path)
    arguments = ["--model", "pocketlm", "--model_args", f"path={tiny_folder.path},threads=1"]
    arguments += ["--include_path", str(tmp_path), "--tasks", "local_piqa", "--limit", "4"]
    ended = subprocess.run(
        [sys.executable, "-m", "pocketlm.lm_eval", *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert "|local_piqa|" in ended.stdout
    assert f"pocketlm ({{'path': '{tiny_folder.path}', 'threads': 1}})" in ended.stdout


def test_the_entry_point_of_the_harness_is_the_class(harness: Any) -> None:
    """Releases after 0.4.13 look models up there: ``lm_eval --model pocketlm`` needs no more."""
    from lm_eval.api.registry import Registry

    from pocketlm.lm_eval import PocketLM

    (found,) = entry_points(group="lm_eval.models", name="pocketlm")
    registry: Any = Registry("model")
    registry.register("pocketlm", target=found)
    assert registry.get("pocketlm") is PocketLM


# ---- the class ----


@given(context=st.text(alphabet="ab the.\n\té", max_size=12), continuation=st.text(max_size=8))
def test_pairs_are_cut_as_the_harness_cuts_them(
    tiny_lm: Any, context: str, continuation: str
) -> None:
    tokenizer, start = tiny_lm.model.tokenizer, tiny_lm.eot_token_id
    assume(context.strip())  # of an empty one the harness takes care elsewhere
    theirs = tiny_lm._encode_pair(context, continuation)
    if theirs[1]:
        assert encode_pair(tokenizer, context, continuation, start) == theirs


@pytest.fixture
def request_of(harness: Any) -> Any:
    from lm_eval.api.instance import Instance

    def make(kind: str, *arguments: Any) -> Any:
        return Instance(request_type=kind, doc={}, arguments=arguments, idx=0)

    return make


@pytest.fixture(scope="module")
def tiny_lm(harness: Any, tiny_folder: ModelFolder) -> Any:
    from pocketlm.lm_eval import PocketLM

    return PocketLM(str(tiny_folder.path), threads=1)


TEXT = "The other story of that house, and the rain in the heart of it. " * 12


@pytest.mark.parametrize("length", [None, 17])
def test_a_rolling_likelihood_is_that_of_all_tokens(
    length: int | None, tiny_folder: ModelFolder, request_of: Any, harness: Any
) -> None:
    """Each token once, each window from its beginning; checked by feeding one token at a time."""
    from pocketlm.lm_eval import PocketLM

    lm = PocketLM(str(tiny_folder.path), threads=1, max_length=length)
    ids = [lm.eot_token_id, *lm.tok_encode(TEXT)]
    assert len(ids) > 2 * lm.max_length
    total, done = 0.0, 1
    while done < len(ids):
        end = min(done + lm.max_length, len(ids))
        window = ids[max(0, end - lm.max_length - 1) : end]
        cache = lm.model.session.new_cache()
        for i, token in enumerate(window[:-1], start=end - len(window)):
            logits = lm.model.session.step([token], cache).astype(np.float64)
            if i + 1 >= done:
                total += logits[ids[i + 1]] - math.log(np.exp(logits).sum())
        done = end
    found = lm.loglikelihood_rolling(
        [request_of("loglikelihood_rolling", TEXT), request_of("loglikelihood_rolling", "")], True
    )
    assert found == [pytest.approx(total, rel=1e-5), 0]


def generated(lm: Any, request_of: Any, context: str, **options: Any) -> str:
    (text,) = lm.generate_until([request_of("generate_until", context, options)], True)
    return str(text)


def test_greedy_generation_is_ours_up_to_the_stop(tiny_lm: Any, request_of: Any) -> None:
    whole = tiny_lm.model.generate("The other", max_tokens=20, temperature=0).text
    stop = whole[9:11]
    options = {"until": [stop, ""], "max_gen_toks": 20, "do_sample": False, "temperature": 0.7}
    options["top_k"] = 0  # no limit
    assert generated(tiny_lm, request_of, "The other", **options) == whole[: whole.index(stop)]
    assert generated(tiny_lm, request_of, "The other", max_new_tokens=20) == whole


def test_a_context_is_cut_so_that_the_text_fits(tiny_lm: Any, request_of: Any) -> None:
    ids = tiny_lm.tok_encode(TEXT)
    expected = tiny_lm.model.generate(ids[-140:], max_tokens=20, temperature=0).text
    assert generated(tiny_lm, request_of, TEXT, max_gen_toks=20) == expected
    with pytest.raises(RequestError, match="max_gen_toks is 160, expected less than the context"):
        generated(tiny_lm, request_of, "a", max_gen_toks=160)


def test_sampling_is_repeatable_by_the_harnesss_seed(
    tiny_lm: Any, request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "top_k": 50, "until": []}
    texts = []
    for seed in (7, 7, 8):
        np.random.seed(seed)
        texts.append(generated(tiny_lm, request_of, "The", max_gen_toks=20, **options))
    assert texts[0] == texts[1] != texts[2]


def test_what_we_do_not_have_is_told(
    tiny_lm: Any,
    request_of: Any,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("lm_eval"), "propagate", True)
    generated(tiny_lm, request_of, "The", max_gen_toks=2, num_beams=4)
    assert "left out what pocketlm does not have: num_beams" in caplog.text
    tiny_lm.loglikelihood([request_of("loglikelihood", TEXT, " rain")], True)
    assert re.search(r"left out \d+ tokens of a context that is too long", caplog.text)


def test_a_chat_template_is_applied_and_its_turn_ends_an_answer(
    harness: Any, tiny_folder: ModelFolder, tmp_path: Path
) -> None:
    from pocketlm.lm_eval import PocketLM

    source = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}<|endoftext|>{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    folder = with_files(tiny_folder, tmp_path / "chat", {"chat_template.jinja": source})
    lm = PocketLM(str(folder.path), threads=1)
    history = [{"role": "user", "content": "Hi"}]
    assert lm.apply_chat_template(history) == "[user]Hi<|endoftext|>[assistant]"
    history += [{"role": "assistant", "content": "So "}]
    text = lm.apply_chat_template(history, add_generation_prompt=False)
    assert text == "[user]Hi<|endoftext|>[assistant]So"
    assert lm.chat_template(True) == source
    assert lm.tokenizer_name.startswith("pocketlm-")


def test_a_base_model_says_that_it_has_no_template(tiny_lm: Any) -> None:
    assert tiny_lm.chat_template(True) is None
    with pytest.raises(RequestError, match="found no chat template"):
        tiny_lm.apply_chat_template([{"role": "user", "content": "Hi"}])


def test_a_text_that_begins_with_the_start_token_gets_no_other(tiny_lm: Any) -> None:
    start = tiny_lm.eot_token_id
    assert tiny_lm.tok_encode("<|endoftext|>a") == [start, *tiny_lm.tok_encode("a")]
