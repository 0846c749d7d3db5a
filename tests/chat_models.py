"""A tiny model with a chat template, and room for what tools are described with.

Its weights are random, so that it says nothing; what it is held to, it keeps to.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from checkpoint_files import gpt2_config, gpt2_tensors, write_checkpoint
from model_folders import with_files

from pocketlm.export.checkpoint import open_checkpoint
from pocketlm.export.folder import ModelFolder
from pocketlm.export.writing import export_model

# Knows nothing of functions.
PLAIN = """\
{% for message in messages %}{{ message.role ~ ': ' ~ message.content ~ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}assistant: {% endif %}"""

# Shows them as those of Hermes and Qwen do.
HERMES = """\
{% if tools %}{% for tool in tools %}{{ tool | tojson ~ '\\n' }}{% endfor %}{% endif %}\
{% for message in messages %}{{ message.role ~ ': ' ~ message.content }}\
{% for call in message.tool_calls or [] %}<tool_call>\\n{"name": "{{ call.function.name }}", \
"arguments": {{ call.function.arguments | tojson }}}\\n</tool_call>{% endfor %}{{ '\\n' }}\
{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"""

# Has the word, but tells a model nothing of what it is given.
DEAF = PLAIN + "{% if tools is none %}{% endif %}"

TEMPLATES = {"plain": PLAIN, "hermes": HERMES, "deaf": DEAF}

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Paris", "Seoul"]},
                "unit": {"enum": ["C", "F"]},
            },
            "required": ["city", "unit"],
        },
    },
}
NOW: dict[str, Any] = {"type": "function", "function": {"name": "now"}}
CAT: dict[str, Any] = {
    "type": "object",
    "properties": {"kind": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "maximum": 9}},
    "required": ["kind", "age"],
    "additionalProperties": False,
}


def base_model(folder: Path) -> ModelFolder:
    """One that continues texts, written into ``folder``."""
    config = gpt2_config(vocab_size=300, n_positions=2048)
    tensors = {
        name: values * 5 if values.ndim == 2 else values
        for name, values in gpt2_tensors(config, seed=1).items()
    }
    return export_model(
        open_checkpoint(write_checkpoint(folder / "checkpoint", config, tensors)), folder / "base"
    )


def chat_model(base: ModelFolder, folder: Path, template: str = PLAIN) -> ModelFolder:
    """The same with a ``template``."""
    return with_files(
        base,
        folder,
        {
            "tokenizer_config.json": json.dumps(
                {"chat_template": template, "eos_token": "<|endoftext|>"}
            )
        },
    )
