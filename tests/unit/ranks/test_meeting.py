"""Ranks meet in a store: all hear all, or all raise one error that names who did not come."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from piecewise_core.errors import RanksDisagree
from tests.kit.ranks.together import at_once, meetings

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")


def test_all_hear_what_each_said_in_every_round_and_old_rounds_leave_nothing():
    store = dist.HashStore()
    all_ = meetings(3, store=store)
    for turn in range(4):
        found = at_once(*(lambda m=m, t=turn: m.meet(f"turn {t}", [m.me, t]) for m in all_))
        assert found == [{r: [r, turn] for r in range(3)}] * 3
    keys = [f"model/{turn}/{what}" for turn in range(3) for what in (0, 1, 2, "verdict")]
    assert not any(store.check([key]) for key in keys)


def test_one_that_does_not_come_is_named_on_all_that_do():
    first, second, _ = meetings(3)
    for error in at_once(lambda: first.meet("a capture"), lambda: second.meet("a capture")):
        assert isinstance(error, RanksDisagree)
        assert error.rank == 2
        assert error.difference == "did not come to a capture"


def test_one_that_comes_late_hears_that_the_others_have_given_up():
    first, late = meetings(2, 0.2)
    with pytest.raises(RanksDisagree) as given_up:
        first.meet("a capture")
    with pytest.raises(RanksDisagree, match="rank 0 waited for this rank, 1") as told:
        late.meet("something else")
    assert given_up.value.rank == told.value.rank == 1
    assert (
        at_once(lambda: first.meet("next", 1), lambda: late.meet("next", 2)) == [{0: 1, 1: 2}] * 2
    )


def test_ranks_at_different_things_say_so_alike():
    *usual, odd = meetings(3)
    calls = [*(lambda m=m: m.meet("a capture") for m in usual), lambda: odd.meet("a release")]
    for error in at_once(*calls):
        assert isinstance(error, RanksDisagree)
        assert (error.rank, error.difference) == (2, "at a release, not a capture")


def test_one_that_works_is_waited_for_longer_than_one_that_does_not():
    store = dist.HashStore()
    first, second = meetings(2, 0.4, store)
    store.add("piecewise/busy/1", 0)

    def works():
        for _ in range(8):
            time.sleep(0.15)
            store.add("piecewise/busy/1", 1)
        return second.meet("a capture")

    assert at_once(lambda: first.meet("a capture"), works) == [{0: None, 1: None}] * 2


class Stopped:
    """A store whose holder is stopped: nothing that is asked comes back."""

    def __getattr__(self, name):
        return lambda *args: time.sleep(5)


class Gone:
    def __getattr__(self, name):
        def asked(*args):
            raise dist.DistNetworkError("connection reset")

        return asked


@pytest.mark.parametrize(("store", "says"), [(Stopped(), "did not answer"), (Gone(), "reset")])
def test_a_store_that_does_not_answer_holds_nobody_up(store, says):
    (first, _) = meetings(2, 0.2, store)
    with pytest.raises(RanksDisagree, match=says):
        first.meet("a capture")


@pytest.mark.parametrize(("store", "says"), [(Stopped(), "did not answer"), (Gone(), "reset")])
def test_nor_does_one_hold_up_who_looks_for_the_others(monkeypatch, store, says):
    from piecewise_core.ranks import team

    monkeypatch.setattr(team, "default_store", lambda: store)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_process_group_ranks", lambda group: [0, 1])
    with pytest.raises(RanksDisagree, match=says):
        team.gather([SimpleNamespace(group_name="0")], 0.2)


def test_the_odd_one_is_the_first_that_most_are_not_alike():
    from piecewise_core.ranks.meeting import odd_one

    assert odd_one({0: "a", 1: "a", 2: "b"}) == 2
    assert odd_one({0: "b", 1: "a", 2: "a"}) == 0
    assert odd_one({4: "a", 7: "b"}) == 7
    assert odd_one({0: [1], 1: [1]}) is None
