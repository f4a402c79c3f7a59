"""What holds tensors is looked through once, however often it is named."""

from __future__ import annotations

import torch

from piecewise_core.runtime.closure_walk import anchors_in


def test_the_entry_that_holds_a_tensor_is_found_once_however_many_names_its_dict_is_given_by():
    tensor, other = torch.zeros(2), torch.zeros(2)
    names = {"table": tensor, "other": other, "again": tensor, "number": 3}
    held = [other, tensor]
    containers = [(names, "table"), (names, "number"), held, (names, "gone"), names, held]
    found = list(anchors_in(containers, {id(tensor)}, ()))
    where = [(id(anchor.holder), anchor.key) for anchor in found]
    assert where == [(id(names), "table"), (id(names), "again"), (id(held), 1)]
    assert all(anchor.value is tensor for anchor in found)


def test_classes_are_looked_through_each_by_itself():
    tensor = torch.zeros(2)
    made = [type(f"Holder{i}", (), {"table": tensor}) for i in range(3)]
    found = list(anchors_in([*made, *made], {id(tensor)}, ()))
    assert [anchor.key for anchor in found] == ["table"] * 3
    made[1].table = torch.zeros(2)
    assert [anchor.moved() for anchor in found] == [False, True, False]
