"""Where plain Python objects hold tensors."""

from __future__ import annotations

import types

import torch

from piecewise_core.runtime.attribute_paths import globals_holding, holders_of

TENSOR, OTHER = torch.zeros(2), torch.zeros(2)


def found(start):
    return [(type(a.holder).__name__, a.key) for a in holders_of([TENSOR], [start])]


def test_a_tensor_is_found_with_every_entry_that_leads_to_it():
    start = types.SimpleNamespace(layers=[types.SimpleNamespace(keys={"now": TENSOR})])
    assert found(start) == [("dict", "now"), ("dict", "keys"), ("list", 0), ("dict", "layers")]


def test_a_tuples_items_count_for_the_entry_that_holds_the_tuple():
    assert found({"pair": (OTHER, (TENSOR,))}) == [("dict", "pair")]


def test_every_entry_of_a_tensor_is_found_and_no_entry_of_another():
    start = [TENSOR, OTHER, TENSOR]
    assert found(start) == [("list", 0), ("list", 2)]


def test_an_object_that_holds_itself_ends_the_search():
    start = {"tensor": TENSOR}
    start["self"] = start
    assert found(start) == [("dict", "tensor")]


def test_an_object_whose_attributes_cannot_be_read_is_passed_by():
    class Proxy:
        @property
        def __dict__(self):
            raise RuntimeError("nothing behind it")

    assert found([Proxy(), TENSOR]) == [("list", 1)]


def test_an_entry_has_moved_when_another_object_is_there_or_none():
    start = [OTHER, TENSOR]
    (anchor,) = holders_of([TENSOR], [start])
    assert not anchor.moved()
    start.pop()
    assert anchor.moved()
    start.append(OTHER)
    assert anchor.moved()


class Counted:
    """Counts how often somebody looks into it."""

    looks = 0

    @property
    def __dict__(self):
        Counted.looks += 1
        return {}


SHARED = types.SimpleNamespace(counted=Counted())
FIRST, SECOND, THIRD = [SHARED], {"a": SHARED}, [OTHER]


class NamesGlobals(torch.nn.Module):
    def forward(self, x):
        return x + len(FIRST) + len(SECOND) + len(THIRD)


def test_what_several_globals_lead_to_is_looked_into_once_where_no_tensor_is():
    Counted.looks = 0
    assert globals_holding([TENSOR], [NamesGlobals()]) == []
    assert Counted.looks == 1


def test_every_global_that_leads_to_a_tensor_is_found():
    SHARED.tensor = TENSOR
    try:
        found = globals_holding([TENSOR], [NamesGlobals()])
        assert {anchor.key for anchor in found} == {"FIRST", "SECOND", 0, "a", "tensor"}
    finally:
        del SHARED.tensor
