"""What the tracing child does without torch: reads sizes, and puts errors into one line."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest

from pocketlm.export.errors import CheckpointError
from pocketlm.export.traced.child import TraceError, config_sizes, error_message


def config(**fields: Any) -> Any:
    found = SimpleNamespace(**fields)
    found.get_text_config = lambda: found
    return found


@pytest.mark.parametrize(
    "fields, context",
    [
        ({"max_position_embeddings": 512, "n_ctx": 99}, 512),
        ({"max_position_embeddings": None, "seq_length": 2048}, 2048),
        ({"max_seq_len": 77}, 77),
        ({}, None),
        ({"max_position_embeddings": -1}, None),
        # A trace of a short text does not change its rotation when the text grows long.
        (
            {
                "max_position_embeddings": 131072,
                "original_max_position_embeddings": 4096,
                "rope_scaling": {"type": "longrope"},
            },
            4096,
        ),
        (
            {
                "max_position_embeddings": 8192,
                "rope_scaling": {
                    "rope_type": "dynamic",
                    "original_max_position_embeddings": 2048,
                },
            },
            2048,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_scaling": {"rope_type": "llama3", "original_max_position_embeddings": 8192},
            },
            131072,
        ),
    ],
)
def test_the_context_is_as_long_as_the_trace_holds(
    fields: dict[str, Any], context: int | None
) -> None:
    assert config_sizes(config(**fields)).get("context_length") == context


def test_sizes_that_are_no_numbers_are_left_out() -> None:
    assert config_sizes(config(hidden_size=64, num_attention_heads=[2, 4])) == {"hidden_size": 64}


def chained(cause: Exception) -> Exception:
    error = OSError("Unable to load weights from pytorch checkpoint file\nfor 'x'")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error, message",
    [
        (TraceError("as it stands"), "as it stands"),
        (CheckpointError("as it stands, too"), "as it stands, too"),
        (ValueError("\n first \n second"), "ValueError: first"),
        (RuntimeError(), "RuntimeError: "),
        (
            chained(pickle.UnpicklingError("Weights only\nUnsupported GLOBAL os.system. Do this")),
            "the weights are more than weights, so they are not loaded "
            "(Unsupported GLOBAL os.system)",
        ),
        (chained(ValueError("x")), "OSError: Unable to load weights from pytorch checkpoint file"),
    ],
)
def test_errors_are_one_line(error: Exception, message: str) -> None:
    assert error_message(error) == message
