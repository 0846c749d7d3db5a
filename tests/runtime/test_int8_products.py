"""Whether this processor multiplies int8 exactly, and what a session is told where it does not."""

from __future__ import annotations

import pytest

from pocketlm.export.genai import SESSION_OPTIONS
from pocketlm.runtime import int8_products
from pocketlm.runtime.int8_products import options_for


@pytest.mark.parametrize("exact", [False, True])
def test_the_option_is_set_where_it_is_needed_alone(
    exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(int8_products, "are_exact", lambda: exact)
    wanted = {} if exact else SESSION_OPTIONS
    assert options_for(frozenset({"int8-channel", "int8-block128"})) == wanted
    assert options_for(frozenset({"int8-channel-asym"})) == wanted
    assert options_for(frozenset({"int4-block128", "int8-block128"})) == {}
    assert options_for(frozenset()) == {}


def test_the_probe_is_wrong_where_a_product_saturates(monkeypatch: pytest.MonkeyPatch) -> None:
    """With another number to expect it says so; what emulated processors say: tests/emulation."""
    int8_products.are_exact.cache_clear()
    monkeypatch.setattr(int8_products, "EXACT", 32 * 32767)
    assert not int8_products.are_exact()
    int8_products.are_exact.cache_clear()
