"""What is missing from a frozen application is for its maker to install: its users have no pip."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from pocketlm.export.errors import MissingExtraError, ModelFolderError
from pocketlm.export.folder import ModelFolder
from pocketlm.export.frozen import is_frozen
from pocketlm.export.importing import importing
from pocketlm.runtime.opening import check_version

MAKER = "whoever makes this application has to "


@pytest.fixture(autouse=True)
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not is_frozen()
    monkeypatch.setattr(sys, "frozen", True, raising=False)


def test_a_package_of_an_extra_is_to_be_imported_by_the_program() -> None:
    message = (
        "exporting needs the package 'onnx_ir', which this application was made without; "
        'whoever makes it has to write "import onnx_ir" in its program and freeze it again where '
        'it is installed: pip install "pocketlm[export]"'
    )
    with pytest.raises(MissingExtraError) as caught, importing("exporting", "export"):
        raise ModuleNotFoundError(name="onnx_ir")
    assert str(caught.value) == message


def test_a_package_of_which_a_part_is_inside_is_to_be_installed_whole() -> None:
    message = f"{MAKER}install it there and freeze it again: pip install --force-reinstall numpy"
    with pytest.raises(MissingExtraError, match=message), importing("running", "cli"):
        raise ImportError("x", name="numpy._core")


def test_an_old_onnxruntime_is_to_be_updated(tiny_folder: ModelFolder) -> None:
    newer = replace(tiny_folder.manifest, minimum_onnxruntime="99.0")
    message = f'{MAKER}update it there and freeze it again: pip install "onnxruntime>=99.0"'
    with pytest.raises(ModelFolderError, match=message):
        check_version(replace(tiny_folder, manifest=newer))
