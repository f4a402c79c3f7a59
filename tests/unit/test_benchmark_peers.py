"""torch.compile as a peer counts only where it can be shown to do what it is there for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def peers(monkeypatch) -> Iterator[object]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import _peers

    monkeypatch.setattr(_peers, "_recorded", lambda: _peers.graphs)
    _peers.graphs = 0
    torch._dynamo.reset()
    yield _peers
    torch._dynamo.reset()
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(BENCHMARKS)):
            del sys.modules[name]


@pytest.fixture
def place(peers):
    from _place import Place

    return Place(simulated=True)


class Doubled(torch.nn.Module):
    def forward(self, x):
        return x + x


def compiled(model):
    fast = torch.compile(model, backend="eager")
    return lambda: fast(torch.ones(3))


def skipped(reason: str) -> None:
    from torch._inductor.cudagraph_utils import log_cudagraph_skip_and_bump_counter

    log_cudagraph_skip_and_bump_counter(reason)


def test_a_peer_that_compiles_and_stays_as_it_is_is_valid(peers, place):
    found = peers.settle("plain", compiled(Doubled()), place, graphs=False)
    assert (found.compiled, found.settled, found.problem) == (1, True, "")


def test_a_peer_that_runs_the_code_of_another_is_not(peers, place):
    model = Doubled()
    peers.settle("first", compiled(model), place, graphs=False)
    second = peers.settle("second", compiled(model), place, graphs=False)
    assert second.problem == "it compiled nothing of its own: another peer's code ran"
    assert not peers.settle("first", compiled(model), place, graphs=False, fresh=False).problem


def test_a_peer_whose_graphs_were_skipped_is_not_and_the_reason_is_told(peers, place):
    call = compiled(Doubled())

    def skips() -> None:
        if not peers.graphs:
            peers.graphs = 1
            skipped("skipping cudagraphs due to mutated inputs (2 instances)")
        call()

    found = peers.settle("skips", skips, place)
    assert found.skips == 1
    assert "skipped 1 times: skipping cudagraphs due to mutated inputs" in found.problem


def test_a_peer_without_graphs_is_not_even_where_nothing_was_logged(peers, place):
    found = peers.settle("silent", compiled(Doubled()), place, least=2)
    assert found.problem == "0 CUDA graphs were recorded, 2 expected"


def test_a_peer_that_goes_on_recording_is_not(peers, place):
    call = compiled(Doubled())

    def records() -> None:
        peers.graphs += 1
        call()

    assert peers.settle("restless", records, place).problem.startswith("it still compiled")


def test_graphs_are_counted_over_the_whole_tree(peers, monkeypatch):
    monkeypatch.undo()
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    leaf = SimpleNamespace(children={})
    root = SimpleNamespace(children={1: [leaf, SimpleNamespace(children={2: [leaf]})]})
    manager = SimpleNamespace(roots={0: [root, leaf]})
    from torch._inductor import cudagraph_trees

    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(cudagraph_trees, "get_manager", lambda device, **_: manager)
    assert peers._recorded() == 5
    manager.roots = None
    assert peers._recorded() == 0
