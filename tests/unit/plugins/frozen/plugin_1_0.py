"""A plugin written against API version 1.0, every method spelt out; never edited."""

from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import (
    BudgetContext,
    Capabilities,
    CompiledGraph,
    PlatformInfo,
    Probe,
    ReplayCall,
)


class Runtime:
    def __init__(self, board):
        self._board = board

    def current_stream(self):
        return self._board.current_stream()

    def new_stream(self):
        return self._board.new_stream()

    def stream(self, stream):
        return self._board.stream(stream)

    def synchronize(self):
        return self._board.synchronize()

    def memory_info(self):
        return self._board.memory_info()

    def memory_stats(self):
        return self._board.memory_stats()

    def empty_cache(self):
        return self._board.empty_cache()

    def rng(self):
        return self._board.rng()

    def fingerprint(self):
        return {"board": "frozen"}


class Driver:
    runs_captures = True

    def __init__(self, board):
        self._board = board
        self.calls = []

    def new_pool(self):
        return self._board.new_pool()

    def new_graph(self):
        return self._board.new_graph()

    def capture_begin(self, graph, pool, stream):
        self._board.capture_begin(graph, pool, stream)

    def capture_end(self, graph):
        self._board.capture_end(graph)

    def replay(self, graph):
        self._board.replay(graph)

    def reset(self, graph):
        self._board.reset(graph)

    def is_capturing(self):
        return self._board.is_capturing()

    def replayer(self, graph):
        return self._board.replayer(graph)

    def weak_ref(self, tensor):
        return self._board.weak_ref(tensor)

    def register_generator(self, graph, generator):
        self._board.register_generator(graph, generator)

    def resource_budget(self, ctx):
        assert isinstance(ctx, BudgetContext)
        return ctx.graphs_per_size * len(ctx.sizes) + ctx.captured

    def explain(self, exc):
        return self._board.explain(exc)

    def unsafe_ops(self):
        return ["aten::nonzero"]

    def capture_context(self):
        from contextlib import nullcontext

        return nullcontext()

    def abort_capture(self, graph):
        self._board.abort_capture(graph)

    def before_replay(self, graph, call):
        assert isinstance(call, ReplayCall)
        self.calls.append((call.captured, call.sizes, len(call.inputs)))

    def pool_bytes(self, pool):
        return self._board.pool_bytes(pool)

    def driver_bytes(self, pool):
        return self._board.driver_bytes(pool)

    def live_bytes(self, pool):
        return self._board.live_bytes(pool)

    def stager(self, buffers):
        return None

    def dump(self, graph, path):
        self._board.dump(graph, path)


class Compiler:
    name = "frozen"

    def __init__(self):
        self.options = None

    def compile(self, graph, example_inputs, *, key, config):
        assert isinstance(key, str)
        assert config.to_dict() == self.options
        return CompiledGraph(graph.forward, None)

    def hash_factors(self):
        return {"frozen": "1.0"}

    def load(self, handle):
        raise ValueError("nothing was kept")

    def configure(self, options):
        self.options = dict(options)

    def passes(self):
        return [self._count]

    def _count(self, graph):
        graph.graph.lint()


class Backend:
    def __init__(
        self,
        graph,
        config,
        graph_pool,
        piecewise_compile_index,
        total_piecewise_compiles,
        sym_shape_indices,
        compiled_graph_for_general_shape,
        backend,
        **kwargs,
    ):
        self._general = compiled_graph_for_general_shape

    def __call__(self, *args):
        return self._general()(*args)


class Platform:
    name = "frozen"
    device_type = "cpu"
    piecewise_backend = None

    def __init__(self):
        from piecewise_core.testing import SimulatedPlatform

        board = SimulatedPlatform()
        self.device = Runtime(board.device)
        self.graphs = Driver(board.graphs)
        self.compiler = Compiler()
        self.capabilities = Capabilities(alignment=1)

    def self_check(self):
        return {"board": "simulated"}


class WithBackend(Platform):
    piecewise_backend = Backend


def probe():
    return Probe(True, "simulated", {"board": "none"})


@hookimpl
def piecewise_platforms():
    yield PlatformInfo("frozen", "cpu", (1, 0), probe, Platform)
    yield PlatformInfo("frozen-backend", "cpu", (1, 0), probe, WithBackend)


@hookimpl
def piecewise_compilers():
    return {"frozen": Compiler}


@hookimpl
def piecewise_passes():
    return [lambda graph: graph.graph.lint()]
