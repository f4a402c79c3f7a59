"""Plans whose memory went away and may come again."""

from __future__ import annotations

from piecewise_core.capture.captured import CapturedPlan
from piecewise_core.capture.resting import MOST_RESTING, Resting


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
