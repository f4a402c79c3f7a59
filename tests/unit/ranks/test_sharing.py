"""Symmetric memory is on all ranks or on none, and a message goes by it where it is small."""

from __future__ import annotations

import socket
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from tests.kit.ranks.shares import HostShares, Noting
from tests.kit.ranks.together import at_once, meetings

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")


@pytest.fixture
def group(monkeypatch):
    monkeypatch.setattr(dist, "get_process_group_ranks", lambda group: [0, 1])
    return SimpleNamespace(group_name="0")


def summing(slot):
    """A graph with a sum by the memory of ``slot``."""
    from piecewise_core.graph.sums import sum_over

    graph = torch.fx.Graph()
    graph.output(graph.call_function(sum_over, (graph.placeholder("x"), "sum", "0", slot)))
    return torch.fx.GraphModule({}, graph)


def begun(group, *memories):
    from piecewise_core.ranks.sharing import Sharing

    made = [Sharing(memory) for memory in memories]
    meets = [meeting.meet for meeting in meetings(len(made))]
    calls = [
        lambda one=one, meet=meet: one.begin(summing(one.slot), [group], meet)
        for one, meet in zip(made, meets, strict=True)
    ]
    assert at_once(*calls) == [None] * len(made)
    return made


def test_ranks_that_all_have_it_share_it(group):
    for one in begun(group, HostShares(), HostShares()):
        assert one.why == ""
        assert one._shares.of.keys() == {"0"}


@pytest.mark.parametrize("method", ["allocate", "connect"])
def test_where_one_rank_has_none_none_uses_it_and_all_say_why(group, method):
    for one in begun(group, HostShares(), HostShares(method)):
        assert one.why.startswith("rank 1: ")
        assert f"{method} failed" in one.why
        assert not one._shares.of


def test_ranks_of_several_machines_share_nothing(group, monkeypatch):
    names = iter(["a", "b"])
    monkeypatch.setattr(socket, "gethostname", lambda: next(names))
    for one in begun(group, HostShares(), HostShares("connect")):
        assert one.why == "ranks on several machines: a, b"


def test_nobody_is_asked_for_a_program_without_such_sums(group):
    from piecewise_core.graph.sums import NOBODY
    from piecewise_core.ranks.sharing import Sharing

    Sharing(HostShares("allocate")).begin(summing(NOBODY), [group], meet=None)


def test_a_model_s_number_is_free_again_once_it_is_gone():
    from piecewise_core.ranks.sharing import Sharing

    first, second = Sharing(HostShares()), Sharing(HostShares())
    assert first.slot != second.slot
    slot = first.slot
    del first
    assert Sharing(HostShares()).slot == slot


@pytest.fixture
def alone(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield dist.group.WORLD.group_name
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_a_message_goes_the_way_that_its_size_and_dtype_ask_for(alone):
    from piecewise_core.graph.sums import NOBODY, Shares, largest, sum_over

    noting = Noting(HostShares())
    shares = Shares(noting, {alone: torch.zeros(largest(2), dtype=torch.uint8)})

    def way(x, slot=shares.slot, reduction="sum"):
        noting.ways.clear()
        assert torch.equal(sum_over(x, reduction, alone, slot), x)
        return noting.ways

    assert largest(8) < largest(2)
    assert way(torch.rand(largest(2) // 4)) == ["one-shot"]
    assert way(torch.rand(largest(2) // 4 + 1)) == []
    assert way(torch.rand(0)) == []
    assert way(torch.rand(4).half()) == []
    assert way(torch.rand(4), reduction="max") == []
    assert way(torch.rand(4), NOBODY) == []
    assert way(torch.rand(3, 4).t()[1:]) == ["one-shot"]


@pytest.mark.skipif(not dist.is_gloo_available(), reason="needs gloo")
def test_memory_of_another_device_is_an_error_that_says_what_to_call(alone):
    from piecewise_core.errors import PlatformError
    from piecewise_core.graph.sums import Shares, sum_over

    memory = torch.zeros(64, dtype=torch.uint8, device="meta")
    shares = Shares(HostShares(), {alone: memory})
    with pytest.raises(PlatformError, match="meta was the current device when ranks met"):
        sum_over(torch.rand(4), "sum", alone, shares.slot)
