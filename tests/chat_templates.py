"""Chat templates written here, each with what published ones of its family do, and their texts.

Used by the unit tests, which know the texts, and by the comparison with transformers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

Messages = list[dict[str, str]]

QUESTION: Messages = [{"role": "user", "content": " Why is the sky blue?\n"}]
TALK: Messages = [
    {"role": "system", "content": "Answer in one sentence."},
    {"role": "user", "content": "Hi <b>&</b> 'hello'"},
    {"role": "assistant", "content": "Good day."},
    {"role": "user", "content": "하늘 🌤 \u2028 \\n"},
]


@dataclass(frozen=True)
class Style:
    """A template, the special tokens in its tokenizer's config, and what it makes of messages."""

    source: str
    tokens: dict[str, str]
    question: str  # QUESTION, with the beginning of an answer
    talk: str | None  # TALK, likewise; None where the template refuses a system message
    specials: tuple[str, ...] = field(default=())  # what its tokenizer has


LLAMA3 = Style(
    source="""\
{{- bos_token }}
{%- for message in messages %}
    {%- set head = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' %}
    {{- head + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    tokens={"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"},
    question="<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nWhy is the sky blue?"
    "<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
    talk="<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nAnswer in one sentence."
    "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi <b>&</b> 'hello'<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nGood day.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n하늘 🌤 \u2028 \\n<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    specials=(
        *("<|begin_of_text|>", "<|end_of_text|>"),
        *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
)

CHATML = Style(
    source="""\
{% if messages[0].role != 'system' %}
{{ '<|im_start|>system\\nYou are helpful.<|im_end|>\\n' }}
{%- endif %}
{% for message in messages %}
    {% if loop.first and not message.content %}
        {% continue %}
    {% endif %}
{{ '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>' ~ '\\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    tokens={"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"},
    question="<|im_start|>system\nYou are helpful.<|im_end|>\n"
    "<|im_start|>user\n Why is the sky blue?\n<|im_end|>\n<|im_start|>assistant\n",
    talk="<|im_start|>system\nAnswer in one sentence.<|im_end|>\n"
    "<|im_start|>user\nHi <b>&</b> 'hello'<|im_end|>\n"
    "<|im_start|>assistant\nGood day.<|im_end|>\n"
    "<|im_start|>user\n하늘 🌤 \u2028 \\n<|im_end|>\n<|im_start|>assistant\n",
    specials=("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
)

INST = Style(
    source="""\
{%- set told = namespace(text='', turn=0) -%}
{{ bos_token }}
{%- for message in messages -%}
    {%- if message['role'] == 'system' -%}
        {%- set told.text = message['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- if (message['role'] == 'user') != (told.turn % 2 == 0) -%}
            {{ raise_exception('After user comes assistant, and so on') }}
        {%- endif -%}
        {%- set told.turn = told.turn + 1 -%}
        {%- if message['role'] == 'user' -%}
            {{ '[INST] ' + (told.text if loop.last else '') + message['content'] + ' [/INST]' }}
        {%- else -%}
            {%- generation -%}
            {{ ' ' + message['content'] + eos_token }}
            {%- endgeneration -%}
        {%- endif -%}
    {%- endif -%}
{%- endfor -%}
""",
    tokens={"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    question="<s>[INST]  Why is the sky blue?\n [/INST]",
    talk="<s>[INST] Hi <b>&</b> 'hello' [/INST] Good day.</s>"
    "[INST] Answer in one sentence.\n\n하늘 🌤 \u2028 \\n [/INST]",
    specials=("<unk>", "<s>", "</s>"),
)

TURNS = Style(
    source="""\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('No system role here') }}\
{% endif %}{% for message in messages %}{% if message['role'] == 'assistant' %}\
{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}\
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}\
{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}""",
    tokens={"bos_token": "<bos>", "eos_token": "<eos>"},
    question="<bos><start_of_turn>user\nWhy is the sky blue?<end_of_turn>\n<start_of_turn>model\n",
    talk=None,
    specials=("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
)

JSON = Style(
    source="""\
{%- for message in messages %}
    {%- if loop.index > 3 %}{% break %}{% endif %}
    {{- message | tojson }}
    {{- {'b': [1, none], 'a': message.content} | tojson(indent=2, sort_keys=true) }}
{%- endfor %}
{{- tools is none }}{{ documents is none }}{{ undefined_name }}{{ bos_token is defined }}
""",
    tokens={"eos_token": "<e>"},
    question='{"role": "user", "content": " Why is the sky blue?\\n"}'
    '{\n  "a": " Why is the sky blue?\\n",\n  "b": [\n    1,\n    null\n  ]\n}TrueTrueFalse',
    talk='{"role": "system", "content": "Answer in one sentence."}'
    '{\n  "a": "Answer in one sentence.",\n  "b": [\n    1,\n    null\n  ]\n}'
    '{"role": "user", "content": "Hi <b>&</b> \'hello\'"}'
    '{\n  "a": "Hi <b>&</b> \'hello\'",\n  "b": [\n    1,\n    null\n  ]\n}'
    '{"role": "assistant", "content": "Good day."}'
    '{\n  "a": "Good day.",\n  "b": [\n    1,\n    null\n  ]\n}TrueTrueFalse',
    specials=("<e>",),
)

STYLES = {"llama 3": LLAMA3, "chatml": CHATML, "inst": INST, "turns": TURNS, "json": JSON}
