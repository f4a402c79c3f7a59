"""The driver on a stand-in for torch.cuda that keeps a diary; tests/gpu has the real thing."""

from __future__ import annotations

import itertools
import warnings
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from piecewise_core.capture import torch_captures, torch_driver
from piecewise_core.capture.torch_driver import TorchGraphDriver
from piecewise_core.plugins.contract import differences
from piecewise_core.protocols import GraphDriver
from piecewise_core.torch_compat import graphs

INVALID = "CUDA error: operation failed due to a previous error during capture"


class Graph:
    """A graph that notes in its module's diary what is done to it."""

    module: FakeModule

    def __init__(self, keep_graph=False):
        self.state, self.kept = "empty", keep_graph

    def capture_begin(self, pool=None, capture_error_mode="global"):
        self.module.note("begin", pool, capture_error_mode)
        if self.module.fail_begin:
            raise RuntimeError("CUDA graphs must be captured on a non-default stream")
        self.state, self.module.capturing = "capturing", self

    def capture_end(self):
        self.module.note("end")
        begun, self.module.capturing = self.module.capturing, None
        if begun is None or (self.module.fail_end and begun is self):
            raise RuntimeError(INVALID)
        self.state = "ready"

    def replay(self):
        self.module.note("replay")

    def reset(self):
        self.module.note("reset")
        self.state = "empty"

    def register_generator_state(self, generator):
        self.module.note("generator", generator)

    def debug_dump(self, path):
        warnings.warn("DEBUG: calling debug_dump()", stacklevel=1)
        self.module.note("dump", path, self.kept)


class FakeModule:
    """``torch.cuda`` as far as the driver needs it, for CPU tensors."""

    __name__ = "fake.cpu"

    def __init__(self, graph_class=Graph):
        self.CPUGraph = type("CPUGraph", (graph_class,), {"module": self})
        self.diary: list[tuple] = []
        self.stream_now = self.side = SimpleNamespace(device=torch.device("cpu"))
        self.capturing = None
        self.fail_begin = self.fail_end = False
        self.segments: list[dict] = []
        self.free, self.reserved = 1000, 100
        self.handles = itertools.count(7)

    def note(self, *what):
        self.diary.append(what)

    def done(self):
        return [what[0] for what in self.diary]

    def graph_pool_handle(self):
        return (0, next(self.handles))

    def current_stream(self):
        return self.stream_now

    @contextmanager
    def stream(self, stream):
        before, self.stream_now = self.stream_now, stream
        self.note("stream")
        yield
        self.stream_now = before

    def is_current_stream_capturing(self):
        return self.capturing is not None

    def memory_snapshot(self, mempool_id=None, include_traces=True):
        self.note("snapshot", mempool_id, include_traces)
        return self.segments

    def mem_get_info(self):
        return self.free, 10_000

    def memory_reserved(self):
        return self.reserved


@pytest.fixture
def module():
    return FakeModule()


@pytest.fixture
def left(monkeypatch):
    """The pools that the allocator was told to leave."""
    found = []
    monkeypatch.setattr(torch_captures, "leave_pool", lambda *what: found.append(what))
    return found


def capture(driver, module, fn=lambda: None, pool=None):
    graph, pool = driver.new_graph(), pool or driver.new_pool()
    driver.capture_begin(graph, pool, module.side)
    result = fn()
    driver.capture_end(graph)
    return graph, pool, result


def segment(tensor, pool=(0, 7), allocated=0):
    start = tensor.untyped_storage().data_ptr()
    size = tensor.untyped_storage().nbytes()
    return {
        "address": start,
        "total_size": size,
        "allocated_size": allocated,
        "segment_pool_id": pool,
    }


@pytest.fixture
def freed(module, monkeypatch):
    """Notes in the diary when the matrix library lets go of its workspaces."""
    freer = lambda device_type: lambda: module.note("free", device_type)  # noqa: E731
    monkeypatch.setattr(torch_driver, "workspace_freer", freer)


def test_workspaces_of_a_size_are_made_inside_its_captures_and_kept_by_nobody(module, freed):
    driver = TorchGraphDriver(module)
    pool = driver.new_pool()
    driver.capture_begin(driver.new_graph(), pool, module.side)  # the anchor, and one by itself
    module.capturing = driver._open = None
    module.diary.clear()
    with driver.capture_context():
        assert "free" not in module.done()  # rehearsal may use what there is
        for _ in range(2):
            capture(driver, module, pool=pool)
    done = [what for what in module.done() if what in ("free", "begin", "end")]
    assert done == ["free", "begin", "end", "begin", "end", "free"]
    assert ("free", "cpu") in module.diary


def test_workspaces_are_let_go_of_after_a_failure_too(module, freed):
    driver = TorchGraphDriver(module)
    with pytest.raises(KeyError), driver.capture_context():
        raise KeyError
    assert module.done() == ["free"]
    module.diary.clear()
    capture(driver, module)
    assert "free" not in module.done()  # whoever captures without a context has their own ways


def test_a_device_without_such_a_library_frees_nothing():
    graphs.workspace_freer("cpu")()


def test_the_driver_keeps_the_contract(module):
    assert differences(TorchGraphDriver(module), GraphDriver, GraphDriver) == []


def test_a_driver_over_torch_cuda_initialises_nothing(fresh_processes):
    script = (
        "import torch; from piecewise_core.capture.torch_driver import TorchGraphDriver\n"
        "driver = TorchGraphDriver(torch.cuda)\n"
        "driver.new_pool, driver.unsafe_ops(), driver.explain(KeyError())\n"
        "assert not torch.cuda.is_initialized()"
    )
    done = fresh_processes.run(script)
    assert done.returncode == 0, done.stderr


def test_the_graphs_of_torch_xpu_take_no_error_mode():
    assert TorchGraphDriver(torch.xpu)._captures.mode == {}
    assert TorchGraphDriver(torch.cuda)._captures.mode == {"capture_error_mode": "thread_local"}


# Capture ----------------------------------------------------------------------------


def test_graphs_are_captured_without_waiting_and_after_an_anchor(module):
    driver = TorchGraphDriver(module)
    graph, pool, _ = capture(driver, module)
    assert module.diary[:2] == [("begin", (0, 7), "thread_local"), ("end",)]
    assert module.diary[2:] == module.diary[:2]
    capture(driver, module, pool=pool)
    assert module.done().count("begin") == 3
    assert graph.state == "ready"


def test_memory_of_graphs_that_are_gone_goes_back_before_their_pool_takes_others(module):
    emptied, driver = [], TorchGraphDriver(module)
    module.empty_cache = lambda: emptied.append(len(module.diary))
    graph, pool, _ = capture(driver, module)
    other, _, _ = capture(driver, module, pool=pool)
    driver.reset(graph)
    third, _, _ = capture(driver, module, pool=pool)
    assert emptied == []  # the pool had a graph all the time
    first = pool.handle
    driver.reset(other)
    driver.reset(third)
    before = len(module.diary)
    capture(driver, module, pool=pool)
    assert emptied == [before]
    assert pool.handle != first


def test_a_capture_wants_its_stream_to_be_current(module):
    driver = TorchGraphDriver(module)
    with pytest.raises(RuntimeError, match="not the current stream"):
        driver.capture_begin(driver.new_graph(), driver.new_pool(), object())
    assert module.diary == []


def test_a_second_capture_is_refused_before_the_stream_is_touched(module):
    driver = TorchGraphDriver(module)
    graph, pool = driver.new_graph(), driver.new_pool()
    driver.capture_begin(graph, pool, module.side)
    before = list(module.diary)
    with pytest.raises(RuntimeError, match="capturing already"):
        driver.capture_begin(driver.new_graph(), pool, module.side)
    with pytest.raises(RuntimeError, match="capturing already"):
        TorchGraphDriver(module).capture_begin(driver.new_graph(), pool, module.side)
    assert module.diary == before
    driver.capture_end(graph)


def test_a_capture_ends_where_it_began_and_stays_open_otherwise(module):
    driver = TorchGraphDriver(module)
    graph, pool = driver.new_graph(), driver.new_pool()
    driver.capture_begin(graph, pool, module.side)
    module.stream_now = object()
    with pytest.raises(RuntimeError, match="where it began"):
        driver.capture_end(graph)
    assert graph.state == "capturing"
    module.stream_now = module.side
    driver.capture_end(graph)
    with pytest.raises(RuntimeError, match="not being captured"):
        driver.capture_end(graph)


def test_a_capture_that_ends_in_an_error_is_left(module, left):
    driver = TorchGraphDriver(module)
    _, pool, _ = capture(driver, module)
    graph = driver.new_graph()
    driver.capture_begin(graph, pool, module.side)
    module.fail_end = True
    with pytest.raises(RuntimeError, match="previous error"):
        driver.capture_end(graph)
    assert_recovered(module, left)
    assert graph.state == "empty"
    module.fail_end = False
    capture(driver, module, pool=pool)


def assert_recovered(module, left):
    """The graph ended a helper's capture into another pool, which was left instead of its own."""
    done = [what[:2] for what in module.diary]
    assert done[-5:] == [("end",), ("begin", (0, 8)), ("end",), ("reset",), ("reset",)]
    assert left == [("cpu", 0, (0, 8))]


def test_a_device_that_cannot_even_begin_again_is_left_all_the_same(module, left):
    driver = TorchGraphDriver(module)
    _, pool, _ = capture(driver, module)
    graph = driver.new_graph()
    driver.capture_begin(graph, pool, module.side)
    module.fail_end = module.fail_begin = True
    with pytest.raises(RuntimeError, match="previous error"):
        driver.capture_end(graph)
    assert left == [("cpu", 0, (0, 7)), ("cpu", 0, (0, 8))]
    assert not driver.is_capturing()


def test_a_capture_that_does_not_begin_is_left(module, left):
    driver = TorchGraphDriver(module)
    _, pool, _ = capture(driver, module)
    module.fail_begin = True
    with pytest.raises(RuntimeError, match="non-default stream"):
        driver.capture_begin(driver.new_graph(), pool, module.side)
    assert left == [("cpu", 0, (0, 7))]
    module.fail_begin = False
    capture(driver, module, pool=pool)


@pytest.mark.parametrize("leave", ["abort_capture", "reset"])
@pytest.mark.parametrize("invalid", [True, False])
def test_a_capture_is_aborted_on_its_own_stream(module, left, leave, invalid):
    driver = TorchGraphDriver(module)
    _, pool, _ = capture(driver, module)
    graph = driver.new_graph()
    driver.capture_begin(graph, pool, module.side)
    module.stream_now = elsewhere = object()
    module.fail_end = invalid
    getattr(driver, leave)(graph)
    assert module.stream_now is elsewhere
    assert "stream" in module.done()
    if leave == "reset":
        assert module.diary.pop() == ("reset",)
    if invalid:
        assert_recovered(module, left)
    else:
        assert module.done()[-2:] == ["end", "reset"]
        assert left == []
    assert graph.state == "empty"
    module.stream_now, module.fail_end = module.side, False
    capture(driver, module, pool=pool)


def test_aborting_what_is_not_captured_does_nothing(module):
    driver = TorchGraphDriver(module)
    graph, _, _ = capture(driver, module)
    before = list(module.diary)
    driver.abort_capture(graph)
    driver.abort_capture(driver.new_graph())
    assert module.diary == before


def test_an_error_mode_is_passed_only_where_there_is_one(module):
    class Plain(Graph):
        def capture_begin(self, pool=None):
            super().capture_begin(pool)

    plain = FakeModule(Plain)
    driver = TorchGraphDriver(plain, error_mode="relaxed")
    capture(driver, plain)
    assert plain.diary[0] == ("begin", (0, 7), "global")
    driver = TorchGraphDriver(module, error_mode="relaxed")
    capture(driver, module)
    assert module.diary[0] == ("begin", (0, 7), "relaxed")


def test_generators_are_registered_where_graphs_can(module):
    driver = TorchGraphDriver(module)
    generator = torch.Generator()
    driver.register_generator(driver.new_graph(), generator)
    assert module.diary == [("generator", generator)]

    bare = FakeModule()
    bare.CPUGraph = type("Bare", (), {"capture_begin": Graph.capture_begin})
    assert not hasattr(TorchGraphDriver(bare), "register_generator")


def test_replays_and_dumps_go_to_the_graph(module, tmp_path):
    driver = TorchGraphDriver(module)
    graph, _, _ = capture(driver, module)
    driver.replay(graph)
    driver.replayer(graph)()
    assert module.done()[-2:] == ["replay", "replay"]
    with pytest.raises(RuntimeError, match="debug=True"):
        driver.dump(graph, tmp_path / "x")
    debugging = TorchGraphDriver(module, debug=True)
    debugging.dump(debugging.new_graph(), tmp_path / "x")
    assert module.diary[-1] == ("dump", str(tmp_path / "x"), True)


def test_the_replay_of_torch_s_own_graphs_has_no_python_around_it():
    replay = graphs.bare_replay
    own = type("CUDAGraph", (Graph,), {"replay": lambda self: 1, "__module__": "torch.cuda.graphs"})
    other = type("CUDAGraph", (Graph,), {"replay": lambda self: 2, "__module__": "torch_npu"})
    assert replay(own()).__func__ is Graph.replay
    assert replay(other())() == 2


# Memory -----------------------------------------------------------------------------


def test_a_weak_tensor_over_pool_memory_lets_go_of_it(module):
    memory = torch.arange(24.0)
    module.segments = [segment(memory)]
    driver = TorchGraphDriver(module)
    _, _, out = capture(driver, module, lambda: memory.view(4, 6)[1:, ::2].t())
    weak = driver.weak_ref(out)
    assert (weak.shape, weak.stride()) == (out.shape, out.stride())
    assert (weak.data_ptr(), weak.dtype) == (out.data_ptr(), out.dtype)
    assert weak.untyped_storage()._cdata != out.untyped_storage()._cdata
    memory.fill_(5)
    assert weak.eq(5).all()


def test_a_tensor_outside_of_the_pool_is_its_own_weak_tensor(module):
    memory, outside = torch.arange(24.0), torch.ones(3)
    module.segments = [segment(memory), segment(outside, pool=(0, 8))]
    driver = TorchGraphDriver(module)
    assert driver.weak_ref(memory) is memory
    capture(driver, module)
    assert driver.weak_ref(outside) is outside
    assert driver.weak_ref(torch.empty(0, device="meta")).device.type == "meta"
    parameter = torch.nn.Parameter(memory)
    assert driver.weak_ref(parameter) is parameter


def looks(module):
    return module.diary.count(("snapshot", (0, 7), False)) - 1  # one to find out how to ask


def test_the_pool_is_looked_at_again_only_for_memory_that_a_capture_may_have_added(module):
    memory, more = torch.arange(24.0), torch.arange(100.0)
    module.segments = [segment(memory)]
    driver = TorchGraphDriver(module)
    _, pool, _ = capture(driver, module)
    for _ in range(5):
        driver.weak_ref(memory)
        driver.weak_ref(torch.ones(3))
    assert looks(module) == 1
    module.segments.append(segment(more))
    capture(driver, module, pool=pool)
    assert driver.weak_ref(memory) is not memory
    assert looks(module) == 1
    assert driver.weak_ref(more) is not more
    assert looks(module) == 2
    driver.weak_ref(torch.ones(3))
    assert looks(module) == 2


@pytest.mark.parametrize("how", ["reset", "abort", "failed end", "next size", "another pool"])
def test_memory_that_left_the_pool_is_not_taken_for_the_pools(module, how):
    memory = torch.arange(24.0)
    module.segments = [segment(memory)]
    driver = TorchGraphDriver(module)
    graph, pool, _ = capture(driver, module)
    assert driver.weak_ref(memory) is not memory
    module.segments = []
    if how == "reset":
        driver.reset(graph)
    elif how == "next size":
        with driver.capture_context():
            pass
    elif how == "another pool":
        capture(driver, module)
    else:
        broken = driver.new_graph()
        driver.capture_begin(broken, pool, module.side)
        module.fail_end = how == "failed end"
        if module.fail_end:
            with pytest.raises(RuntimeError, match="previous error"):
                driver.capture_end(broken)
        else:
            driver.abort_capture(broken)
    assert driver.weak_ref(memory) is memory


def test_tensors_stay_strong_where_torch_cannot_make_weak_ones(module, monkeypatch):
    memory = torch.arange(24.0)
    module.segments = [segment(memory)]
    driver = TorchGraphDriver(module)
    capture(driver, module)
    monkeypatch.setattr(graphs, "storage_over", lambda *what: None)
    assert driver.weak_ref(memory) is memory


def test_tensors_stay_strong_where_the_allocator_cannot_tell_pools_apart(module):
    memory = torch.arange(24.0)
    module.segments = [{k: v for k, v in segment(memory).items() if k != "segment_pool_id"}]
    driver = TorchGraphDriver(module)
    _, pool, _ = capture(driver, module)
    assert driver.weak_ref(memory) is memory
    assert driver.pool_bytes(pool) == 0


@pytest.mark.parametrize(
    "snapshot", [lambda mempool_id=None: None, lambda: None, None], ids=["pool", "all", "none"]
)
def test_older_forms_of_the_snapshot_are_asked_too(module, snapshot):
    memory = torch.arange(24.0)
    if snapshot is None:
        module.memory_snapshot = None
    else:
        count = snapshot.__code__.co_argcount
        found = [segment(memory, allocated=32), segment(memory, pool=(0, 9))]
        module.memory_snapshot = (lambda mempool_id=None: found) if count else (lambda: found)
    driver = TorchGraphDriver(module)
    pool = driver.new_pool()
    assert driver.pool_bytes(pool) == (0 if snapshot is None else 96)
    assert driver.live_bytes(pool) == (0 if snapshot is None else 32)


def test_what_the_driver_took_is_what_is_missing_beyond_torch_s_own(module):
    driver = TorchGraphDriver(module)
    graphs, pool = [], driver.new_pool()
    graphs.append(capture(driver, module, pool=pool)[0])
    module.free, module.reserved = 700, 300
    graphs.append(capture(driver, module, pool=pool)[0])
    assert driver.driver_bytes(pool) == 100
    module.free = 100
    assert driver.driver_bytes(pool) == 100
    driver.reset(graphs[0])
    assert driver.driver_bytes(pool) == 50
    driver.reset(graphs[0])
    assert driver.driver_bytes(pool) == 50


def test_a_pool_that_somebody_else_has_made_is_captured_into(module):
    driver = TorchGraphDriver(module)
    handle = module.graph_pool_handle()
    pool = driver.pool_of(handle)
    capture(driver, module, pool=pool)
    assert (pool.handle, pool.live) == (handle, 1)


def test_no_graphs_no_driver_memory(module):
    driver = TorchGraphDriver(module)
    assert driver.driver_bytes(driver.new_pool()) == 0


# What is private to torch --------------------------------------------------------------


def test_a_pool_is_left_only_if_it_was_being_allocated_to(monkeypatch):
    told = []

    def end(index, handle):
        if handle == (0, 1):
            raise RuntimeError("endAllocatePool: not currently recording to mempool_id")
        told.append(("end", index, handle))

    def release(index, handle):
        told.append(("release", index, handle))

    monkeypatch.setattr(torch._C, "_acme_endAllocateToPool", end, raising=False)
    monkeypatch.setattr(torch._C, "_acme_releasePool", release, raising=False)
    graphs.leave_pool("acme", 2, (0, 1))
    graphs.leave_pool("other", 2, (0, 2))
    assert told == []
    graphs.leave_pool("acme", 2, (0, 2))
    assert told == [("end", 2, (0, 2)), ("release", 2, (0, 2))]


def test_the_private_names_are_still_there():
    assert graphs.storage_over(0, torch.device("cpu"), 0) is not None


# Advice ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("CUDA error: operation not permitted when stream is capturing", "wait for the device"),
        ("cudaErrorStreamCaptureUnsupported", "host wait"),
        ("HIP error: operation not permitted when stream is capturing", "splitting_ops"),
        (
            "CUDA error: operation would make the legacy stream depend on a capturing blocking "
            "stream",
            "default stream",
        ),
        ("CUDA error: capturing stream has unjoined work", "does not wait for it"),
        (
            "CUDA error: dependency created on uncaptured work in another stream",
            "before the capture",
        ),
        (INVALID, "swallowed"),
        (
            "Cannot copy between CPU and CUDA tensors during CUDA graph capture unless the CPU "
            "tensor is pinned.",
            "pin it",
        ),
        (
            "Attempt to increase offset for a CUDA generator not in capture mode.",
            "default generator",
        ),
        (
            "Cannot call CUDAGeneratorImpl::current_seed during CUDA graph capture. If you need",
            "default generator",
        ),
        ("CUDA graphs must be captured on a non-default stream. (However", "side stream"),
        ("CUDA out of memory. Tried to allocate 2.00 GiB.", "capture_sizes"),
    ],
)
def test_an_error_in_a_capture_gets_advice(module, text, advice):
    driver = TorchGraphDriver(module)
    assert advice in driver.explain(RuntimeError(text))
    wrapped = ValueError("while running piece 3")
    wrapped.__cause__ = RuntimeError(text)
    assert advice in driver.explain(wrapped)


def test_a_platform_s_own_advice_comes_first_and_strangers_get_none(module):
    driver = TorchGraphDriver(module, advice=[("hipErrorNoBinary", "Build for this chip.")])
    assert driver.explain(RuntimeError("hipErrorNoBinaryForGpu")) == "Build for this chip."
    assert driver.explain(KeyError("x")) is None
    assert "capture_sizes" in driver.explain(torch.OutOfMemoryError("allocator says no"))


def test_unsafe_operators_are_those_given(module):
    assert list(TorchGraphDriver(module).unsafe_ops()) == []
    driver = TorchGraphDriver(module, unsafe_ops=["aten::nonzero"])
    assert list(driver.unsafe_ops()) == ["aten::nonzero"]


def test_a_warning_that_the_graph_is_empty_leaves_nothing_capturing(left):
    """Torch warns between the end of the capture and what it tells the generators."""

    class Empty(Graph):
        def capture_end(self):
            super().capture_end()
            warnings.warn("The CUDA Graph is empty.", stacklevel=1)
            told.append(self)

    told: list[Graph] = []
    module = FakeModule(Empty)
    driver = TorchGraphDriver(module)
    pool = driver.new_pool()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph, _, _ = capture(driver, module, pool=pool)
    assert told[-1] is graph
    assert graph.state == "ready"
    assert module.capturing is None
    assert left == []
