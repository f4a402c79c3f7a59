"""Graphs that share executables, on stand-ins for CUDA's libraries and torch's graphs."""

from __future__ import annotations

import contextlib
import itertools
from types import SimpleNamespace

import pytest
import torch

import piecewise_core as pw
from piecewise_core.capture.torch_runtime import TorchRuntime
from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.protocols import Capabilities
from piecewise_core.testing.conformance.running import run_suite, suite_for
from piecewise_core.testing.simulated import torch_module
from piecewise_cuda.driver import CudaGraphDriver
from piecewise_cuda.executables import Family, SharedGraph
from piecewise_cuda.graphcalls import Calls, cuda_calls
from piecewise_rocm.driver import RocmGraphDriver

KERNEL, COPY, HOST = 0, 1, 3
CLUSTER, REFUSED, MUST_HAVE_CLUSTERS = 4, 6, 10


class Cuda:
    """What CUDA holds: nodes of graphs, what executables launch, and what was launched.

    ``refuses``: graphs that no update takes.
    """

    def __init__(self):
        self.nodes, self.executables, self.ran, self.cleared = {}, {}, [], 0
        self.edges = {}
        self.refuses, self.updates, self.mode, self.device = set(), 0, 0, 0
        self.handles = itertools.count(100)
        self.family = Family(self.calls(), lambda graph: graph.replay, 1)

    def calls(self):
        runtime = SimpleNamespace(
            cudaGraphExecUpdate=function(self.update),
            cudaGetLastError=self.clear,
            cudaThreadExchangeStreamCaptureMode=self.exchange,
        )
        driver = SimpleNamespace(
            cuGraphGetNodes=function(self.list_nodes),
            cuGraphGetEdges_v2=function(self.list_edges),
            cuGraphNodeGetType=function(self.kind),
            cuGraphKernelNodeGetParams_v2=function(self.params),
            cuGraphKernelNodeGetAttribute=function(self.of_launch),
            cuFuncGetAttribute=function(self.of_function),
        )
        return Calls(runtime, driver, lambda: self.device, self.switch)

    @contextlib.contextmanager
    def switch(self, device):
        before, self.device = self.device, device
        yield
        self.device = before

    def exchange(self, mode):
        self.mode, mode._obj.value = mode._obj.value, self.mode

    def update(self, executable, graph, info):
        assert (self.mode, self.device) == (2, 1)
        self.updates += 1
        if graph in self.refuses:
            self.executables[executable] = "nobody knows"
            return 910
        self.executables[executable] = graph
        return 0

    def clear(self):
        self.cleared += 1

    def list_nodes(self, graph, nodes, count):
        found = self.nodes[graph]
        if nodes is None:
            count._obj.value = len(found)
            return 0
        for place in range(len(found)):
            nodes[place] = graph * 1000 + place + 1
        return 0

    def list_edges(self, graph, begin, end, kinds, count):
        found = self.edges.get(graph, [(0, place, 0) for place in range(1, len(self.nodes[graph]))])
        if begin is None:
            count._obj.value = len(found)
            return 0
        for place, (one, other, kind) in enumerate(found):
            begin[place], end[place] = graph * 1000 + one + 1, graph * 1000 + other + 1
            kinds[place].data[2] = kind
        return 0

    def kind(self, node, kind):
        kind._obj.value = self.node(node)[0]
        return 0

    def params(self, node, params):
        params._obj.function = self.node(node)[1]
        return 0

    def of_launch(self, node, which, held):
        held[2] = self.node(node)[2].get(which, 0)
        return 1 if which == REFUSED else 0

    def of_function(self, number, which, function):
        number._obj.value = int(which == MUST_HAVE_CLUSTERS and function > 900)
        return 0

    def node(self, node):
        return self.nodes[node // 1000][node % 1000 - 1]

    def graph(self, *nodes, pool=(0, 7), family=None, edges=None):
        """A captured one of ``nodes``, (kind, function, attributes) each.

        ``edges``: (from, to, kind) each; usually from the first to each other.
        """
        torch_graph = Graph(self, nodes, edges)
        shared = SharedGraph(torch_graph, family or self.family)
        shared.capture_begin(pool=pool, capture_error_mode="thread_local")
        shared.capture_end()
        return shared


def function(method):
    """A function whose attributes can be set, as those of ctypes."""
    return lambda *args: method(*args)


class Graph:
    """Torch's, made with keep_graph=True."""

    def __init__(self, cuda, nodes, edges=None):
        self.cuda, self.nodes, self.edges = cuda, nodes, edges
        self.raw = self.executable = None
        self.resets = 0

    def register_generator_state(self, generator): ...
    def debug_dump(self, path): ...

    def capture_begin(self, pool, capture_error_mode):
        assert capture_error_mode == "thread_local"

    def capture_end(self):
        self.raw = next(self.cuda.handles)
        self.cuda.nodes[self.raw] = self.nodes
        if self.edges is not None:
            self.cuda.edges[self.raw] = self.edges

    def instantiate(self):
        self.cuda.executables.pop(self.executable, None)
        self.executable = next(self.cuda.handles)
        self.cuda.executables[self.executable] = self.raw

    def raw_cuda_graph(self):
        return self.raw

    def raw_cuda_graph_exec(self):
        return self.executable

    def replay(self):
        assert self.raw is not None, "replayed after its reset"
        if self.executable is None:
            self.instantiate()
        self.cuda.ran.append(self.cuda.executables[self.executable])

    def reset(self):
        self.resets += 1
        self.cuda.executables.pop(self.executable, None)
        self.raw = self.executable = None


@pytest.fixture
def cuda():
    return Cuda()


def launched(cuda, graph):
    """Whether a replay of ``graph`` launches just that."""
    cuda.ran.clear()
    graph.replay()
    return cuda.ran == [graph._graph.raw]


ONE, OTHER = (KERNEL, 11, {}), (KERNEL, 12, {})
WIDE, WIDER = (KERNEL, 11, {CLUSTER: 2}), (KERNEL, 11, {CLUSTER: 4})
COPIES = (COPY, 0, {})


def test_graphs_of_like_launches_take_turns_in_one_executable(cuda):
    graphs = [cuda.graph(each, COPIES, WIDE) for each in (ONE, OTHER, ONE)]
    assert len(cuda.executables) == 1
    for order in itertools.permutations(graphs):
        assert all(launched(cuda, graph) for graph in order for _ in range(2))
    assert (cuda.mode, cuda.device) == (0, 0)


@pytest.mark.parametrize("current", [0, 1])
def test_it_is_brought_up_to_date_only_where_another_was_launched_last(cuda, current):
    first, second = cuda.graph(ONE), cuda.graph(ONE)
    cuda.updates, cuda.device = 0, current
    for graph in (second, second, first, first, first, second):
        graph.replay()
    assert (cuda.updates, cuda.device) == (2, current)


@pytest.mark.parametrize(
    ("nodes", "how"),
    [
        # CUDA would take them, and launch with the attributes that it has.
        ([ONE, WIDER], {}),
        ([ONE, (KERNEL, 901, {CLUSTER: 2})], {}),
        ([ONE, WIDE, ONE], {}),
        ([ONE, WIDE], {"edges": [(0, 1, 1)]}),
        ([ONE, WIDE], {"edges": []}),
        ([ONE, COPIES], {}),
        ([ONE, WIDE], {"pool": (0, 8)}),
    ],
)
def test_other_launches_edges_and_pools_have_their_own(cuda, nodes, how):
    first, other = cuda.graph(ONE, WIDE), cuda.graph(*nodes, **how)
    assert len(cuda.executables) == 2
    assert launched(cuda, other)
    assert launched(cuda, first)
    assert cuda.updates == 0


def test_nodes_that_no_update_replaces_share_nothing(cuda):
    graphs = [cuda.graph(ONE, (HOST, 0, {})) for _ in range(2)]
    assert len(cuda.executables) == 2
    assert all(launched(cuda, graph) for graph in graphs)


def test_what_cuda_refuses_has_its_own_and_the_error_is_cleared(cuda):
    first = cuda.graph(ONE)
    cuda.refuses = {next(cuda.handles) + 1}
    second = cuda.graph(ONE)
    assert (cuda.cleared, cuda.mode) == (1, 0)
    assert len(cuda.executables) == 2
    for graph in (first, second, first):
        assert launched(cuda, graph)
    assert launched(cuda, cuda.graph(ONE))
    assert len(cuda.executables) == 2


@pytest.mark.parametrize("refused", [0, 1])
def test_an_update_that_fails_later_costs_memory_and_no_results(cuda, refused):
    graphs = [cuda.graph(ONE) for _ in range(2)]
    graphs[1 - refused].replay()
    cuda.refuses = {graphs[refused]._graph.raw}
    for graph in (*graphs, *reversed(graphs)):
        assert launched(cuda, graph)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_any_reset_leaves_the_others_and_the_last_frees_all(cuda, order):
    graphs = [cuda.graph(ONE) for _ in range(3)]
    torch_graphs = [graph._graph for graph in graphs]
    left = list(graphs)
    for gone in order:
        graphs[gone].reset()
        graphs[gone].reset()
        left.remove(graphs[gone])
        assert all(launched(cuda, graph) for graph in (*left, *reversed(left)))
    assert [graph.resets for graph in torch_graphs] == [1, 1, 1]
    assert cuda.executables == {}
    assert launched(cuda, cuda.graph(ONE))


def test_a_graph_joins_those_whose_first_is_gone(cuda):
    first, second = cuda.graph(ONE), cuda.graph(ONE)
    first.reset()
    third = cuda.graph(ONE)
    assert len(cuda.executables) == 1
    assert launched(cuda, second)
    assert launched(cuda, third)
    with pytest.raises(RuntimeError, match="holds nothing"):
        first.replay()


def test_a_graph_whose_capture_failed_is_reset_as_torch_has_it(cuda):
    graph = SharedGraph(Graph(cuda, [ONE]), cuda.family)
    graph.capture_begin(pool=(0, 7), capture_error_mode="thread_local")
    graph.reset()
    graph.reset()
    assert graph._graph.resets == 2


def loader(*missing):
    def load(name):
        if name in missing:
            raise OSError(name)
        names = ("cudaGraphExecUpdate", "cudaGetLastError", "cudaThreadExchangeStreamCaptureMode")
        names = (*names, "cuGraphGetNodes", "cuGraphGetEdges_v2", "cuGraphNodeGetType")
        names = (*names, "cuGraphKernelNodeGetParams_v2", "cuGraphKernelNodeGetAttribute")
        names = (*names, "cuFuncGetAttribute")
        return SimpleNamespace(**{n: function(print) for n in names if n not in missing})

    return load


KEEPS = SimpleNamespace(raw_cuda_graph_exec=None)


def test_a_torch_without_cuda_is_offered_nothing():
    offered = hasattr(CudaGraphDriver(), "graph_like")
    assert not (offered and torch.version.cuda is None)
    assert offered or not torch.cuda.is_available()
    assert not hasattr(RocmGraphDriver(), "graph_like")


def test_calls_are_those_of_the_libraries_of_torch_s_cuda():
    assert isinstance(cuda_calls("13.0", KEEPS, loader("libcudart.so.12")), Calls)


@pytest.mark.parametrize(
    ("version", "graphs", "missing"),
    [
        (None, KEEPS, ()),
        ("11.8", KEEPS, ()),  # the call has other parameters there
        ("13.0", SimpleNamespace(), ()),
        ("13.0", KEEPS, ("libcudart.so.13",)),
        ("13.0", KEEPS, ("libcuda.so.1",)),
        ("12.8", KEEPS, ("cuGraphKernelNodeGetParams_v2",)),
    ],
)
def test_nothing_is_offered_where_something_is_missing(version, graphs, missing):
    assert cuda_calls(version, graphs, loader(*missing)) is None


# The driver, on the simulated device ----------------------------------------------------


class Module(torch_module.TorchModule):
    """``torch.cuda`` with executables, on CPU tensors. ``major``: of the compute capability."""

    __name__ = "stand_in.cpu"
    Stream = torch_module.TorchModule.new_stream

    def __init__(self, major=9):
        super().__init__()
        self.major, self.graphs, self.executables = major, {}, {}
        self.numbers = itertools.count(1)
        self.CPUGraph = type("CPUGraph", (KeptGraph,), {"module": self})

    def get_device_capability(self):
        return self.major, 0

    def switch(self, device):
        return contextlib.nullcontext()


class KeptGraph(torch_module.CPUGraph):
    """Torch's: with ``keep_graph`` it is instantiated when it is first replayed, or asked to be."""

    def __init__(self, keep_graph=False):
        super().__init__(self.module)
        self.kept, self.number, self.executable = keep_graph, next(self.module.numbers), None
        self.module.graphs[self.number] = self._graph

    def capture_end(self):
        super().capture_end()
        if not self.kept:
            self.instantiate()

    def instantiate(self):
        self.module.executables.pop(self.executable, None)
        self.executable = next(self.module.numbers)
        self.module.executables[self.executable] = self._graph.recording

    def raw_cuda_graph(self):
        assert self.kept
        return self.number

    def raw_cuda_graph_exec(self):
        return self.executable

    def replay(self):
        if self.executable is None:
            self.instantiate()
        self.module.executables[self.executable].run()

    def reset(self):
        self.module.executables.pop(self.executable, None)
        self.executable = None
        super().reset()

    def debug_dump(self, path): ...


class OnModule:
    """CUDA's calls there. Whatever runs the same operators may share."""

    def __init__(self, module):
        self.module = module

    def unchanging(self, graph):
        steps = self.module.graphs[graph].recording.steps
        return tuple(getattr(step, "function", "") for step in steps)

    def update(self, executable, graph, device):
        self.module.executables[executable] = self.module.graphs[graph].recording
        return True


class StandIn:
    """The CUDA platform, but for the device."""

    name, device_type = "cuda", "cpu"

    def __init__(self, major=9):
        module = Module(major)
        self.device = TorchRuntime(module)
        self.graphs = CudaGraphDriver(module, calls=OnModule(module))
        self.compiler, self.capabilities = EagerCompiler(), Capabilities()
        self.module = module


def test_the_driver_keeps_the_contract_of_graphs():
    suite = suite_for(StandIn, level="L2", rounds=10)
    found = run_suite(suite, chosen=lambda spec: spec.level in ("L0", "L2"))
    assert [(r.name, r.reason) for r in found if r.outcome in ("failed", "blocked")] == []
    passed = {r.name for r in found if r.outcome == "passed"}
    assert {"test_graphs_that_share_take_turns", "test_executables_are_counted"} <= passed


@pytest.mark.parametrize(("major", "shared"), [(9, 2), (10, 6)])
def test_a_model_on_it_shares_executables_and_gives_all_back(major, shared):
    platform = StandIn(major)
    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", 1, 8)}},
        splitting_ops=("torch.softmax",),
        capture_sizes=(2, 4, 8),
        graph_executables="shared",
    )

    def model(x):
        return torch.softmax(x * 2 + 1, -1).sin()

    with torch.inference_mode():
        fast = pw.compile(model, config, platform=platform)
        fast.warmup(torch.randn(8, 4))
        assert fast.stats().executables == shared
        for rows in (2, 8, 4, 2, 2, 8):
            x = torch.randn(rows, 4)
            assert torch.equal(fast(x), model(x))
        fast.release([8])
        assert torch.equal(fast(x[:2]), model(x[:2]))
        fast.release()
        assert fast.stats().executables == 0
        assert len(platform.module.executables) == 1  # of the anchor, which goes with its object
        fast.restore()
        assert torch.equal(fast(x), model(x))


def test_a_capture_that_fails_leaves_those_that_share():
    platform, failing = StandIn(), [4]

    def model(x):
        y = x * 2 + 1
        if len(x) in failing and platform.graphs.is_capturing():
            raise RuntimeError("no")
        return y.sin()

    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", 1, 8)}},
        capture_sizes=(2, 4, 8),
        graph_executables="shared",
    )
    with torch.inference_mode():
        fast = pw.record(model, config, platform=platform)
        assert len(fast.warmup(torch.randn(8, 4)).dropped) == 1
        assert fast.stats().executables == 1
        failing.clear()
        for rows in (8, 2, 4, 8):
            x = torch.randn(rows, 4)
            assert torch.equal(fast(x), model(x))
        fast.release()
        fast.restore()
        assert torch.equal(fast(x), model(x))
    assert fast.stats().executables == 1
