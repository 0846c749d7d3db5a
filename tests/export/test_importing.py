"""Imports of what others made: interrupted, without memory, or of a package that is not whole."""

from __future__ import annotations

import signal
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketlm.export.errors import MissingExtraError, ResourceError
from pocketlm.export.importing import importing


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell that started the tests in its background has SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize("fails", [False, True])
def test_an_interrupt_waits_for_the_end_of_an_import(fails: bool) -> None:
    whole = False
    with pytest.raises(KeyboardInterrupt), importing("it", "cli"):
        signal.raise_signal(signal.SIGINT)
        whole = True
        if fails:
            raise ImportError("numpy.core.multiarray failed to import")
    assert whole


def chained() -> ImportError:
    """As NumPy tells it: a long text around what the loader said."""
    error = ImportError("\n\nIMPORTANT: PLEASE READ THIS\n")
    error.__cause__ = ImportError("x.so: cannot open", name="numpy._core._multiarray_umath")
    return error


EMPTY = types.ModuleType("ml_dtypes")
INSTALL = "expected the whole of it; install it with: pip install --force-reinstall "
BROKEN = {
    "a part of NumPy": (
        chained(),
        f"it: found only a part of numpy (IMPORTANT: PLEASE READ THIS), {INSTALL}numpy",
    ),
    "no NumPy": (
        ModuleNotFoundError("No module named 'numpy'", name="numpy"),
        f"it: found no package numpy, {INSTALL}numpy",
    ),
    "an attribute": (
        AttributeError("no attribute 'bfloat16'", name="bfloat16", obj=EMPTY),
        f"it: found only a part of ml_dtypes (no attribute 'bfloat16'), {INSTALL}ml-dtypes",
    ),
    "a module": (
        ModuleNotFoundError("No module named 'onnx_ir.passes'", name="onnx_ir.passes"),
        f"it: found only a part of onnx_ir (No module named 'onnx_ir.passes'), {INSTALL}onnx-ir",
    ),
    "an extra": (
        ModuleNotFoundError(name="rich"),
        "it needs the package 'rich', which is not installed; "
        'install it with: pip install "pocketlm[cli]"',
    ),
}


@pytest.mark.parametrize(("error", "message"), BROKEN.values(), ids=BROKEN)
def test_what_is_not_whole_is_named_with_what_to_install(error: Exception, message: str) -> None:
    with pytest.raises(MissingExtraError) as caught, importing("it", "cli"):
        raise error
    assert str(caught.value) == message


@pytest.mark.parametrize("package", ["numpy", "tokenizers", "onnx_ir", "ml_dtypes"])
def test_an_empty_folder_is_no_package(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / package).mkdir()
    with monkeypatch.context() as patch:
        for name in [name for name in sys.modules if name.split(".")[0] == package]:
            patch.delitem(sys.modules, name)
        patch.setattr(sys, "path", [str(tmp_path)])
        with pytest.raises(MissingExtraError, match=f"only a part of {package} .an empty folder"):
            with importing("it", "cli"):
                __import__(package)
        sys.modules.pop(package)


@pytest.mark.parametrize(
    "error",
    [
        AttributeError("'int' object has no attribute 'x'", name="x", obj=3),
        ImportError("cannot import name 'x' from 'pocketlm.model'", name="pocketlm.model"),
    ],
    ids=str,
)
def test_an_error_of_our_own_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, importing("it", "cli"):
        raise error
    assert caught.value is error


def test_what_an_empty_folder_does_to_others_is_its_own_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Libraries written in C do not say what they were looking for."""
    empty = types.ModuleType("numpy")
    empty.__path__ = []
    monkeypatch.setitem(sys.modules, "numpy", empty)
    with pytest.raises(MissingExtraError, match="found only a part of numpy .an empty folder"):
        with importing("it", "cli"):
            raise ImportError("numpy._core.umath failed to import")


def test_an_import_without_memory_says_so() -> None:
    error = ImportError("a long text")
    error.__cause__ = ImportError("libx.so: failed to map segment from shared object")
    with pytest.raises(ResourceError, match="importing what it needs: found"):
        with importing("it", "cli"):
            raise error
