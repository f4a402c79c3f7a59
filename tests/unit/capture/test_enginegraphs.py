"""Static graphs of an engine's pieces: what is captured, dropped, freed and reported."""

from __future__ import annotations

import pytest
import torch

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform


def captured(graphs, x, batch, handle="pool"):
    device = graphs.declared.device
    with torch.inference_mode(), device.stream(device.new_stream()):
        return graphs.capture(lambda: x * 2, handle, batch)


@pytest.fixture
def platform():
    return SimulatedPlatform()


@pytest.fixture
def graphs(platform):
    return pw.GraphCompiler(pw.Config(compiler="eager"), platform, keep=False).graphs


def test_a_batch_is_captured_replayed_and_freed(graphs):
    x = torch.randn(4)
    graph, output, weak = captured(graphs, x, "four")
    x.fill_(3.0)
    graphs.declared.replayer(graph)()
    assert weak.tolist() == output.tolist() == [6.0] * 4
    assert graphs.summary().startswith("1 static graphs: 1 batch sizes captured; ")
    assert graphs.lines()[0] == "1 static graphs for four"
    graphs.release(graph, "four")
    assert graphs.summary().startswith("0 static graphs: 0 batch sizes captured; ")


def test_a_capture_that_fails_drops_its_batch_with_the_reason():
    platform, said = SimulatedPlatform(fail_capture_at=1), []
    graphs = pw.GraphCompiler(pw.Config(compiler="eager"), platform, keep=False).graphs
    graphs.tell = said.append
    assert captured(graphs, torch.randn(4), "four") is None
    assert captured(graphs, torch.randn(2), "two") is not None
    assert list(graphs.dropped) == ["four"]
    assert [line.partition(":")[0] for line in said] == ["four is served without static graphs"]
    assert any(line.startswith("no static graphs for four") for line in graphs.lines())


def test_a_device_without_room_drops_what_comes_later(caplog):
    platform = SimulatedPlatform(max_graphs=1)
    graphs = pw.GraphCompiler(pw.Config(compiler="eager"), platform, keep=False).graphs
    first = captured(graphs, torch.randn(4), "four")
    assert first is not None
    assert captured(graphs, torch.randn(2), "two") is None
    assert "no room" in graphs.dropped["two"]
    (said,) = [m for m in caplog.messages if "without static graphs" in m]
    assert said.startswith("two is served")


def test_the_pieces_of_one_forward_share_a_number(graphs):
    four, two = ("four",), ("two",)
    assert graphs.turn[0] is None
    assert graphs.take_turn(four) == (four, 0)
    assert graphs.take_turn(two) == (two, 1)
    assert graphs.take_turn(("four",)) == (four, 0)
    assert graphs.turn == (four, 0)
