"""Tensors over memory that they do not keep: of a capture, one for each, and of a caller's."""

from __future__ import annotations

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from piecewise_core.capture.resting import addresses
from piecewise_core.capture.weak import WeakTensors, lendable, unowned, writable


def test_a_tensor_is_asked_for_once():
    asked = []
    weak = WeakTensors(lambda t: asked.append(id(t)) or t.detach())
    x, y = torch.ones(3), torch.ones(3)
    assert weak.of(x) is weak.of(x)
    assert weak.all_of((x, [y])) == (weak.of(x), weak.of(y))
    assert asked == [id(x), id(y)]


def test_the_next_tensor_of_an_id_is_another():
    weak, seen = WeakTensors(lambda t: t.clone()), set()
    for value in range(50):
        x = torch.full((2,), float(value))
        seen.add(id(x))
        assert weak.of(x).tolist() == [value, value]
        del x
    assert len(seen) < 50


def test_what_is_made_of_results_may_be_written_to_outside_of_inference_mode():
    weak = WeakTensors(writable)
    with torch.inference_mode():
        (made,) = weak.all_of((torch.ones(2),))
    made.add_(1)
    assert made.tolist() == [2, 2]


def test_a_tensor_over_memory_that_it_does_not_keep():
    owner = torch.arange(12.0).view(3, 4)
    kept = StorageWeakRef(owner.untyped_storage())
    other = unowned(owner[1:, ::2])
    assert other.tolist() == owner[1:, ::2].tolist()
    assert other.stride() == (4, 2)
    assert addresses([other]) == addresses([owner[1:, ::2]])
    other.zero_()
    assert owner[1:, ::2].count_nonzero() == 0
    del owner
    assert kept.expired()


def test_what_there_can_be_no_such_tensor_of():
    plain = torch.ones(2)
    assert lendable(plain)
    assert lendable(torch.nn.Parameter(plain))
    assert not lendable(torch.empty(0))
    assert not lendable(torch.ones(2, dtype=torch.complex64).conj())
    assert not lendable(torch.eye(2).to_mkldnn())
