"""``import pocketlm``: the names it promises exist, and a missing one is an ordinary error."""

from __future__ import annotations

import inspect

import pytest

import pocketlm


def test_every_promised_name_exists() -> None:
    for name in pocketlm.__all__:
        assert getattr(pocketlm, name) is not None
    assert dir(pocketlm) == sorted(pocketlm.__all__)
    assert sorted(set(pocketlm.__all__)) == sorted(pocketlm.__all__)


def test_every_promised_name_is_found_where_it_lives() -> None:
    homes = {name for names in pocketlm._HOMES.values() for name in names}
    assert homes | {"__version__"} == set(pocketlm.__all__)
    for module, names in pocketlm._HOMES.items():
        for name in names:
            assert getattr(pocketlm, name).__module__ == module


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Modell'"):
        getattr(pocketlm, "Modell")  # noqa: B009


def test_folders_stay_packages() -> None:
    import pocketlm.export
    import pocketlm.quantize
    import pocketlm.runtime

    for package in (pocketlm.export, pocketlm.quantize, pocketlm.runtime):
        assert inspect.ismodule(package)


def test_every_error_of_ours_is_promised() -> None:
    errors = [
        value
        for value in vars(pocketlm.export.errors).values()
        if inspect.isclass(value) and issubclass(value, pocketlm.PocketLMError)
    ]
    assert {error.__name__ for error in errors} <= set(pocketlm.__all__)
    assert all(error.exit_code in (1, 2, 3, 4) for error in errors)
