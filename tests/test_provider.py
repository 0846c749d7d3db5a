"""``provider`` from the front door: what auto, cpu and cuda give with and without a device."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from click.testing import CliRunner

import pocketlm
from pocketlm import cli
from pocketlm.commands.options import MODEL_OPTIONS
from pocketlm.commands.run import command as run
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime import opening, placement, providers
from pocketlm.runtime.arena import KVCache
from pocketlm.runtime.device_arena import DeviceArena
from pocketlm.runtime.providers import CPU, CUDA, FallbackWarning, Obstacle

NO_DRIVER = Obstacle("no NVIDIA driver", "an NVIDIA GPU and its driver", "use --provider cpu")
SAID = "found no NVIDIA driver, expected an NVIDIA GPU and its driver; use --provider cpu"


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime as if built for CUDA, with nothing in the way and the CPU as its device."""
    monkeypatch.setattr(placement, "has_cuda_build", lambda: True)
    monkeypatch.setattr(placement, "cuda_obstacle", lambda formats: None)
    monkeypatch.setattr(placement, "CUDA", replace(CUDA, memory="cpu", providers=CPU.providers))


@pytest.fixture
def no_driver(cuda_build: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same without a driver."""
    monkeypatch.setattr(placement, "cuda_obstacle", lambda formats: NO_DRIVER)


@pytest.mark.parametrize("provider", ["auto", "cpu"])
def test_a_build_for_the_cpu_runs_on_it_without_a_word(
    tiny_folder: ModelFolder, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    model = pocketlm.load(tiny_folder.path, threads=1, provider=provider)
    assert (model.session.place.name, model.fallback) == ("cpu", None)


def test_cuda_on_a_build_for_the_cpu_is_refused(
    tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(pocketlm.ProviderError, match="found ONNX Runtime .* built without CUDA"):
        pocketlm.load(tiny_folder.path, provider="cuda")


def test_an_unknown_provider_is_refused(tiny_folder: ModelFolder) -> None:
    with pytest.raises(pocketlm.RequestError, match="provider is 'tpu', expected one of: auto"):
        pocketlm.load(tiny_folder.path, provider="tpu")


@pytest.mark.parametrize("provider", ["auto", "cuda"])
def test_a_device_is_taken_with_its_cache(
    tiny_folder: ModelFolder, tiny_model: pocketlm.Model, provider: str, cuda_build: None
) -> None:
    model = pocketlm.load(tiny_folder.path, threads=1, provider=provider)
    assert (model.session.place.name, model.fallback) == ("cuda", None)
    cache = model.session.new_cache()
    assert isinstance(cache, KVCache) and isinstance(cache.arena, DeviceArena)
    found = model.generate("a word", max_tokens=8, temperature=0)
    assert found.token_ids == tiny_model.generate("a word", max_tokens=8, temperature=0).token_ids


def test_cpu_is_the_cpu_whatever_there_is(tiny_folder: ModelFolder, cuda_build: None) -> None:
    assert pocketlm.load(tiny_folder.path, provider="cpu").session.place is CPU


def test_auto_warns_when_the_device_cannot_be_had(
    tiny_folder: ModelFolder, no_driver: None
) -> None:
    with pytest.warns(FallbackWarning, match=f"^running on the CPU: {SAID}$"):
        model = pocketlm.load(tiny_folder.path, threads=1)
    assert model.session.place is CPU
    assert model.fallback == f"running on the CPU: {SAID}"


def test_auto_falls_back_when_the_session_does_not_start(
    tiny_folder: ModelFolder, cuda_build: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing spoke against it until ONNX Runtime left the provider out."""
    monkeypatch.setattr(opening, "refused", lambda _, place: place is not CPU)
    with pytest.raises(pocketlm.ProviderError, match="found that ONNX Runtime could not start"):
        pocketlm.load(tiny_folder.path, threads=1, provider="cuda")
    with pytest.warns(FallbackWarning):
        model = pocketlm.load(tiny_folder.path, threads=1)
    assert model.session.place is CPU
    assert "found that ONNX Runtime could not start CUDA" in str(model.fallback)


def test_without_the_exporter_cuda_names_its_extra(
    tiny_folder: ModelFolder, cuda_build: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "pocketlm.export.float16_attention", raising=False)
    monkeypatch.setitem(sys.modules, "onnx_ir", None)
    with pytest.raises(pocketlm.MissingExtraError, match=r'pip install "pocketlm\[cuda\]"'):
        pocketlm.load(tiny_folder.path, provider="cuda")
    with pytest.warns(FallbackWarning, match=r"on the CPU: running on CUDA needs the package"):
        assert pocketlm.load(tiny_folder.path).session.place is CPU


# The command line --------------------------------------------------------------------------------


def test_the_option_names_the_providers() -> None:
    """Spelled out there, so that verbs that only write need no ONNX Runtime."""
    option = MODEL_OPTIONS["provider"](lambda: None).__click_params__[0]  # type: ignore[attr-defined]
    assert tuple(option.type.choices) == providers.PROVIDERS


def output(folder: ModelFolder, *options: str) -> tuple[str, str]:
    """stdout and stderr of a short run."""
    arguments = [str(folder.path), "a", "--max-tokens", "3", "--seed", "1", *options]
    result = CliRunner().invoke(run, arguments, catch_exceptions=False)
    return result.stdout, result.stderr


def test_auto_says_in_one_line_that_it_falls_back(
    tiny_folder: ModelFolder, no_driver: None
) -> None:
    stdout, stderr = output(tiny_folder, "--json")
    assert stderr == f"pocketlm: running on the CPU: {SAID}\n"
    result: dict[str, Any] = json.loads(stdout)
    assert (result["provider"], result["fallback"]) == ("cpu", stderr[10:-1])


def test_stats_and_json_name_the_provider(tiny_folder: ModelFolder, cuda_build: None) -> None:
    stdout, stderr = output(tiny_folder, "--json", "--stats")
    assert json.loads(stdout)["provider"] == "cuda"
    assert json.loads(stdout)["fallback"] is None
    assert " threads on cuda, " in stderr
    assert " threads on cpu, " in output(tiny_folder, "--stats", "--provider", "cpu")[1]


def test_cuda_that_cannot_be_had_ends_in_one_line(
    tiny_folder: ModelFolder, no_driver: None, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["run", str(tiny_folder.path), "a", "--provider", "cuda"])
    assert ended.value.code == 2
    assert capsys.readouterr() == ("", f"pocketlm: --provider is 'cuda': {SAID}\n")


def test_the_folder_is_the_same(tiny_folder: ModelFolder, cuda_build: None) -> None:
    """Nothing is written for a device."""
    before = {file: file.stat().st_mtime_ns for file in Path(tiny_folder.path).iterdir()}
    pocketlm.load(tiny_folder.path, threads=1, provider="cuda")
    assert {file: file.stat().st_mtime_ns for file in Path(tiny_folder.path).iterdir()} == before


def test_info_says_where_auto_would_run_it(
    tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for obstacle, line in ((NO_DRIVER, "cpu: found no NVIDIA driver"), (None, "cuda")):
        monkeypatch.setattr(providers, "cuda_obstacle", lambda formats, found=obstacle: found)
        with pytest.raises(SystemExit):
            cli.main(["info", str(tiny_folder.path)])
        assert f"\nprovider      {line}\n" in capsys.readouterr().out
