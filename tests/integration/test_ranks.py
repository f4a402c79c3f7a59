"""Two processes over gloo that serve one model: they agree, or all say who differs, and none hangs.

The long run, of four processes and a thousand rounds, is ``python -m tests.kit.ranks.chaos``.
"""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="needs gloo",
)

USUAL = {
    "rank": 1,
    "late": False,
    "where": "capture",
    "at": 1,
    "seconds": 0.2,
    "kind": "deeper",
    "warm": True,
    "rows": [4, 8, 3, 4],
    "front": "compile",
    "timeout": 3.0,
    "config": {"padding": "capture_sizes"},
}


@pytest.fixture(scope="module")
def pool():
    from tests.kit.ranks.pool import Pool

    with Pool(2, 60.0) as made:
        yield made


def played(pool, fault, **changes):
    """What both ranks found in one round."""
    from tests.kit.ranks.chaos import judged

    spec = {**USUAL, "fault": fault, **changes}
    found = pool.round(spec)
    assert judged(spec, found)[0] == "", found
    return found


@pytest.mark.parametrize(("front", "warm"), [("compile", False), ("record", True)])
def test_ranks_capture_and_replay_the_same_sizes(pool, front, warm):
    for each in played(pool, "none", front=front, warm=warm):
        assert each["outcome"] == "agreed"
        assert each["captured"] == [[4], [8]]
        assert each["replayed"] >= 3


@pytest.mark.parametrize(("front", "at"), [("compile", 2), ("record", 4)])
def test_a_size_for_which_one_has_no_memory_is_dropped_on_all(pool, front, at):
    found = played(pool, "memory", front=front, at=at, config={"memory_limit": 1 << 30})
    assert {each["outcome"] for each in found} == {"agreed"}
    assert found[0]["captured"] == found[1]["captured"]


def test_one_that_compiles_longer_than_the_others_wait_is_waited_for(pool):
    found = played(pool, "cold", seconds=1.5, timeout=1.0, rows=[4, 4])
    assert {each["outcome"] for each in found} == {"agreed"}


@pytest.mark.parametrize(("front", "warm"), [("compile", True), ("record", True)])
def test_one_that_does_not_come_is_named(pool, front, warm):
    late = {"late": True, "where": "start", "seconds": 3.5, "timeout": 1.0}
    found = played(pool, "slow", front=front, warm=warm, **late)
    assert [each["outcome"] for each in found] == ["RanksDisagree"] * 2
    assert found[0]["rank"] == 1


def test_one_with_other_settings_is_named_on_all(pool):
    for each in played(pool, "config"):
        assert each["outcome"] == "RanksDisagree"
        assert each["rank"] == 1
        assert "capture_sizes" in each["text"]


@pytest.mark.parametrize("kind", ["deeper", "gathers"])
def test_one_with_another_model_is_named_on_all(pool, kind):
    for each in played(pool, "model", kind=kind):
        assert each["outcome"] == "RanksDisagree"
        assert each["rank"] == 1


@pytest.mark.parametrize("fault", ["weight", "release", "state"])
def test_one_that_gives_its_graphs_up_alone_is_named_before_it_pads_no_more(pool, fault):
    found = played(pool, fault, timeout=1.0)
    assert found[1]["outcome"] == "RanksDisagree"
    assert found[1]["rank"] == 0
    assert "release of graphs" in found[1]["text"]


def test_ranks_of_several_groups_agree_as_one(pool):
    for each in played(pool, "none", groups="pairs"):
        assert (each["outcome"], each["captured"]) == ("agreed", [[4], [8]])


@pytest.mark.parametrize("fault", ["ended", "anew"])
@pytest.mark.parametrize("front", ["compile", "record"])
def test_a_call_after_the_world_ended_is_named(pool, front, fault):
    for each in played(pool, fault, front=front):
        assert each["outcome"] == "RanksDisagree"
        assert "ended or begun anew" in each["text"]


def test_a_model_that_would_be_traced_anew_after_the_world_ended_says_that_first(pool):
    lazy = {"warm": False, "rows": [4, 1, 4, 5, 5], "config": {"capture": "lazy"}}
    for each in played(pool, "ended", **lazy):
        assert "ended or begun anew" in each["text"]


@pytest.mark.parametrize("where", ["compiled", "capture"])
def test_one_that_dies_before_it_serves_is_named(pool, where):
    found = played(pool, "death", timeout=1.0, warm=True, where=where)
    assert found[1]["outcome"] == "died"
    assert (found[0]["outcome"], found[0]["rank"]) == ("RanksDisagree", 1)
