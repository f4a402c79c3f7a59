"""What each device module of torch has, as read in the wheels, and what core makes of it.

Read in torch 2.14.1 (cuda, xpu, mtia, accelerator) and torch-npu 2.14.0. Stand-ins have the same
names and signatures, and nothing else. The reference has the same table.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from piecewise_core.building_blocks import AcceleratorGraphDriver, TorchGraphDriver, TorchRuntime
from piecewise_core.errors import TorchUnsupported
from piecewise_core.plugins.contract import differences
from piecewise_core.protocols import DeviceRuntime, GraphDriver, GraphExtras, RuntimeExtras

STREAMS = "current_stream Stream stream synchronize"
MEMORY = "mem_get_info memory_reserved memory_snapshot"
COMMON = "init default_generators current_device get_device_properties memory_stats empty_cache"
TABLE = {
    "cuda": (
        "CUDAGraph",
        "(self, pool=None, capture_error_mode='global', check_input_liveness=False)",
        f"{STREAMS} {MEMORY} {COMMON} graph_pool_handle is_current_stream_capturing",
    ),
    "xpu": (
        "XPUGraph",
        "(self, pool=None)",
        f"{STREAMS} {MEMORY} {COMMON} graph_pool_handle is_current_stream_capturing",
    ),
    "npu": (
        "NPUGraph",
        "(self, pool=None, capture_error_mode='global')",
        f"{STREAMS} {MEMORY} {COMMON} graph_pool_handle is_current_stream_capturing",
    ),
    "mtia": ("MTIAGraph", "(self, pool)", f"{STREAMS} {COMMON} graph_pool_handle"),
}
"""Module -> its graph class, what its capture_begin takes, and which of core's names it has."""

REGISTERS = {"cuda"}
"""Whose graph class has register_generator_state."""


class Stand:
    """A device module with the names of a row of the table. ``notes``: calls of its graphs."""

    def __init__(self, kind, without=()):
        self.__name__ = f"torch.{kind}"
        self.notes, self.capturing = [], False
        self.graphs, begin, names = TABLE[kind]
        taken = {n for n in inspect_names(begin) if n != "self"}
        known = {
            "current_stream": lambda: "stream",
            "graph_pool_handle": lambda: (0, 1),
            "is_current_stream_capturing": lambda: self.capturing,
            "mem_get_info": lambda: (100, 200),
            "memory_reserved": lambda: 10,
            "memory_snapshot": lambda mempool_id=None: [],
            "memory_stats": dict,
            "current_device": lambda: 0,
            "default_generators": [torch.default_generator],
            "get_device_properties": lambda index: SimpleNamespace(name=kind),
        }
        for name in {*names.split()} - {*without}:
            setattr(self, name, known.get(name, lambda *_: None))
        if "graphs" not in without:
            setattr(self, self.graphs, graph_class(self, kind, taken))


def inspect_names(signature):
    scope = {}
    exec(f"def capture_begin{signature}: ...", scope)
    return inspect.signature(scope["capture_begin"]).parameters


def graph_class(module, kind, taken):
    class Graph:
        def _begin(self, **given):
            assert set(given) <= taken
            module.notes.append(given)
            module.capturing = True

        def capture_end(self):
            module.capturing = False

        def replay(self): ...
        def reset(self): ...

    scope = {}
    call = ", ".join(f"{name}={name}" for name in sorted(taken))
    exec(f"def capture_begin{TABLE[kind][1]}: self._begin({call})", scope)
    Graph.capture_begin = scope["capture_begin"]
    if kind in REGISTERS:
        Graph.register_generator_state = lambda self, generator: None
    return Graph


@pytest.mark.parametrize("kind", TABLE)
def test_the_driver_captures_with_what_the_module_has(kind):
    module = Stand(kind)
    driver = TorchGraphDriver(module, device_type="cpu", graph_class=getattr(module, module.graphs))
    assert differences(driver, GraphDriver, GraphExtras) == []
    graph, pool = driver.new_graph(), driver.new_pool()
    driver.capture_begin(graph, pool, "stream")
    assert driver.is_capturing()
    if not hasattr(module, "is_current_stream_capturing"):
        module.current_stream = lambda: "another stream"
        assert not driver.is_capturing()
        module.current_stream = lambda: "stream"
    driver.capture_end(graph)
    assert not driver.is_capturing()
    assert all(note["pool"] == (0, 1) for note in module.notes)
    modes = {note.get("capture_error_mode") for note in module.notes}
    assert modes == {"thread_local" if "capture_error_mode" in TABLE[kind][1] else None}
    assert hasattr(driver, "register_generator") == (kind in REGISTERS)
    assert driver.driver_bytes(pool) == 0
    driver.reset(graph)


@pytest.mark.parametrize("kind", TABLE)
def test_the_class_of_its_graphs_is_found_by_the_device_s_type(kind):
    module = Stand(kind)
    assert isinstance(
        TorchGraphDriver(module, device_type=kind).new_graph(), getattr(module, module.graphs)
    )


@pytest.mark.parametrize("kind", TABLE)
def test_the_runtime_has_the_methods_that_the_module_can_answer(kind):
    runtime = TorchRuntime(Stand(kind))
    assert differences(runtime, DeviceRuntime, RuntimeExtras) == []
    assert hasattr(runtime, "memory_info") == (kind != "mtia")
    assert runtime.fingerprint() == {"name": kind}
    assert runtime.rng() is torch.default_generator


@pytest.mark.parametrize(
    ("without", "lost"),
    [
        ("mem_get_info", "memory_info"),
        ("memory_stats", "memory_stats"),
        ("empty_cache", "empty_cache"),
        ("default_generators", "rng"),
        ("get_device_properties", "fingerprint"),
    ],
)
def test_what_a_module_lacks_its_runtime_does_not_declare(without, lost):
    runtime = TorchRuntime(Stand("xpu", [without]))
    assert differences(runtime, DeviceRuntime, RuntimeExtras) == []
    assert not hasattr(runtime, lost)
    with pytest.raises(AttributeError, match=f"torch.xpu has no {without}"):
        getattr(runtime, lost)


@pytest.mark.parametrize(
    ("make", "without", "said"),
    [
        (TorchRuntime, ["Stream", "stream"], "has no Stream, stream, which TorchRuntime calls"),
        (TorchRuntime, ["synchronize"], "has no synchronize.*write a DeviceRuntime of your own"),
        (TorchGraphDriver, ["graph_pool_handle"], "has no graph_pool_handle.*Platform.graphs to"),
        (TorchGraphDriver, ["graphs"], r"torch.xpu has no XPUGraph.*graph_class=.*Accelerator"),
    ],
)
def test_half_a_module_is_refused_when_the_platform_is_made(make, without, said):
    with pytest.raises(TorchUnsupported, match=said):
        make(Stand("xpu", without))


def test_an_override_is_there_whatever_the_module_has():
    class Own(TorchRuntime):
        def memory_info(self):
            return 1, 2

        def empty_cache(self):
            return super().empty_cache()

    assert Own(Stand("mtia")).memory_info() == (1, 2)
    assert Own(Stand("xpu")).empty_cache() is None


@pytest.mark.parametrize("kind", ["cuda", "xpu"])
def test_the_modules_of_the_installed_torch_have_what_the_table_says(kind):
    module, (graphs, begin, names) = getattr(torch, kind), TABLE[kind]
    assert [name for name in names.split() if not hasattr(module, name)] == []
    taken = inspect.signature(getattr(module, graphs).capture_begin).parameters
    assert set(taken) <= set(inspect_names(begin))  # older torch takes less
    if kind not in REGISTERS:  # a build without the device has no native methods
        assert not hasattr(getattr(module, graphs), "register_generator_state")


def test_torch_s_accelerator_has_what_its_driver_asks_for():
    accelerator = torch.accelerator
    if not hasattr(accelerator, "Graph"):
        pytest.skip("this torch has no torch.accelerator.Graph")
    for name in ("current_stream", "set_stream", "synchronize", "memory_reserved"):
        assert hasattr(accelerator, name)
    parameters = inspect.signature(accelerator.Graph.__init__).parameters
    assert {"pool", "capture_error_mode"} <= set(parameters)
    assert list(inspect.signature(accelerator.Graph.capture_begin).parameters) == ["self"]
    with pytest.raises(TorchUnsupported, match="no graph_pool_handle"):
        AcceleratorGraphDriver(device_type="vulkan")


def test_the_reference_has_the_table():
    page = Path(__file__).parents[3] / "docs" / "reference" / "plugins.md"
    text = page.read_text(encoding="utf-8")
    for kind, (graphs, begin, names) in TABLE.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `torch.{kind}` |")]
        assert f"`{graphs}`" in row
        assert all(f"`{name}`" in row for name in inspect_names(begin) if name != "self")
        for name in (*MEMORY.split(), "is_current_stream_capturing"):
            assert (f"no `{name}`" in row) == (name not in names.split()), (kind, name)
