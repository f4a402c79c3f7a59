"""The stand-in for a torch device module, driven as core drives a real one."""

from __future__ import annotations

import gc

import pytest
import torch

import piecewise_core as pw
from piecewise_core.capture.torch_driver import TorchGraphDriver
from piecewise_core.capture.torch_runtime import TorchRuntime
from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.plugins.contract import check_platform
from piecewise_core.protocols import Capabilities
from piecewise_core.testing import torch_simulated
from piecewise_core.testing.simulated.device import DeviceFault


class Board:
    """A platform over the stand-in, as the tutorial makes one."""

    name, device_type = "board", "cpu"

    def __init__(self):
        self.device = TorchRuntime(torch_simulated)
        self.graphs = TorchGraphDriver(torch_simulated, device_type="cpu")
        self.compiler = EagerCompiler()
        self.capabilities = Capabilities()


@pytest.fixture
def board():
    return Board()


def captured(board, fn, pool=None):
    pool = pool or board.graphs.new_pool()
    stream = board.device.new_stream()
    graph = board.graphs.new_graph()
    with torch.inference_mode(), board.device.stream(stream):
        board.graphs.capture_begin(graph, pool, stream)
        result = fn()
        board.graphs.capture_end(graph)
    return graph, pool, result


def test_it_makes_a_platform_that_keeps_the_contract(board):
    check_platform(board, "the test")
    assert hasattr(board.graphs, "register_generator")
    free, total = board.device.memory_info()
    assert 0 < free <= total
    assert not torch_simulated.is_initialized()


def test_a_replay_computes_what_was_captured_on_what_is_there_now(board):
    x = torch.ones(4)
    graph, _, y = captured(board, lambda: x + 1)
    x.fill_(5)
    board.graphs.replay(graph)
    assert torch.equal(y, torch.full((4,), 6.0))


def test_memory_of_a_pool_is_told_and_goes_back_with_its_last_graph(board):
    x = torch.ones(1 << 16)
    graph, pool, y = captured(board, lambda: x + 1)
    assert board.graphs.pool_bytes(pool) >= board.graphs.live_bytes(pool) >= y.nbytes
    del y
    assert board.graphs.live_bytes(pool) == 0
    board.graphs.reset(graph)
    assert board.graphs.pool_bytes(pool) == 0


def test_memory_that_another_graph_may_use_stays(board):
    x = torch.ones(1 << 16)
    first, pool, y = captured(board, lambda: x + 1)
    second, _, z = captured(board, lambda: x + 2, pool)
    held = board.graphs.pool_bytes(pool)
    del y
    board.graphs.reset(first)
    assert board.graphs.pool_bytes(pool) == held
    board.graphs.replay(second)
    assert torch.equal(z, x + 2)


def test_a_weak_tensor_reads_what_replays_write(board):
    x = torch.ones(64)
    graph, _, y = captured(board, lambda: x * 3)
    weak = board.graphs.weak_ref(y)
    assert weak.data_ptr() == y.data_ptr()
    del y
    board.graphs.replay(graph)
    assert torch.equal(weak, x * 3)
    assert board.graphs.weak_ref(x) is x


def test_streams_nest_and_the_wrong_one_is_refused(board):
    stream, other = board.device.new_stream(), board.device.new_stream()
    outside = board.device.current_stream()
    with board.device.stream(stream):
        assert board.device.current_stream() is stream
        with board.device.stream(other):
            assert board.device.current_stream() is other
    assert board.device.current_stream() is outside
    with pytest.raises(RuntimeError, match="is not the current stream"):
        board.graphs.capture_begin(board.graphs.new_graph(), board.graphs.new_pool(), stream)


def test_waiting_in_a_capture_spoils_it_and_leaves_the_device_usable(board):
    x = torch.ones(4)

    def wait():
        with pytest.raises(DeviceFault, match="not permitted"):
            board.device.synchronize()
        return x + 1

    with pytest.raises(DeviceFault, match="invalidated"):
        captured(board, wait)
    assert not board.graphs.is_capturing()
    graph, _, y = captured(board, lambda: x + 1)
    board.graphs.replay(graph)
    assert torch.equal(y, x + 1)


def test_a_model_is_captured_padded_and_draws_fresh_numbers(board):
    def noisy(x):
        return torch.nn.functional.layer_norm(x + torch.rand_like(x), (4,)) * 2

    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", min=1, max=8)}},
        splitting_ops=("torch.nn.functional.layer_norm",),
        capture_sizes=(8,),
    )
    fast = pw.compile(noisy, config, platform=board)
    with torch.inference_mode():
        first, second = (fast(torch.ones(8, 4)).clone() for _ in range(2))
    assert fast.stats().calls["replayed"] == 2
    assert not torch.equal(first, second)


def reserved():
    """Bytes that pools hold, those of other tests' garbage aside."""
    gc.collect()
    torch_simulated.empty_cache()
    return torch_simulated.memory_reserved()


def test_a_pool_whose_graphs_are_gone_holds_no_memory_and_takes_another_capture(board):
    x, before = torch.ones(1 << 16), reserved()
    pool = board.graphs.new_pool()
    for _ in range(2):
        graph, _, y = captured(board, lambda: x + 1, pool)
        assert torch_simulated.memory_reserved() > before
        board.graphs.replay(graph)
        assert torch.equal(y, x + 1)
        del y
        board.graphs.reset(graph)
        torch_simulated.empty_cache()
        assert torch_simulated.memory_reserved() == before


def test_a_released_model_gives_its_pool_s_memory_back(board):
    """Its pieces know the pool that they are captured into, and go on knowing it."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Softmax(-1)).eval()
    config = pw.Config(
        dynamic={"input": {0: pw.Dim("rows", 1, 64)}},
        splitting_ops=("torch.nn.functional.softmax",),
        capture_sizes=(64,),
    )
    fast, x = pw.compile(model, config, platform=board), torch.randn(64, 64)
    before = reserved()
    with torch.inference_mode():
        for _ in range(2):
            fast.warmup(x, progress=False)
            torch.testing.assert_close(fast(x), model(x))
            assert torch_simulated.memory_reserved() >= before + x.nbytes
            fast.release()
            assert torch_simulated.memory_reserved() == before
            fast.restore()
    assert fast.stats().calls["replayed"] == 2
