from __future__ import annotations

import gc
import itertools
import sys
import threading

import pytest
import torch

from piecewise_core.plugins.contract import check_platform
from piecewise_core.plugins.torchbuild import torch_build

pytestmark = pytest.mark.gpu


def layers(count=4, width=64):
    torch.manual_seed(0)
    return torch.nn.Sequential(
        *(m for _ in range(count) for m in (torch.nn.Linear(width, width), torch.nn.GELU()))
    ).cuda()


def usable(bench) -> bool:
    """Whether the device computes, captures and empties its cache as if nothing had happened."""
    x = torch.ones(64, device="cuda")
    graph, out = bench.capture(lambda: x * 2 + 1)
    x.fill_(3)
    bench.driver.replay(graph)
    torch.cuda.empty_cache()
    return out.tolist() == [7] * 64 and not bench.driver.is_capturing()


def settled(bench) -> int:
    """Bytes that torch holds once libraries are set up and the bench's pool is new and empty."""
    assert usable(bench)
    bench.pool = bench.driver.new_pool()
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.memory_reserved()


# Capture and replay -----------------------------------------------------------------


def test_a_replay_equals_eager_bit_for_bit_on_fresh_inputs(bench):
    model, x = layers(), torch.randn(8, 64, device="cuda")
    graph, out = bench.capture(lambda: model(x))
    for replay in (lambda: bench.driver.replay(graph), bench.driver.replayer(graph)):
        x.copy_(torch.randn(8, 64))
        replay()
        assert torch.equal(out, model(x))


def test_a_capture_executes_nothing(bench):
    x = torch.zeros(4, device="cuda")
    graph, _ = bench.capture(lambda: x.add_(1), warm=False)
    assert x.tolist() == [0, 0, 0, 0]
    bench.driver.replay(graph)
    assert x.tolist() == [1, 1, 1, 1]


def test_one_graph_after_another_as_pieces_are(bench):
    model, x = layers(), torch.randn(8, 64, device="cuda")
    first, hidden = bench.capture(lambda: model[:4](x))
    second, out = bench.capture(lambda: model[4:](hidden))
    x.copy_(torch.randn(8, 64))
    bench.driver.replay(first)
    bench.driver.replay(second)
    assert torch.equal(out, model(x))


def test_the_driver_tells_of_a_capture_that_runs(bench):
    told = []
    x = torch.ones(3, device="cuda")
    bench.capture(lambda: (told.append(bench.driver.is_capturing()), x + 1))
    assert told == [False, True]


def test_another_thread_may_use_the_device_during_a_capture(bench):
    x, done = torch.ones(64, device="cuda"), []

    def elsewhere():
        with torch.cuda.stream(torch.cuda.Stream()):
            done.append(torch.full((1 << 22,), 2.0, device="cuda").sum().item())

    def run():
        y = x + 1
        if bench.driver.is_capturing():
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
        return y * 2

    graph, out = bench.capture(run)
    bench.driver.replay(graph)
    assert done == [2.0 * (1 << 22)]
    assert out.tolist() == [4] * 64


# Memory -----------------------------------------------------------------------------


def test_a_weak_tensor_reads_what_replays_write_after_its_original_is_gone(bench):
    x = torch.randn(16, 64, device="cuda")
    graph, out = bench.capture(lambda: (x * 3)[1:, ::2].t())
    weak = bench.driver.weak_ref(out)
    assert weak is not out
    assert (weak.shape, weak.stride(), weak.data_ptr()) == (
        out.shape,
        out.stride(),
        out.data_ptr(),
    )
    before = bench.driver.live_bytes(bench.pool)
    del out
    assert bench.driver.live_bytes(bench.pool) == before - 16 * 64 * 4
    for _ in range(3):
        x.copy_(torch.randn(16, 64))
        bench.driver.replay(graph)
        assert torch.equal(weak, (x * 3)[1:, ::2].t())


def test_a_tensor_that_no_pool_owns_is_its_own_weak_tensor(bench):
    x = torch.ones(8, device="cuda")
    bench.capture(lambda: x + 1)
    for tensor in (x, torch.ones(8), torch.empty(0, device="cuda")):
        assert bench.driver.weak_ref(tensor) is tensor


def test_many_sizes_fit_in_the_pool_of_the_largest(bench):
    model = layers(8, 256)
    held, graphs = [], []
    for size in range(512, 0, -32):
        x = torch.randn(size, 256, device="cuda")
        graph, out = bench.capture(lambda x=x: model(x))
        graphs.append((graph, x, bench.driver.weak_ref(out)))
        del out
        held.append(bench.driver.pool_bytes(bench.pool))
    assert held[0] > 0
    assert held[-1] <= 1.1 * held[0]
    for graph, x, out in graphs:
        bench.driver.replay(graph)
        assert torch.equal(out, model(x))


def test_memory_goes_back_when_the_graphs_and_the_pool_are_gone(bench):
    x = torch.randn(1 << 22, device="cuda")
    before = settled(bench)
    graph, out = bench.capture(lambda: x + 1)
    assert bench.driver.pool_bytes(bench.pool) >= x.nbytes
    bench.driver.reset(graph)
    bench.driver.reset(graph)
    assert bench.driver.driver_bytes(bench.pool) == 0
    del graph, out
    assert settled(bench) == before


def stays(reserved: list[int]) -> None:
    """The first capture has beside it what was cached before, which the second gives back."""
    assert len(set(reserved[1:])) == 1
    assert reserved[1] <= reserved[0]


def test_a_pool_whose_graphs_are_all_gone_takes_new_ones(bench):
    x, held, reserved = torch.randn(1 << 20, device="cuda"), set(), []
    for _ in range(4):
        graph, out = bench.capture(lambda: x + 1)
        held.add(bench.driver.pool_bytes(bench.pool))
        reserved.append(torch.cuda.memory_reserved())
        bench.driver.reset(graph)
        del graph, out
        assert bench.driver.pool_bytes(bench.pool) == 0
    assert len(held) == 1
    assert held.pop() >= x.nbytes
    stays(reserved)


def test_a_pool_s_name_keeps_its_numbers_however_often_its_memory_is_read(bench):
    while bench.pool.handle[1] < 1000:  # Python keeps numbers up to 256 for good
        bench.pool.handle = torch.cuda.graph_pool_handle()
    graph, out = bench.capture(lambda: torch.ones(8, device="cuda") + 1)
    bench.driver.replay(graph)

    def read() -> int:
        assert bench.driver.pool_bytes(bench.pool) > 0
        assert bench.driver.weak_ref(out).tolist() == [2] * 8
        return sys.getrefcount(bench.pool.handle[1])

    first = read()  # what is read first may keep the name itself, once
    assert {read() for _ in range(50)} == {first}


def test_nothing_grows_over_replays_and_recaptures(bench):
    model, x = layers(), torch.randn(64, 64, device="cuda")
    seen = []
    for _ in range(10):
        graph, out = bench.capture(lambda: model(x))
        for _ in range(200):
            bench.driver.replay(graph)
        torch.cuda.synchronize()
        seen.append(torch.cuda.memory_reserved())
        bench.driver.reset(graph)
        del graph, out
    stays(seen)


def test_the_driver_s_own_memory_is_estimated(bench):
    model, x = layers(32), torch.randn(8, 64, device="cuda")
    graphs = [bench.capture(lambda: model(x))[0] for _ in range(4)]
    estimate = bench.driver.driver_bytes(bench.pool)
    assert 0 <= estimate < 1 << 30
    for graph in graphs:
        bench.driver.reset(graph)
    assert bench.driver.driver_bytes(bench.pool) == 0


# Executables ------------------------------------------------------------------------


class Sized:
    """A graph of a model on its own number of rows, made like ``other``."""

    def __init__(self, bench, model, rows, other=None):
        self.model, self.x = model, torch.randn(rows, 64, device="cuda")
        like = bench.driver.graph_like(None if other is None else other.graph)
        self.graph, self.out = bench.capture(lambda: model(self.x), like)
        self.replays = [lambda: bench.driver.replay(self.graph), bench.driver.replayer(self.graph)]

    def right(self, way=0) -> bool:
        self.x.copy_(torch.randn_like(self.x))
        self.replays[way]()
        return torch.equal(self.out, self.model(self.x))


def like_one_another(bench, model, rows=(48, 40, 32, 8)):
    if not hasattr(bench.driver, "graph_like"):
        pytest.skip("this driver's graphs share no executables")
    made = []
    for each in rows:
        made.append(Sized(bench, model, each, made[-1] if made else None))
    return made


def kernels(x):
    """The same kernels whatever the number of rows."""
    return (x * 3 + 1).sin() * x


@pytest.mark.parametrize("model", [kernels, None], ids=["kernels", "layers"])
def test_sizes_that_share_executables_are_right_in_every_order(bench, model):
    graphs = like_one_another(bench, model or layers())
    assert bench.driver.executables(bench.pool) <= (1 if model else len(graphs))
    for order in itertools.permutations(graphs):
        for graph in order:
            assert graph.right(0)
            assert graph.right(1)

    right = []

    @torch.inference_mode()
    def elsewhere():
        right.extend(graph.right() for graph in graphs)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert right == [True] * len(graphs)


def test_what_is_enqueued_is_not_what_an_executable_is_brought_up_to_later(bench):
    def longer(x):
        for _ in range(50):
            x = kernels(x)
        return x

    graphs = like_one_another(bench, longer)
    for _ in range(20):
        for graph in graphs:
            graph.x.copy_(torch.randn_like(graph.x))
        torch.cuda.synchronize()
        for graph in graphs:
            bench.driver.replay(graph.graph)
        assert all(torch.equal(graph.out, longer(graph.x)) for graph in graphs)


@pytest.mark.parametrize("gone", range(4))
def test_a_reset_leaves_those_that_share_and_the_last_gives_all_back(bench, gone):
    before = settled(bench)
    graphs = like_one_another(bench, kernels)
    bench.driver.reset(graphs[gone].graph)
    bench.driver.reset(graphs.pop(gone).graph)
    graphs.append(Sized(bench, kernels, 16, graphs[0]))
    assert bench.driver.executables(bench.pool) == 1
    assert all(graph.right() for _ in range(2) for graph in graphs)
    while graphs:
        bench.driver.reset(graphs.pop(0).graph)
        assert all(graph.right() for graph in graphs)
    assert bench.driver.executables(bench.pool) == bench.driver.driver_bytes(bench.pool) == 0
    assert settled(bench) == before


def test_graphs_share_by_what_an_update_leaves_as_it_is(bench):
    (first,) = like_one_another(bench, lambda x: x.cos() + 1, (8,))
    functions = (lambda x: x.exp() * 2, lambda x: x.softmax(-1), lambda x: x.tanh().sum(1))
    others = [Sized(bench, model, 8, first) for model in functions]
    assert bench.driver.executables(bench.pool) == 2  # one kernel, or two
    assert all(graph.right() for graph in (first, *others, *reversed(others), first))


def test_a_model_whose_sizes_share_executables_is_as_one_whose_do_not(gpu):
    def model(x):
        return kernels(torch.softmax(kernels(x), -1))

    own, shared = gpu.compile(model), gpu.compile(model, graph_executables="shared")
    for module in (own, shared):
        module.warmup(gpu.randn(64, 64))
    for rows in (64, 1, 32, 8, 64, 8, 1):
        x = gpu.randn(rows, 64)
        assert torch.equal(own(x), shared(x))
    assert own.stats().executables == own.stats().captures == shared.stats().captures
    assert shared.stats().executables < shared.stats().captures
    shared.release([64])
    x = gpu.randn(8, 64)
    assert torch.equal(own(x), shared(x))


def test_a_model_that_draws_shares_nothing_and_draws_as_eager_calls_do(gpu):
    def noisy(x):
        return torch.softmax(x + torch.rand_like(x), -1)

    fast = gpu.record(noisy, graph_executables="shared", splitting_ops=())
    fast.warmup(gpu.randn(64, 8))
    assert fast.stats().executables == fast.stats().captures
    for rows in (64, 1, 32):
        x = gpu.randn(rows, 8)
        torch.manual_seed(3)
        got = [fast(x).clone() for _ in range(3)]
        torch.manual_seed(3)
        assert all(torch.equal(each, noisy(x)) for each in got)


# Faults -----------------------------------------------------------------------------


FAULTS = {
    "item": (lambda x: x.sum().item(), "splitting_ops"),
    "mask": (lambda x: x[x > 0], "splitting_ops"),
    "synchronize": (lambda x: torch.cuda.synchronize(), "splitting_ops"),
    "pageable copy": (lambda x: x.copy_(torch.ones(64)), "pin it"),
    "to the host": (lambda x: x.cpu(), "splitting_ops"),
    "python": (lambda x: {}["missing"], None),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_capture_is_explained_and_leaves_the_device_usable(bench, fault):
    wrong, advice = FAULTS[fault]
    x = torch.ones(64, device="cuda")
    kept, out = bench.capture(lambda: x + 1)
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is the driver's business
        bench.capture(lambda: wrong(x * 2), warm=False)
    told = bench.driver.explain(caught.value)
    assert told is None if advice is None else advice in told
    assert usable(bench)
    bench.driver.replay(kept)
    assert out.tolist() == [2] * 64


def test_work_on_a_stream_that_is_not_joined_is_explained(bench):
    x, side = torch.ones(64, device="cuda"), torch.cuda.Stream()

    def run():
        y = x + 1
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            return y * 2

    with pytest.raises(RuntimeError) as caught:
        bench.capture(run, warm=False)
    assert "does not wait for it" in bench.driver.explain(caught.value)
    assert usable(bench)


def test_memory_that_runs_out_in_a_capture_leaves_what_was_captured(bench):
    x = torch.ones(64, device="cuda")
    kept, out = bench.capture(lambda: x + 1)
    free, _ = torch.cuda.mem_get_info()
    with pytest.raises(torch.OutOfMemoryError) as caught:
        bench.capture(
            lambda: [torch.empty(free // 3, dtype=torch.uint8, device="cuda") for _ in range(4)],
            warm=False,
        )
    assert "capture_sizes" in bench.driver.explain(caught.value)
    del caught
    assert usable(bench)
    bench.driver.replay(kept)
    assert out.tolist() == [2] * 64


def test_memory_of_failed_captures_goes_back_too(bench):
    x = torch.ones(1 << 22, device="cuda")
    held = []
    for _ in range(4):
        with pytest.raises(RuntimeError):
            bench.capture(lambda: (x + 1).sum().item(), warm=False)
        held.append(settled(bench))
    # What the generator keeps per stream comes with the first failure on it.
    assert held[-1] == held[0]


def test_a_capture_inside_a_capture_is_refused_and_spoils_nothing(bench):
    x = torch.ones(64, device="cuda")

    def run():
        y = x + 1
        if bench.driver.is_capturing():
            with pytest.raises(RuntimeError, match="capturing already"):
                bench.driver.capture_begin(bench.driver.new_graph(), bench.pool, bench.stream)
        return y

    graph, out = bench.capture(run)
    bench.driver.replay(graph)
    assert out.tolist() == [2] * 64


def test_an_abort_from_another_stream_leaves_the_capture(bench):
    x, graph = torch.ones(64, device="cuda"), bench.driver.new_graph()
    with bench.device.stream(bench.stream):
        bench.driver.capture_begin(graph, bench.pool, bench.stream)
        x.add_(1)
    bench.driver.abort_capture(graph)
    assert usable(bench)
    assert x.tolist() == [1] * 64


def test_the_default_stream_cannot_capture_and_stays_usable(bench):
    with pytest.raises(RuntimeError) as caught:
        bench.driver.capture_begin(
            bench.driver.new_graph(), bench.pool, torch.cuda.current_stream()
        )
    assert "side stream" in bench.driver.explain(caught.value)
    assert usable(bench)


# Random numbers -----------------------------------------------------------------------


def test_replays_draw_the_numbers_that_eager_calls_would(bench):
    graph, out = bench.capture(lambda: torch.rand(64, device="cuda"))
    torch.manual_seed(3)
    got = []
    for _ in range(3):
        bench.driver.replay(graph)
        got.append(out.tolist())
    torch.manual_seed(3)
    assert got == [torch.rand(64, device="cuda").tolist() for _ in range(3)]
    assert got[0] != got[1]


def test_a_failed_capture_leaves_the_generator_usable(bench):
    x = torch.ones(8, device="cuda")
    with pytest.raises(RuntimeError):
        bench.capture(lambda: (torch.rand(8, device="cuda") + x).sum().item(), warm=False)
    torch.manual_seed(3)
    first = torch.rand(8, device="cuda")
    graph, out = bench.capture(lambda: torch.rand(8, device="cuda"))
    torch.manual_seed(3)
    bench.driver.replay(graph)
    assert torch.equal(out, first)


def test_a_registered_generator_advances_from_replay_to_replay(bench):
    own = torch.Generator("cuda").manual_seed(5)
    graph = bench.driver.new_graph()
    bench.driver.register_generator(graph, own)
    graph, out = bench.capture(lambda: torch.rand(8, device="cuda", generator=own), graph)
    bench.driver.replay(graph)
    first = out.tolist()
    bench.driver.replay(graph)
    assert out.tolist() != first


# The platform ---------------------------------------------------------------------------


def test_the_platform_is_found_without_a_context_and_checks_itself():
    from piecewise_cuda.nvml import ask_driver
    from piecewise_cuda.platform import CudaPlatform
    from piecewise_cuda.plugin import judge

    probe = judge(torch_build(), ask_driver(), {})
    assert probe.available, probe.reason
    platform = CudaPlatform()
    check_platform(platform, "piecewise-cuda")
    facts = platform.self_check()
    assert facts["device"] == torch.cuda.get_device_name()
    assert set(platform.compiler.hash_factors()) >= {"cuda", "device", "capability", "torch"}


def test_graphs_do_not_read_workspaces_that_torch_frees_when_asked(bench):
    """As torch.compile's own graphs ask for around every recording."""
    left = torch.randn(8, 4096, device="cuda", dtype=torch.bfloat16)
    right = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)

    def fn():
        # Tall and thin: the library splits the sum and keeps the parts in its workspace.
        return left @ right @ right

    graph, out = bench.capture(fn)
    torch._C._cuda_clearCublasWorkspaces()
    torch.cuda.empty_cache()
    for _ in range(3):
        left.normal_()
        bench.driver.replay(graph)
        torch.cuda.synchronize()
        torch.testing.assert_close(out, fn())
    assert bench.driver.live_bytes(bench.pool) <= out.untyped_storage().nbytes() + 512


def test_a_dump_is_a_graph_of_kernels(tmp_path, make_bench):
    from piecewise_cuda.driver import CudaGraphDriver

    bench = make_bench(CudaGraphDriver(debug=True))
    x = torch.ones(64, device="cuda")
    graph, _ = bench.capture(lambda: x + 1)
    bench.driver.dump(graph, tmp_path / "graph.dot")
    assert "digraph" in (tmp_path / "graph.dot").read_text()
