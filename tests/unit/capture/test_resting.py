"""Plans whose memory went away and may come again."""

from __future__ import annotations

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from piecewise_core.capture.captured import CapturedPlan
from piecewise_core.capture.resting import MOST_RESTING, Resting, addresses, lendable, unowned


def plan(*at, size=1):
    nothing = (), (), (), (), ()
    return CapturedPlan((size,), lambda tensors, sizes: None, *nothing, at=at)


def test_plans_come_back_by_where_their_tensors_lay():
    resting, one, two = Resting(), plan(1, 2), plan(1, 2, size=2)
    assert resting.add([one, two]) == []
    assert resting.take((1, 3)) == []
    assert resting.take((1, 2)) == [one, two]
    assert resting.take((1, 2)) == []
    assert not resting


def test_those_of_the_oldest_addresses_go_first():
    resting = Resting()
    plans = [plan(at) for at in range(MOST_RESTING + 1)]
    assert [left for each in plans for left in resting.add([each])] == plans[:1]
    assert resting.clear() == plans[1:]
    assert not resting


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
