"""``compile_workers``: distinct pieces compiled side by side while a call or warm-up waits."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from importlib import invalidate_caches
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch

import piecewise_core as pw
from piecewise_core.errors import CompileFailed, ConfigError, TraceFailed
from piecewise_core.frontend import fan
from piecewise_core.frontend.earlyworkers import EarlyWorkers
from piecewise_core.frontend.fan import PIECES, Fan, workers_for
from piecewise_core.plugins import select
from piecewise_core.torch_compat.dynamo import compile_lock

PLUGIN = """
import contextlib, os, pathlib, time

from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import Capabilities, CompiledGraph, PlatformInfo, Probe

NOTES = pathlib.Path(__file__).parent


class Runtime:
    def current_stream(self): ...
    def new_stream(self): ...
    def stream(self, stream):
        return contextlib.nullcontext()
    def synchronize(self): ...


class Compiler:
    name = "fanc"

    def compile(self, graph, example_inputs, *, key, config):
        with (NOTES / "log").open("a") as log:
            log.write(f"{os.getpid()}\\n")
        def asked(name):
            note = NOTES / name
            return note.exists() and note.read_text() in graph.code
        if asked("refuse"):
            raise ValueError("fanc knows no such operator")
        if (NOTES / "main").read_text() != str(os.getpid()):
            if asked("die-once"):
                (NOTES / "die-once").unlink()
                os._exit(9)
            if asked("die"):
                os._exit(9)
            while (NOTES / "hang").exists():
                time.sleep(0.02)
        code = graph.code.encode()
        return CompiledGraph(load(code), lambda: code)

    def load(self, handle):
        return CompiledGraph(load(handle))

    def hash_factors(self):
        return {}


def load(code):
    import torch

    names = {"torch": torch}
    exec(code, names)
    return lambda *args: names["forward"](None, *args)


class Platform:
    name = "fan"
    device, graphs, compiler, capabilities = Runtime(), None, Compiler(), Capabilities()


@hookimpl
def piecewise_platforms():
    yield PlatformInfo("fan", "cpu", (1, 0), lambda: Probe(True, "for tests"), Platform)
"""


@torch.library.custom_op("pwfan::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x + x


@twice.register_fake
def _(x):
    return torch.empty_like(x)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Iterator[Path]:
    """A directory with the plugin installed, on the path of this process and its children."""
    folder = tmp_path_factory.mktemp("fan")
    (folder / "piecewise_fan_plugin.py").write_text(PLUGIN)
    info = folder / "piecewise_fan-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: piecewise-fan\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[piecewise]\nfan = piecewise_fan_plugin\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        invalidate_caches()
        yield folder
    invalidate_caches()


@pytest.fixture
def notes(site: Path) -> Iterator[Path]:
    """Where a test says what the compiler does."""
    (site / "main").write_text(str(os.getpid()))
    with torch.inference_mode():
        yield site
    for name in ("refuse", "die", "die-once", "hang", "log"):
        (site / name).unlink(missing_ok=True)
    assert workers() == []


def workers() -> list[int]:
    """Compile workers of this process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            state, of = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(of) == os.getpid() and b"compile.worker" in command and state != "Z":
            found.append(int(entry.name))
    return found


def pids(notes: Path) -> list[int]:
    """The process of each compilation so far."""
    log = notes / "log"
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def three(x):
    """Three distinct pieces around two products."""
    x = (x + 1).cumsum(0)
    return x.sigmoid().cumsum(0).sin() * 2


def compiled(fn=three, platform="fan", **settings):
    known = {
        "dynamic": {"x": {0: pw.Dim("rows", 1, 64)}},
        "splitting_ops": ("aten::cumsum",),
        "compile_workers": 2,
        **settings,
    }
    return pw.compile(fn, pw.Config(**known), platform=platform)


def same(fast, fn=three):
    for rows in (1, 5, 64):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(fast(x), fn(x))


def test_missing_pieces_are_compiled_by_workers_and_none_is_left(notes):
    fast = compiled()
    same(fast)
    assert (fast.stats().compilations, len(pids(notes))) == (3, 3)
    assert os.getpid() not in pids(notes)
    assert workers() == []


def test_a_platform_given_as_an_object_has_workers_too(notes):
    fast = compiled(platform=select("fan").platform)
    same(fast)
    assert (fast.stats().compilations, len(pids(notes))) == (3, 3)
    assert os.getpid() not in pids(notes)


def test_what_a_worker_cannot_know_is_compiled_here_and_what_is_stored_nowhere(
    notes, monkeypatch, tmp_path
):
    def fn(x):
        return three(twice(x))

    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path))
    same(compiled(fn, compile_mode="warmup"), fn)
    assert sorted(pid == os.getpid() for pid in pids(notes)) == [False, False, True]
    fast = compiled(fn, compile_mode="warmup")
    same(fast, fn)
    assert (fast.stats().compilations, fast.stats().cache_hits, len(pids(notes))) == (0, 3, 3)


def test_who_compiles_with_the_building_lock_held_does_so_here(notes):
    fast = compiled()
    with compile_lock:  # the workers' code is taken in under it, on other threads
        fast(torch.zeros(3, 4))
    assert set(pids(notes)) == {os.getpid()}


@pytest.mark.parametrize("asked", [0, "auto"])
def test_few_pieces_are_compiled_here(notes, asked):
    same(compiled(compile_workers=asked))
    assert set(pids(notes)) == {os.getpid()}


def test_workers_that_die_are_replaced_and_a_piece_that_none_survives_is_compiled_here(
    notes, caplog
):
    (notes / "die-once").write_text("sin")
    (notes / "die").write_text("sigmoid")
    with caplog.at_level(logging.WARNING, "piecewise_core"):
        same(compiled(compile_workers=1))
    assert pids(notes).count(os.getpid()) == 1
    assert len(pids(notes)) == 1 + 2 + 2 + 1
    (said,) = [r.getMessage() for r in caplog.records if "worker process" in r.getMessage()]
    assert "region 0 piece" in said
    assert f"{Path(__file__).name}:" in said
    assert "code 9" in said


@pytest.mark.slow
def test_an_error_of_the_compiler_names_piece_and_line(notes):
    (notes / "refuse").write_text("sigmoid")
    fast = compiled()
    with pytest.raises(CompileFailed, match=r"region 0 piece \d .*\.py:\d+.*no such operator"):
        fast(torch.zeros(3, 4))
    (notes / "refuse").unlink()
    same(fast)


@pytest.mark.slow
def test_an_interrupt_ends_the_workers_and_the_model_serves_on(notes):
    (notes / "hang").touch()
    fast = compiled()

    def interrupt():
        while not pids(notes):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        fast(torch.zeros(3, 4))
    thread.join()
    assert workers() == []
    (notes / "hang").unlink()
    same(fast)


@pytest.mark.parametrize(
    ("asked", "pieces", "cores", "count"),
    [
        ("auto", 20, 2, 0),
        ("auto", 3, 64, 0),
        ("auto", 20, 4, 2),
        ("auto", 5, 64, 5),
        ("auto", 20, 64, 8),
        (0, 20, 64, 0),
        (3, 20, 2, 3),
        (3, 2, 2, 2),
        (3, 1, 64, 1),
        (3, 0, 64, 0),
    ],
)
def test_workers_are_as_many_as_can_pay(asked, pieces, cores, count):
    assert workers_for(asked, pieces, cores) == count


def test_the_setting_is_a_number_or_auto(monkeypatch):
    for wrong in (-1, 1.5, "all", True):
        with pytest.raises(ConfigError, match="compile_workers"):
            pw.Config(compile_workers=wrong)
    for text, value in (("0", 0), ("4", 4), ("auto", "auto")):
        monkeypatch.setenv("PIECEWISE_COMPILE_WORKERS", text)
        assert pw.Config().with_env().compile_workers == value


def test_nothing_is_looked_for_where_no_worker_would_come():
    """What a piece is kept under takes milliseconds to say; ``artifact`` says it again."""
    selected = SimpleNamespace(origin=object())
    setup = SimpleNamespace(config=pw.Config(compile_workers="auto"), selected=selected)

    def task():
        raise AssertionError("nobody needs it")

    Fan(setup, None)(None, [task] * (PIECES - 1), None)


seen: list[list[int]] = []


@torch.library.custom_op("pwfan::looked", mutates_args=())
def looked(x: torch.Tensor) -> torch.Tensor:
    return x + 1


@looked.register_fake
def _(x):
    seen.append(workers())  # while the model is traced
    return torch.empty_like(x)


class Widths(torch.nn.Module):
    """Layers of as many shapes as ``count``, each a piece of its own."""

    def __init__(self, count: int) -> None:
        super().__init__()
        widths = range(4, 5 + count)
        self.layers = torch.nn.ModuleList(
            torch.nn.Linear(a, b, bias=False) for a, b in pairwise(widths)
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer(x).cumsum(0)
        return looked(x)


@pytest.fixture
def kinds(monkeypatch) -> int:
    """How many shapes of weights are many."""
    monkeypatch.setattr(fan, "KINDS", 4)
    return 4


def test_workers_start_while_a_model_of_many_shapes_is_traced(notes, kinds):
    model = Widths(kinds).eval()
    seen.clear()
    fast = compiled(model)
    same(fast, model)
    assert {len(found) for found in seen} == {2}
    # No worker knows the operator at the end, which is a test's.
    assert pids(notes).count(os.getpid()) == 1
    assert len(pids(notes)) == fast.stats().compilations == kinds + 1
    assert workers() == []


def test_workers_that_started_for_a_trace_that_failed_end_with_the_model(notes, kinds):
    class Refuses(Widths):
        def forward(self, x):
            return super().forward(x) * x.untyped_storage().size()

    for count, started in ((kinds - 1, 0), (kinds, 2)):
        fast = compiled(Refuses(count).eval())
        with pytest.raises(TraceFailed):
            fast(torch.randn(3, 4))
        assert len(workers()) == started
    del fast
    gc.collect()
    assert workers() == []


def test_workers_that_nobody_takes_end_after_a_while():
    pools = [Mock(), Mock(), Mock()]
    early = EarlyWorkers()
    early.keep(pools[0], seconds=0.05)
    while early:
        time.sleep(0.01)
    assert [len(p.close.mock_calls) for p in pools] == [1, 0, 0]
    early.keep(pools[1], seconds=0.05)
    early.keep(pools[2], seconds=60)
    assert [len(p.close.mock_calls) for p in pools] == [1, 1, 0]
    time.sleep(0.2)  # the end of the second one's time is no end of the third
    assert early.take() is pools[2]
    assert early.take() is None
    assert [len(p.close.mock_calls) for p in pools] == [1, 1, 0]
