"""Core reads what it lets a vendor declare: every method, required or optional, and capability."""

from __future__ import annotations

import contextlib
import inspect
import sys
from dataclasses import fields

import pytest
import torch

import piecewise_core as pw
from piecewise_core.cli.checkup import check_up
from piecewise_core.errors import CaptureFailed
from piecewise_core.frontend.background import Background
from piecewise_core.plugins.candidates import Candidate
from piecewise_core.plugins.discovery import PluginEntry
from piecewise_core.protocols import (
    Capabilities,
    CompilerAdaptor,
    CompilerExtras,
    DeviceRuntime,
    GraphDriver,
    GraphExtras,
    Platform,
    PlatformExtras,
    PlatformInfo,
    Probe,
    RuntimeExtras,
)
from piecewise_core.testing import SimulatedPlatform
from piecewise_core.testing.simulated.runtime import SimulatedRuntime

CHECKS = ("piecewise_core.plugins.contract", "piecewise_core.testing", "piecewise_core.protocols")
"""What looks at every name without using it, and what is no part of core."""

CONFIG = pw.Config(
    dynamic={"x": {0: pw.Dim("rows", min=1, max=8)}},
    splitting_ops=("torch.nn.functional.layer_norm",),
    capture_sizes=(4, 8),
)


MORE = {"padding": "capture_sizes", "graph_executables": "shared"}


def layers(x):
    x = torch.nn.functional.layer_norm(torch.relu(x) + 1, (4,))
    return x * 2


def watched(everything, seen):
    """A platform that has everything, made so that ``seen`` tells what core asks it for."""

    class Full(everything.Platform):
        def __init__(self):
            super().__init__()
            self.graphs = noting(everything.Driver, "GraphDriver", seen)(self.graphs)
            self.device = noting(type(self.device), "DeviceRuntime", seen)(self.device._device)
            self.compiler = noting(everything.Compiler, "CompilerAdaptor", seen)()
            self.capabilities = noting(Capabilities, "Capabilities", seen)()

    return noting(Full, "Platform", seen)


def noting(kind, title, seen):
    """A subclass that notes which of its names core reads; of its methods, which it calls."""

    def note(name):
        asker = sys._getframe(2).f_globals["__name__"]
        if asker.startswith("piecewise_core.") and not asker.startswith(CHECKS):
            seen.add(f"{title}.{name}")

    def read(self, name):
        value = super(made, self).__getattribute__(name)
        if not inspect.isroutine(value) or name.startswith("_"):
            note(name)
            return value

        def called(*args, **kwargs):
            note(name)
            return value(*args, **kwargs)

        return called

    made = type(kind.__name__, (kind,), {"__getattribute__": read})
    return made


def members(title, *protocols):
    names = {n for p in protocols for n, m in vars(p).items() if inspect.isfunction(m)}
    names |= {n for p in protocols for n in inspect.get_annotations(p)}
    return {f"{title}.{name}" for name in names if not name.startswith("_")}


DECLARED = (
    members("DeviceRuntime", DeviceRuntime, RuntimeExtras)
    | members("GraphDriver", GraphDriver, GraphExtras)
    | members("CompilerAdaptor", CompilerAdaptor, CompilerExtras)
    | members("Platform", Platform, PlatformExtras)
    | {"GraphDriver.runs_captures", "Platform.name", "Platform.device_type"}
    | {"Platform.piecewise_backend"}
    | {f"Capabilities.{field.name}" for field in fields(Capabilities)}
)


def live(platform, directory, everything):
    """A model's life: set up, warm up, serve, look at graphs, release."""
    fast = pw.compile(layers, CONFIG.replace(**MORE), platform=platform)
    fast.warmup(torch.randn(3, 4))
    for rows in (8, 3):
        assert torch.equal(fast(torch.ones(rows, 4)), layers(torch.ones(rows, 4)))
    assert all(path.stat().st_size for path in fast.dump_graphs(directory))
    fast.release()
    parts = everything.Parts()
    two = {"graph_streams": "two", "graph_mode": "full", "splitting_ops": ()}
    forked = pw.compile(parts, CONFIG.replace(**two), platform=platform)
    assert torch.equal(forked(torch.ones(8, 4)), parts(torch.ones(8, 4)))
    again = pw.compile(layers, CONFIG, platform=platform)
    assert torch.equal(again(torch.ones(2, 4)), layers(torch.ones(2, 4)))
    assert again.stats().cache_hits == 2
    assert Background(fast._pw_session.setup, fast._pw_session.setup.artifact_cache()).can_serve(
        fast._pw_session.setup.compiler
    )


@pytest.mark.usefixtures("store")
def test_core_reads_every_member_of_every_protocol(everything, tmp_path):
    seen = set()
    full = watched(everything, seen)
    with torch.inference_mode():
        live(full(), tmp_path, everything)
        failing = full()
        failing.graphs.failing = True
        pw.compile(layers, CONFIG, platform=failing).warmup(torch.randn(3, 4))
        info = PlatformInfo("full", "cpu", (1, 0), lambda: Probe(True, "x"), full)
        origin = PluginEntry("acme", "full", "1.0", "acme")
        checked = check_up(Candidate(origin, info, "found", "x"), None, compiling=True)
    assert checked.computes
    assert DECLARED - seen == set()


def test_a_driver_without_a_replayer_is_asked_to_replay(everything):
    platform = SimulatedPlatform()
    kind = type("NoReplayer", (everything.Driver,), {"replayer": property()})  # there is none
    platform.graphs = kind(platform.graphs)
    with torch.inference_mode():
        fast = pw.compile(layers, CONFIG, platform=platform)
        assert torch.equal(fast(torch.ones(8, 4)), layers(torch.ones(8, 4)))
    assert fast.stats().calls["replayed"] == 1


def test_a_compiler_is_told_the_settings_of_each_model_before_it_compiles(everything):
    platform = SimulatedPlatform()
    platform.compiler = everything.Compiler()
    with torch.inference_mode():
        for value in ("strict", "cheap"):
            pw.compile(layers, CONFIG.replace(check=value), platform=platform)(torch.ones(8, 4))
    assert [options["check"] for options in platform.compiler.options] == ["strict", "cheap"]
    assert (
        platform.compiler.options[0]
        == CONFIG.replace(check="strict", compiler="portable").to_dict()
    )


def test_what_is_left_of_memory_that_ran_out_is_said_in_bytes(caplog):
    platform = SimulatedPlatform(memory_bytes=0)
    with torch.inference_mode():
        report = pw.compile(layers, CONFIG, platform=platform).warmup(torch.ones(8, 4))
    assert len(report.dropped) == 2
    assert all("(0 of 0 MiB are free)" in line for line in report.dropped)


def test_a_side_stream_that_stays_current_is_told(caplog):
    platform = SimulatedPlatform()

    class Leaky(SimulatedRuntime):
        def stream(self, stream):
            self.kept = super().stream(stream)
            self.kept.__enter__()
            return contextlib.nullcontext()

    platform.device = Leaky(platform.device._device)
    with torch.inference_mode():
        pw.compile(layers, CONFIG, platform=platform).warmup(torch.ones(8, 4))
    assert "DeviceRuntime.stream left stream 1 current in place of stream 0" in caplog.text


def test_graphs_are_written_out_one_file_each(tmp_path):
    fast = pw.compile(layers, CONFIG, platform=SimulatedPlatform())
    with torch.inference_mode():
        fast.warmup(torch.ones(8, 4))
        files = fast.dump_graphs(tmp_path / "new" / "graphs")
        assert fast.dump_graphs(tmp_path / "new" / "graphs") == files
    assert [path.name for path in files] == [
        f"sizes-{rows}-graph-{place}.txt" for rows in (8, 4) for place in (0, 1)
    ]
    assert "relu" in files[0].read_text()


def test_graphs_that_do_not_exist_or_cannot_be_written_are_refused_by_reason(everything, tmp_path):
    platform = SimulatedPlatform()
    with torch.inference_mode():
        fast = pw.compile(layers, CONFIG, platform=platform)
        with pytest.raises(CaptureFailed, match=r"there are no graphs; call warmup\(\)"):
            fast.dump_graphs(tmp_path)
        plain = pw.compile(layers, CONFIG.replace(capture_sizes=()), platform=platform)
        with pytest.raises(CaptureFailed, match="nothing is captured here; set capture_sizes"):
            plain.dump_graphs(tmp_path)
        kind = type("NoDump", (everything.Driver,), {"dump": property()})
        platform.graphs = kind(platform.graphs)
        fast = pw.compile(layers, CONFIG, platform=platform)
        fast.warmup(torch.ones(8, 4))
        with pytest.raises(CaptureFailed, match="its driver has no method dump"):
            fast.dump_graphs(tmp_path)
