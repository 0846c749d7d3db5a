"""Errors as a client hears of them: which field, whether to try again, and no path of ours."""

from __future__ import annotations

import pytest

from pocketlm.export.errors import ModelFolderError, RequestError, ResourceError
from pocketlm.runtime.server.errors import ApiError, as_api_error, unopened

pytestmark = pytest.mark.serve


@pytest.mark.parametrize(
    ("error", "status", "is_tried_again"),
    [
        (RequestError("top_k is 0, expected more"), 400, False),
        (ResourceError("memory ran out"), 503, True),
        (ModelFolderError("x"), 503, False),
        (ValueError("x"), 500, False),
    ],
)
def test_only_what_may_go_better_is_tried_again(
    error: Exception, status: int, is_tried_again: bool
) -> None:
    """OpenAI's clients try all of 500 and more again, unless a header says otherwise."""
    answer = as_api_error(error)
    assert answer.status == status
    assert (answer.headers.get("Retry-After") == "2") == is_tried_again
    if status >= 500:
        assert (answer.headers.get("x-should-retry") == "false") != is_tried_again


@pytest.mark.parametrize(
    "path", ["/srv-models/my-out", "/model", "~/out/fp32", "C:" + r"\models\out"]
)
def test_no_error_of_a_server_tells_a_path(path: str) -> None:
    error = ModelFolderError(f"{path}: the files were changed; load {path}, or 1/2")
    message = as_api_error(error).message
    assert message == "a file: the files were changed; load a file, or 1/2"


def test_the_name_of_a_model_stands_for_its_folder() -> None:
    error = RequestError("out: found no chat template, without one; see (out) or /x/out, output")
    answer = as_api_error(error, {"out": "tiny", "/x/out": r"other\1"})
    assert answer.message == (
        r"tiny: found no chat template, without one; see (tiny) or other\1, output"
    )


def test_a_file_of_a_model_is_told_without_its_folder() -> None:
    error = ModelFolderError("/x/out/tokenizer_config.json: found no JSON")
    assert as_api_error(error, {"/x/out": "tiny"}).message == (
        "tiny/tokenizer_config.json: found no JSON"
    )


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ("template_args has x, expected another", "chat_template_kwargs"),
        ("tools[0].function.name is 5, expected a word", "tools[0].function.name"),
        ("found no messages in the body, expected it", "messages"),
        ("token id 9 is in banned_tokens, expected less", "banned_tokens"),
    ],
)
def test_a_field_is_named_as_a_body_names_it(message: str, field: str) -> None:
    answer = as_api_error(RequestError(message))
    assert answer.param == field and field in answer.message


def test_too_little_memory_for_a_model_may_go_better() -> None:
    answer = unopened("tiny", ResourceError("/x: opening it needs 9 GB"))
    assert answer.status == 503 and answer.headers["Retry-After"] == "2"
    assert "/x" not in answer.message


def test_a_field_is_named_up_to_a_length() -> None:
    assert len(ApiError(400, "x", param="a" * 5000).body["error"]["param"]) == 100
