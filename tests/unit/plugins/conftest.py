"""Plugins as they really are: distributions with metadata and modules, on the path of the test."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from piecewise_core.backend import PiecewiseBackend
from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.protocols import Capabilities, CompiledGraph
from piecewise_core.testing import SimulatedPlatform
from piecewise_core.testing.simulated.driver import SimulatedDriver
from piecewise_core.testing.simulated.runtime import SimulatedRuntime

PLATFORM = """
from types import SimpleNamespace
from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import Capabilities, PlatformInfo, Probe

class Runtime:
    def current_stream(self): ...
    def new_stream(self): ...
    def stream(self, stream): ...
    def synchronize(self): ...

class Compiler:
    name = "fake"
    def compile(self, graph, example_inputs, *, key, config): ...
    def hash_factors(self): return {{}}

def create():
    {create}
    return SimpleNamespace(
        device=Runtime(), graphs=None, compiler=Compiler(), capabilities=Capabilities(),
        made_by={name!r},
    )

def probe():
    {probe}
    return Probe({available}, {why!r})

@hookimpl
def piecewise_platforms():
    yield PlatformInfo({name!r}, {device!r}, {api}, probe, create)
"""


class Site:
    """A directory on ``sys.path`` that distributions are installed into."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.modules: list[str] = []

    def install(
        self, distribution: str, version: str = "1.0", *, entry: str | None = None, source: str = ""
    ) -> str:
        """Write dist-info and, when ``entry`` is given, a plugin module; return its name."""
        stem = distribution.replace("-", "_")
        info = self.directory / f"{stem}-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata)
        module = f"{stem}_plugin"
        if entry is not None:
            (info / "entry_points.txt").write_text(f"[piecewise]\n{entry} = {module}\n")
            (self.directory / f"{module}.py").write_text(source)
            self.modules.append(module)
        importlib.invalidate_caches()
        return module

    def platform(
        self,
        distribution: str,
        name: str,
        device: str = "cpu",
        *,
        version: str = "1.0",
        entry: str | None = None,
        available: bool = True,
        why: str = "it is there",
        api: tuple[int, int] = (1, 0),
        probe: str = "pass",
        create: str = "pass",
    ) -> str:
        """Install a plugin that announces one platform; return its module's name."""
        source = PLATFORM.format(
            name=name,
            device=device,
            available=available,
            why=why,
            api=api,
            probe=probe,
            create=create,
        )
        return self.install(distribution, version, entry=entry or name, source=source)

    def imported(self) -> list[str]:
        """The plugin modules that have been imported so far."""
        return [module for module in self.modules if module in sys.modules]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """An environment in which no plugin is installed but those that the test installs."""
    monkeypatch.delenv("PIECEWISE_PLATFORM", raising=False)
    hidden, directory = tmp_path / "hidden", tmp_path / "site"
    hidden.mkdir()
    directory.mkdir()
    installed = importlib.metadata.entry_points(group="piecewise")
    monkeypatch.syspath_prepend(str(hidden))
    monkeypatch.syspath_prepend(str(directory))
    # The first distribution of a name on the path hides the others, here without entry points.
    hiding = Site(hidden)
    for name in {point.dist.name for point in installed if point.dist is not None}:
        hiding.install(name, "0")
    site = Site(directory)
    yield site
    for module in site.modules:
        sys.modules.pop(module, None)


class Runtime:
    """A DeviceRuntime that does nothing."""

    def current_stream(self): ...
    def new_stream(self): ...
    def stream(self, stream): ...
    def synchronize(self): ...


class Compiler:
    """A CompilerAdaptor that does nothing."""

    name = "nothing"

    def compile(self, graph, example_inputs, *, key, config): ...
    def hash_factors(self): ...


class Graphs:
    """A GraphDriver that does nothing."""

    def new_pool(self): ...
    def new_graph(self): ...
    def capture_begin(self, graph, pool, stream): ...
    def capture_end(self, graph): ...
    def replay(self, graph): ...
    def reset(self, graph): ...
    def is_capturing(self): ...


@pytest.fixture
def platform() -> SimpleNamespace:
    """A platform that keeps the contract; a test breaks what it likes."""
    return SimpleNamespace(
        device=Runtime(), graphs=Graphs(), compiler=Compiler(), capabilities=Capabilities()
    )


class Portable(EagerCompiler):
    """A compiler with every optional method."""

    name = "portable"

    def __init__(self):
        self.options = []

    def compile(self, graph, example_inputs, *, key, config):
        return self._made(graph.graph.python_code("self").src.encode())

    def load(self, handle):
        return self._made(handle)

    def _made(self, handle):
        scope = {"torch": torch}
        exec(handle.decode(), scope)
        return CompiledGraph(lambda *args: scope["forward"](None, *args), lambda: handle)

    def configure(self, options):
        self.options.append(options)

    def passes(self):
        return []


class FullRuntime(SimulatedRuntime):
    """The simulated runtime with what it leaves out."""

    def fingerprint(self):
        return {"board": "4"}

    def elapsed(self, run):
        run()
        return 1.0

    def stream_order(self):
        return lambda: None


class Parts(nn.Module):
    """Two products of different inputs, for two streams."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 512), nn.Linear(4, 512)

    def forward(self, x):
        return self.a(x) * self.b(torch.relu(x))


class Driver(SimulatedDriver):
    """The simulated driver with what it leaves out."""

    failing = False

    def __init__(self, like):
        vars(self).update(vars(like))
        self.weak_ref = self._weak_ref
        self.register_generator = self._register_generator
        self.graph_like, self.executables = self._graph_like, self._executables
        self.wait_stream = self._wait_stream
        self.told = []

    def capture_context(self):
        return torch.no_grad()

    def before_replay(self, graph, call):
        self.told.append(call)

    def capture_end(self, graph):
        if self.failing:
            raise torch.OutOfMemoryError("out of memory: 4 bytes were wanted")
        super().capture_end(graph)


class Full(SimulatedPlatform):
    """The simulated device with everything that a platform may have."""

    piecewise_backend = PiecewiseBackend

    def __init__(self):
        super().__init__()
        self.graphs = Driver(self.graphs)
        self.device = FullRuntime(self.device._device)
        self.compiler = Portable()

    def self_check(self):
        return {"board": "simulated"}


@pytest.fixture
def everything() -> SimpleNamespace:
    """Classes that implement every method of every Protocol, required or optional."""
    return SimpleNamespace(Platform=Full, Driver=Driver, Compiler=Portable, Parts=Parts)


@pytest.fixture
def store(monkeypatch, tmp_path) -> Path:
    """A compile store of the test's own."""
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"
