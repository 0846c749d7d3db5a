"""Where a model runs: what is asked of ONNX Runtime and the driver, and a device played by the CPU.

No test needs a GPU: ``DEVICE`` takes every path of CUDA, on the provider that is there.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from pocketlm.export.errors import ProviderError, RequestError, ResourceError
from pocketlm.export.float16_attention import float16_attention_graph
from pocketlm.export.folder import ModelFolder
from pocketlm.runtime.arena import Arena, KVCache
from pocketlm.runtime.chunks import prefill
from pocketlm.runtime.decode import generate
from pocketlm.runtime.device_arena import DeviceArena
from pocketlm.runtime.providers import CPU, CUDA, check_provider, cuda_obstacle
from pocketlm.runtime.request import GREEDY, Request
from pocketlm.runtime.session import Session

IDS = [int(number) for number in np.random.default_rng(7).integers(0, 300, 160)]
DEVICE = replace(CUDA, memory="cpu", providers=CPU.providers)
CUDA_BUILD = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


class Driver:
    """Stands for libcuda: what ``cuInit`` answers, and how many devices it then counts."""

    def __init__(self, code: int = 0, devices: int = 1) -> None:
        self.code, self.devices = code, devices

    def cuInit(self, flags: int) -> int:
        return self.code

    def cuDeviceGetCount(self, count: Any) -> int:
        count._obj.value = self.devices
        return 0


@pytest.fixture
def cuda_build(monkeypatch: pytest.MonkeyPatch) -> Callable[[Driver | None], None]:
    """Makes ONNX Runtime one built for CUDA, over that driver; None: there is no driver."""

    def build(driver: Driver | None) -> None:
        def load(name: str) -> Driver:
            if driver is None:
                raise OSError(f"{name}: cannot open shared object file")
            return driver

        monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: CUDA_BUILD)
        monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
        monkeypatch.setattr(ctypes, "CDLL", load)

    return build


# What stands in the way ------------------------------------------------------------------------


def test_a_working_device_has_no_obstacle(cuda_build: Callable[[Driver], None]) -> None:
    cuda_build(Driver())
    for formats in ((), ("int4-block128", "int8-block128"), ("int8-block64",)):
        assert cuda_obstacle(formats) is None


def test_a_build_for_the_cpu_asks_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object) -> None:
        raise AssertionError("loaded or asked something")

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: CUDA_BUILD[2:])
    monkeypatch.setattr(onnxruntime, "preload_dlls", touched)
    monkeypatch.setattr(ctypes, "CDLL", touched)
    obstacle = cuda_obstacle(())
    assert obstacle is not None
    assert str(obstacle.error()).startswith(
        f"provider is 'cuda': found ONNX Runtime {onnxruntime.__version__} built without CUDA, "
        "expected onnxruntime-gpu alone; install it with: pip uninstall -y onnxruntime "
    )


def test_two_packages_in_one_place_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: CUDA_BUILD[2:])
    monkeypatch.setattr(importlib.metadata, "version", lambda package: "1.31.1")
    obstacle = cuda_obstacle(())
    assert obstacle is not None
    assert "the packages onnxruntime and onnxruntime-gpu in one place" in obstacle.found


@pytest.mark.parametrize(
    ("driver", "found"),
    [
        (None, r"no NVIDIA driver \(.*: cannot open shared object file\)"),
        (Driver(code=100), r"no CUDA device \(the driver says error 100\)"),
        (Driver(devices=0), r"no CUDA device \(the driver says error 0\)"),
    ],
)
def test_a_missing_driver_or_device_is_named(
    cuda_build: Callable[[Driver | None], None], driver: Driver | None, found: str
) -> None:
    cuda_build(driver)
    obstacle = cuda_obstacle(("int8-block128", "int8-channel"))
    assert obstacle is not None
    with pytest.raises(
        ProviderError, match=f"found {found}, expected an NVIDIA GPU and its driver; install"
    ):
        raise obstacle.error()


def test_a_format_without_cuda_kernels_is_named(cuda_build: Callable[[Driver], None]) -> None:
    cuda_build(Driver())
    obstacle = cuda_obstacle(("int8-block128", "int8-channel"))
    assert obstacle is not None
    with pytest.raises(
        ProviderError,
        match="found weights in int8-channel, whose products of integers have no CUDA kernel, "
        "expected int4, int8-weight or fp32; export it again with --precision int4",
    ):
        raise obstacle.error()


def test_a_library_that_does_not_load_is_named(
    cuda_build: Callable[[Driver], None],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def preload() -> None:
        print("Failed to load libcublasLt.so.13: libcublasLt.so.13: cannot open it: No such file")
        print("Please follow https://onnxruntime.ai/docs/install to install CUDA.")

    cuda_build(Driver())
    monkeypatch.setattr(onnxruntime, "preload_dlls", preload)
    monkeypatch.setattr(onnxruntime, "cuda_version", "13.0")
    obstacle = cuda_obstacle(("int4-block128",))
    assert obstacle is not None
    assert str(obstacle.error()) == (
        "provider is 'cuda': found no libcublasLt.so.13 (libcublasLt.so.13: cannot open it: No "
        "such file), expected the libraries of CUDA 13.0; install them with: pip install "
        '"onnxruntime-gpu[cuda,cudnn]"'
    )
    # What ONNX Runtime prints of it is ours to tell, and stdout the caller's.
    assert capfd.readouterr().out == ""


def test_a_provider_left_out_silently_is_noticed(
    tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = onnxruntime.InferenceSession

    def without_cuda(*arguments: Any, providers: Any, **others: Any) -> Any:
        """As ONNX Runtime does when a library of CUDA is missing."""
        return opened(*arguments, providers=providers[1:], **others)

    monkeypatch.setattr(onnxruntime, "InferenceSession", without_cuda)
    with pytest.raises(ProviderError, match=r"could not start CUDA \(its log above says why\)"):
        Session(tiny_folder, threads=1, place=CUDA)


def test_a_session_that_cannot_be_opened_on_the_device_says_so(
    tiny_folder: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(*_: Any, **__: Any) -> None:
        raise RuntimeError("CUDA failure 2: out of memory\nmore lines")

    monkeypatch.setattr(onnxruntime, "InferenceSession", out_of_memory)
    with pytest.raises(
        ProviderError,
        match="^provider is 'cuda': found CUDA failure 2: out of memory, expected a session; "
        "free memory on the device, or use the provider cpu$",
    ):
        Session(tiny_folder, threads=1, place=CUDA)


def test_an_unknown_provider_is_refused() -> None:
    with pytest.raises(RequestError, match="provider is 'gpu', expected one of: auto, cpu, cuda"):
        check_provider("gpu")


# A device played by the CPU ----------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [(), (3, 2, 9, 1, 30), (160,)])
def test_device_steps_equal_those_of_the_cpu(
    tiny_session: Session, tiny_folder: ModelFolder, sizes: tuple[int, ...]
) -> None:
    """Inputs bound anew each step, a cache of OrtValues that grows: the same bits."""
    session = Session(tiny_folder, threads=1, place=DEVICE)
    device = DeviceArena(session.shape, "cpu", np.float32, capacity=4).new()
    host = Arena(session.shape, capacity=4).new()
    start, left = 0, list(sizes)
    while start < len(IDS):
        stop = start + (left.pop(0) if left else 1)
        found = session.step(IDS[start:stop], device)
        np.testing.assert_array_equal(found, tiny_session.step(IDS[start:stop], host))
        assert device.arena.capacity == host.arena.capacity
        assert device.num_bytes == host.num_bytes
        start = stop
    assert device.length == 160


def test_a_device_cache_truncates(tiny_folder: ModelFolder) -> None:
    session = Session(tiny_folder, threads=1, place=DEVICE)
    cache = DeviceArena(session.shape, "cpu", np.float32, capacity=4).new()
    expected = prefill(session, IDS[:20], cache)
    session.step(IDS[20:40], cache)
    cache.truncate(10)
    session.step(IDS[10:19], cache)
    np.testing.assert_allclose(session.step(IDS[19:20], cache), expected, rtol=0, atol=1e-4)
    cache.truncate(0)
    np.testing.assert_array_equal(prefill(session, IDS[:20], cache), expected)


def float16_session(folder: ModelFolder) -> Session:
    graph = float16_attention_graph(folder)
    return Session(folder, threads=1, place=DEVICE, graph=graph)


def test_a_device_session_keeps_a_float16_cache_of_half_the_bytes(
    tiny_session: Session, tiny_folder: ModelFolder
) -> None:
    session = float16_session(tiny_folder)
    cache = session.new_cache()
    assert isinstance(cache, KVCache) and isinstance(cache.arena, DeviceArena)
    assert 2 * cache.num_bytes == tiny_session.new_caches()().num_bytes
    host = tiny_session.new_cache()
    expected = [tiny_session.step([token], host) for token in IDS]
    found = [session.step([token], cache) for token in IDS]
    # What half precision loses, see test_float16_attention.
    assert np.abs(np.subtract(found, expected)).max() < 5e-3 * np.abs(expected).max()


def test_prefill_in_chunks_equals_one_prefill_in_float16(tiny_folder: ModelFolder) -> None:
    session = float16_session(tiny_folder)
    whole = prefill(session, IDS, session.new_cache())
    chunked = prefill(session, IDS, session.new_cache(), chunk_size=7)
    np.testing.assert_allclose(chunked, whole, rtol=0, atol=5e-3 * float(np.abs(whole).max()))


def test_the_loop_generates_on_a_device(tiny_session: Session, tiny_folder: ModelFolder) -> None:
    found, expected = (
        [step.token for step in generate(session, Request(IDS[:5], GREEDY, 12))]
        for session in (float16_session(tiny_folder), tiny_session)
    )
    assert found == expected


def test_a_cache_that_does_not_fit_says_so(tiny_session: Session) -> None:
    """This ONNX Runtime has no such device: what it raises stands for what a full one raises."""
    with pytest.raises(
        ResourceError,
        match="provider is 'nowhere': found no memory for a KV cache of 128 tokens .*, expected "
        "8192 bytes for each of 4 buffers; shorten the text, or use the provider cpu",
    ):
        DeviceArena(tiny_session.shape, "nowhere", np.float16).new()
