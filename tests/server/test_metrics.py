"""/metrics: what was done is counted, by names that no client chooses."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families
from served import Served, served

import pocketlm
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.model import Model

pytestmark = pytest.mark.serve

Key = tuple[str, frozenset[tuple[str, str]]]


def counted(server: Served, **headers: str) -> dict[Key, float]:
    answer, data = server.send("GET", "/metrics", None, **headers)
    assert answer.status == 200
    assert str(answer.getheader("Content-Type")).startswith("text/plain; version=")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(data.decode())
        for sample in family.samples
    }


def of(found: dict[Key, float], name: str, **labels: str) -> float:
    return found.get((f"pocketlm_{name}", frozenset(labels.items())), 0.0)


@pytest.fixture
def opens(tiny_folder: ModelFolder) -> Callable[[], Model]:
    return lambda: pocketlm.load(tiny_folder.path, threads=1)


@pytest.fixture
def server(opens: Callable[[], Model]) -> Iterator[Served]:
    with served({"tiny": opens, "other": opens}, parallel=1, most_waiting=1) as running:
        yield running


def test_texts_tokens_and_seconds_are_counted_by_model(server: Served) -> None:
    asked = {"prompt": [1, 2, 3], "max_tokens": 5, "ignore_eos": True}
    for _ in range(2):
        assert server.post("/v1/completions", asked)[0] == 200
    found = counted(server)
    assert of(found, "prompt_tokens_total", model="tiny") == 6
    assert of(found, "generated_tokens_total", model="tiny") == 10
    assert of(found, "texts_total", model="tiny", reason="length") == 2
    assert of(found, "first_token_seconds_count", model="tiny") == 2
    assert of(found, "token_seconds_count", model="tiny") == 2
    assert of(found, "token_seconds_sum", model="tiny") > 0
    assert of(found, "generated_tokens_total", model="other") == 0
    assert of(found, "model_open", model="tiny") == 1
    assert of(found, "model_open", model="other") == 0
    assert of(found, "texts_running", model="tiny") == of(found, "texts_waiting", model="tiny") == 0


def test_requests_are_counted_by_endpoint_and_status_and_by_no_path(server: Served) -> None:
    server.get("/v1/models/tiny")
    server.get("/v1/models/other")
    server.get("/v1/models/none")
    server.send("GET", "/a/path/of/ones/own")
    server.post("/v1/completions", {"nonsense": 1})
    found = counted(server)
    of_models = {"endpoint": "/v1/models/{name:path}"}
    assert of(found, "requests_total", status="200", **of_models) == 2
    assert of(found, "requests_total", status="404", **of_models) == 1
    assert of(found, "requests_total", endpoint="none", status="404") == 1
    assert of(found, "requests_total", endpoint="/v1/completions", status="400") == 1
    assert "own" not in str(found)


def test_nothing_that_was_asked_is_in_them(server: Served) -> None:
    server.post("/v1/completions", {"prompt": "abracadabra", "max_tokens": 1, "user": "somebody"})
    server.post("/v1/completions", {"model": "abracadabra"})
    _, data = server.send("GET", "/metrics")
    assert b"abracadabra" not in data and b"somebody" not in data


def test_refusals_and_what_runs_are_counted(server: Served) -> None:
    assert server.post("/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200
    engine = server.service.pool.served["tiny"].engine
    assert engine is not None
    engine.num_held += 1
    assert server.post("/v1/completions", {"prompt": "a", "n": 2})[0] == 429
    engine.num_held -= 1
    assert of(counted(server), "refused_texts_total", model="tiny") == 2
    job = engine.model.new_job("a")
    engine.jobs.add(job)
    assert of(counted(server), "texts_waiting", model="tiny") == 1
    job.timings.new_tokens = 3
    found = counted(server)
    engine.jobs.discard(job)
    tokens = job.timings.prompt_tokens + 3
    assert of(found, "texts_running", model="tiny") == 1
    assert of(found, "texts_waiting", model="tiny") == 0
    per_token = engine.model.session.kv_bytes_per_token
    assert of(found, "kv_bytes", model="tiny") == tokens * per_token


def test_texts_that_are_given_up_are_counted(server: Served) -> None:
    asked = {"prompt": "a", "max_tokens": 5, "n": 1}
    assert server.post("/v1/completions", asked)[0] == 200
    engine = server.service.pool.served["tiny"].engine
    assert engine is not None
    before = of(counted(server), "texts_total", model="tiny", reason="cancelled")
    job = engine.model.new_job("a")
    job.finish("cancelled")
    engine.num_held += 1
    engine.ended(job)
    found = counted(server)
    assert of(found, "texts_total", model="tiny", reason="cancelled") == before + 1
    assert engine.num_held == 0


def test_the_process_is_told_too(server: Served) -> None:
    found = counted(server)
    assert found["process_resident_memory_bytes", frozenset()] > 1_000_000
    assert found["process_start_time_seconds", frozenset()] <= time.time()


def test_they_need_the_key(opens: Callable[[], Model]) -> None:
    with served({"tiny": opens}, api_key="sesame") as server:
        assert server.send("GET", "/metrics")[0].status == 401
        assert counted(server, Authorization="Bearer sesame")
