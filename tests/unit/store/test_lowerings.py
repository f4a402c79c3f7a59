"""Tables by which torch takes operators apart are in the key where a program changed them."""

from __future__ import annotations

import enum

import pytest
import torch
from torch._decomp import decomposition_table

from piecewise_core.errors import StoreError
from piecewise_core.store.lowerings import own_lowerings

ATEN = torch.ops.aten


def test_torch_s_own_tables_say_nothing():
    assert own_lowerings() == {}


def test_a_program_s_own_decomposition_is_told_by_its_code(monkeypatch):
    monkeypatch.setitem(decomposition_table, ATEN.sin.default, lambda x: x.cos())
    first = own_lowerings()
    monkeypatch.setitem(decomposition_table, ATEN.sin.default, lambda x: x.cos() + 1)
    second = own_lowerings()
    assert first.keys() == second.keys() == {"torch.decompositions"}
    assert first != second


def test_one_that_cannot_be_told_from_others_lets_nothing_be_kept(monkeypatch):
    held = torch.ones(2)
    monkeypatch.setitem(decomposition_table, ATEN.sin.default, lambda x: x + held)
    with pytest.raises(StoreError, match=r"aten\.sin\.default"):
        own_lowerings()


def test_what_torch_lowers_by_pythons_own_functions_is_no_ones_change():
    import torch._inductor.lowering  # noqa: F401  # brings its tables in

    assert own_lowerings() == {}


class Origin(enum.Enum):
    INTEGER = 1
    REAL = 2


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (torch.float32, torch.bfloat16),
        (torch.contiguous_format, torch.channels_last),
        (Origin.INTEGER, Origin.REAL),
    ],
)
def test_defaults_that_are_torch_s_constants_or_an_enum_s_are_told_apart(monkeypatch, one, other):
    """As libraries that bring operators have them: torchao's dequantize_affine."""
    digests = set()
    for default in (one, other, one):

        def lowered(x, to=default):
            return x

        monkeypatch.setitem(decomposition_table, ATEN.sin.default, lowered)
        digests.add(own_lowerings()["torch.decompositions"])
    assert len(digests) == 2
