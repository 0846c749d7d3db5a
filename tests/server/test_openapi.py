"""/openapi.json: it describes every endpoint, every field, and nothing that is not so."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest
from served import Served

from pocketlm.runtime.limits import MOST_LOGPROBS
from pocketlm.runtime.server.api.bodies import Body
from pocketlm.runtime.server.api.openapi import document, meanings
from pocketlm.runtime.server.app import ENDPOINTS

pytestmark = pytest.mark.serve

BODIES = [endpoint.body for endpoint in ENDPOINTS if endpoint.body is not None]


@pytest.fixture(scope="module")
def told(chats: Served) -> dict[str, Any]:
    status, found = chats.get("/openapi.json")
    assert status == 200
    assert isinstance(found, dict)
    return found


def test_every_endpoint_is_described(told: dict[str, Any]) -> None:
    described = {(method.upper(), path) for path, item in told["paths"].items() for method in item}
    served = {(one.method, re.sub(r":\w+}", "}", one.path)) for one in ENDPOINTS}
    assert described == served
    names = [one["operationId"] for item in told["paths"].values() for one in item.values()]
    assert len(set(names)) == len(names)
    assert told["openapi"].startswith("3.1")


def test_every_reference_leads_somewhere(told: dict[str, Any]) -> None:
    def references(value: Any) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [found for one in value.values() for found in references(one)]
        return (
            [found for one in value for found in references(one)] if isinstance(value, list) else []
        )

    found = set(references(told))
    assert found
    for reference in found:
        place: Any = told
        for name in reference.removeprefix("#/").split("/"):
            place = place[name]


@pytest.mark.parametrize("kind", [kind for kind in BODIES if issubclass(kind, Body)])
def test_every_field_is_explained(kind: type[msgspec.Struct], told: dict[str, Any]) -> None:
    properties = told["components"]["schemas"][kind.__name__]["properties"]
    assert set(properties) == set(kind.__struct_fields__)
    missing = [name for name, field in properties.items() if "description" not in field]
    assert missing == []
    assert meanings(kind)["model"].startswith("the name of one of /v1/models")


def test_models_are_those_that_are_served(told: dict[str, Any], chats: Served) -> None:
    names = [model["id"] for model in chats.get("/v1/models")[1]["data"]]
    completion = told["components"]["schemas"]["Completion"]["properties"]
    for field in ("model", "draft"):
        assert completion[field]["anyOf"][0]["enum"] == names
    (parameter,) = told["paths"]["/v1/models/{name}"]["get"]["parameters"]
    assert parameter["schema"]["enum"] == names


def test_bounds_are_the_engines(told: dict[str, Any]) -> None:
    completion = told["components"]["schemas"]["Completion"]["properties"]
    assert completion["logprobs"]["anyOf"][0]["maximum"] == MOST_LOGPROBS
    assert completion["top_p"]["anyOf"][0] == {
        "type": "number",
        "exclusiveMinimum": 0,
        "maximum": 1,
    }
    assert completion["beams"]["anyOf"][0]["maximum"] == 64


def test_errors_streams_and_keys_are_told() -> None:
    found = document(ENDPOINTS, ["m"], with_key=True)
    operation = found["paths"]["/v1/completions"]["post"]
    assert {"200", "400", "401", "403", "404", "413", "415", "429", "503"} <= set(
        operation["responses"]
    )
    assert set(operation["responses"]["200"]["content"]) == {
        "application/json",
        "text/event-stream",
    }
    assert found["security"] == [{"key": []}]
    assert found["paths"]["/health"]["get"]["security"] == []
    assert "401" not in found["paths"]["/health"]["get"]["responses"]
    assert document(ENDPOINTS, ["m"], with_key=False)["security"] == []
