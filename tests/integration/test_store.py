"""The compile store under compiled models: hits, misses and why, resumption, the worker, doors."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from importlib import invalidate_caches
from pathlib import Path

import pytest
import source_platform
import torch
from source_platform import SourceCompiler, SourcePlatform
from torch import nn

import piecewise_core as pw
from piecewise_core.errors import CaptureFailed, CompilerUnavailable, Sealed, StoreError
from piecewise_core.protocols import CompiledGraph
from piecewise_core.store.files import ARTIFACT, FileStore
from piecewise_core.testing import SimulatedPlatform

KIT = str(Path(source_platform.__file__).parent)
SPLIT = ("torch.nn.functional.softmax",)
ROWS = pw.Dim("rows", 1, 64)


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "readwrite")
    monkeypatch.setenv("PIECEWISE_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Layers(nn.Module):
    """Layers cut at softmax: three distinct pieces, the middle one shared."""

    def __init__(self, layers: int = 4, factor: float = 2.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(layers))
        self.factor = factor

    def forward(self, x):
        x = x + 1.0
        for layer in self.layers:
            x = nn.functional.softmax(layer(x).relu(), -1)
        return x * self.factor


def compiled(model, compiler=None, **config):
    settings = {"dynamic": {"x": {0: ROWS}}, "splitting_ops": SPLIT, **config}
    platform = SourcePlatform(compiler) if not isinstance(compiler, SimulatedPlatform) else compiler
    return pw.compile(model, pw.Config(**settings), platform)


def warmed(model, compiler=None, **config):
    fast = compiled(model, compiler, **config)
    fast.warmup(torch.randn(3, 8), progress=False)
    return fast


def books(fast) -> tuple[int, int, int]:
    stats = fast.stats()
    return stats.compilations, stats.cache_misses, stats.cache_hits


def stored(cache: Path) -> FileStore:
    return FileStore(cache / "store")


def pieces(cache: Path) -> list[str]:
    """The keys of the entries that are pieces; traces are kept too."""
    return [m.key for m in stored(cache).manifests() if m.adaptor != "tracer"]


def test_a_second_model_loads_what_the_first_one_compiled():
    model, first, second = Layers(), SourceCompiler(), SourceCompiler()
    cold = warmed(model, first, compile_ranges_endpoints=(8,))
    assert books(cold) == (6, 6, 0)
    fast = warmed(model, second, compile_ranges_endpoints=(8,))
    assert books(fast) == (0, 0, 6)
    assert second.compiled == []
    assert len(second.loaded) == 6
    assert fast.stats().dedup_hits == cold.stats().dedup_hits == 4
    for rows in (1, 8, 9, 64):
        x = torch.randn(rows, 8)
        torch.testing.assert_close(fast(x), model(x))


def test_a_warm_up_that_hits_says_so():
    warmed(Layers())
    report = compiled(Layers()).warmup(torch.randn(3, 8), progress=False)
    assert (report.compilations, report.cache_hits) == (0, 3)
    assert "0 compilations, 3 from the store" in str(report)


def test_lazy_calls_and_other_ranges_use_what_is_there():
    warmed(Layers(), compile_ranges_endpoints=(8,))
    fast = compiled(Layers(), compile_ranges_endpoints=(8, 16))
    fast(torch.randn(3, 8))
    fast(torch.randn(3, 8))
    # The general graph is new, [1, 8] is not.
    assert books(fast) == (3, 3, 3)


def test_a_changed_piece_is_compiled_and_the_others_are_not():
    warmed(Layers(factor=2.0))
    model = Layers(factor=3.0)
    fast = warmed(model)
    assert books(fast) == (1, 1, 2)
    x = torch.randn(5, 8)
    torch.testing.assert_close(fast(x), model(x))


def code_lines(fast) -> list[str]:
    return [
        line.strip() for line in str(fast.explain(verbose=True)).splitlines() if " in 0." in line
    ]


def test_explain_says_what_came_from_the_store_and_why_the_rest_did_not(monkeypatch):
    cold = warmed(Layers())
    assert "miss: the store had nothing to compare with" in code_lines(cold)[0]
    warm = warmed(Layers())
    assert all("from the store in 0." in line for line in code_lines(warm))
    assert all("compiled by source" in line for line in code_lines(warm))
    monkeypatch.setenv("SOURCE_FLAG", "on")
    fast = warmed(Layers())
    assert books(fast) == (3, 3, 0)
    for line in code_lines(fast):
        assert "(miss: compiler.flag was off, is on)" in line
    facts = json.loads(fast.explain(verbose=True).to_json())
    (code,) = facts["regions"][0]["pieces"][0]["code"]
    assert code["missed"] == "compiler.flag was off, is on"
    assert not code["stored"]
    # It stays said when the store goes on to change.
    monkeypatch.setenv("SOURCE_FLAG", "other")
    warmed(Layers())
    assert all("compiler.flag was off, is on" in line for line in code_lines(fast))


def test_explain_names_what_changed_in_the_model():
    warmed(Layers())
    assert any("piece.graph was" in line for line in code_lines(warmed(Layers(factor=3.0))))
    double = Layers().double()
    fast = compiled(double)
    fast.warmup(torch.randn(3, 8, dtype=torch.float64), progress=False)
    assert all("piece.tensors was" in line for line in code_lines(fast))
    assert any("box was [1, 64], is [1, 8]" in line for line in code_lines(
        warmed(Layers(), compile_ranges_endpoints=(8,))
    ))  # fmt: skip


def test_each_finished_piece_is_kept_at_once(cache):
    class Stops(SourceCompiler):
        def compile(self, graph, example_inputs, *, key, config):
            if len(self.compiled) == 2:
                raise KeyboardInterrupt
            return super().compile(graph, example_inputs, key=key, config=config)

    with pytest.raises(KeyboardInterrupt):
        warmed(Layers(), Stops())
    assert len(pieces(cache)) == 2
    assert os.listdir(cache / "store" / "v1" / "tmp") == []


WARM = """
    import sys, torch
    from torch import nn
    from source_platform import SourcePlatform
    import piecewise_core as pw

    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(4))
        def forward(self, x):
            x = x + 1.0
            for layer in self.layers:
                x = nn.functional.softmax(layer(x).relu(), -1)
            return x * 2.0

    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", 1, 64)}},
        splitting_ops=("torch.nn.functional.softmax",),
        compile_ranges_endpoints=(8, 16),
    )
    fast = pw.compile(Layers(), config, SourcePlatform())
    print("ready", flush=True)
    with torch.inference_mode():
        report = fast.warmup(torch.randn(3, 8), progress=False)
    stats = fast.stats()
    print(stats.compilations, stats.cache_misses, stats.cache_hits)
"""


def variables(log: Path, seconds: float) -> dict[str, str]:
    own = {"PYTHONPATH": KIT, "SOURCE_LOG": str(log), "SOURCE_SECONDS": str(seconds)}
    return {**os.environ, **own}


def process(log: Path, seconds: float) -> subprocess.Popen[str]:
    """One that goes on beside this one."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(WARM)],
        env=variables(log, seconds),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def counted(code: int, out: str, err: str) -> list[int]:
    """The counters that a process printed."""
    assert code == 0, err
    return [int(word) for word in out.splitlines()[-1].split()]


def test_a_warm_up_killed_in_the_middle_is_taken_up_where_it_stopped(
    tmp_path, cache, fresh_processes
):
    log = tmp_path / "log"
    first = process(log, seconds=0.3)
    while not log.exists() or len(log.read_text().splitlines()) < 4:
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    begun = len(log.read_text().splitlines())
    kept = len(pieces(cache))
    assert begun - 1 <= kept <= begun
    log.unlink()
    done = fresh_processes.run(textwrap.dedent(WARM), env=variables(log, 0))
    compilations, misses, hits = counted(done.returncode, done.stdout, done.stderr)
    assert hits == kept
    assert compilations == misses == 9 - kept == len(log.read_text().splitlines())


class Guarding(SourceCompiler):
    """Decides something from the sizes; its code is wrong where that does not hold."""

    def compile(self, graph, example_inputs, *, key, config):
        made = super().compile(graph, example_inputs, key=key, config=config)
        sizes = [s for s in example_inputs if isinstance(s, torch.SymInt)]
        if self.holds(sizes):
            return made
        raise AssertionError

    def load(self, handle):
        made = super().load(handle)

        def run(*args):
            if not self.holds([a for a in args if isinstance(a, int)]):
                raise AssertionError("called for sizes that the code does not hold for")
            return made.run(*args)

        return CompiledGraph(run, made.handle)


def test_a_loaded_piece_serves_no_more_sizes_than_it_was_compiled_for(caplog):
    class Large(Guarding):
        def holds(self, sizes):
            return bool(sizes[0] >= 10)

    model = Layers()
    cold = warmed(model, Large())
    warm = warmed(model, Large())
    assert books(warm) == (0, 0, 3)
    for fast in (cold, warm):
        assert "other sizes run as written" in str(fast.explain(verbose=True))
        for rows in (3, 9, 10, 64):
            x = torch.randn(rows, 8)
            torch.testing.assert_close(fast(x), model(x))


def test_a_piece_whose_code_holds_nowhere_is_not_compiled_again_to_find_that_out():
    class Square(Guarding):
        def holds(self, sizes):
            return bool(sizes[0] <= sizes[1])

    def fn(x):
        return x * 2 + 1

    dims = {"x": {0: pw.Dim("rows", 1, 64), 1: pw.Dim("columns", 1, 64)}}
    for expected in ((1, 1, 0), (0, 0, 1)):
        compiler = Square()
        fast = compiled(fn, compiler, dynamic=dims, splitting_ops=())
        x = torch.randn(9, 5)
        torch.testing.assert_close(fast(x), fn(x))
        assert books(fast) == expected
        assert compiler.loaded == []


def test_passes_are_in_the_key_as_the_model_gets_them():
    def doubled(graph):
        for node in graph.graph.nodes:
            if node.op == "call_method" and node.target == "relu":
                node.target, node.args = "mul", (*node.args, 2)
        graph.recompile()

    def tripled(graph):
        for node in graph.graph.nodes:
            if node.op == "call_method" and node.target == "relu":
                node.target, node.args = "mul", (*node.args, 3)
        graph.recompile()

    for change, expected in ((doubled, (3, 3, 0)), (doubled, (0, 0, 3)), (tripled, (3, 3, 0))):
        fast = warmed(Layers(), SourceCompiler(passes=[change]))
        assert books(fast) == expected
    assert all("passes was" in line for line in code_lines(fast))


# What goes wrong -------------------------------------------------------------------------


def test_a_damaged_entry_is_compiled_again_and_kept_again(cache):
    model = Layers()
    warmed(model)
    store = stored(cache)
    for key in pieces(cache):
        (store.path(key) / ARTIFACT).write_bytes(b"def forward(self, *args): return evil")
    compiler = SourceCompiler()
    fast = warmed(model, compiler)
    assert books(fast) == (3, 3, 0)
    assert compiler.loaded == []
    x = torch.randn(5, 8)
    torch.testing.assert_close(fast(x), model(x))
    assert books(warmed(model)) == (0, 0, 3)


def test_what_the_compiler_refuses_to_load_is_compiled_again_and_replaced(caplog):
    class Picky(SourceCompiler):
        refuse = True

        def load(self, handle):
            if Picky.refuse:
                raise OSError("libacme.so.9: no such file")
            return super().load(handle)

    model = Layers()
    warmed(model, Picky())
    with caplog.at_level(logging.WARNING, "piecewise_core"):
        fast = warmed(model, Picky())
    assert books(fast) == (3, 3, 0)
    assert "cannot load entry" in caplog.text
    assert "libacme.so.9: no such file" in caplog.text
    x = torch.randn(5, 8)
    torch.testing.assert_close(fast(x), model(x))
    Picky.refuse = False
    assert books(warmed(model, Picky())) == (0, 0, 3)


def test_an_unusable_directory_costs_one_warning_and_no_call(tmp_path):
    (tmp_path / "cache").write_bytes(b"")
    model = Layers()
    with pytest.warns(RuntimeWarning, match="the compile store cannot be used") as caught:
        fast = warmed(model)
    assert len([w for w in caught if "compile store" in str(w.message)]) == 1
    assert books(fast) == (3, 3, 0)
    x = torch.randn(5, 8)
    torch.testing.assert_close(fast(x), model(x))


def test_a_process_that_dies_in_mid_compile_leaves_the_lock_to_the_next(tmp_path):
    log = tmp_path / "log"
    first = process(log, seconds=60)
    while not log.exists():
        assert first.poll() is None, first.communicate()
        time.sleep(0.02)
    second = process(log, seconds=0)
    assert second.stdout is not None
    assert second.stdout.readline() == "ready\n"
    first.kill()
    first.communicate()
    out, err = second.communicate(timeout=300)
    assert counted(second.returncode, out, err) == [9, 9, 0]


# What is not kept ------------------------------------------------------------------------


def test_the_eager_compiler_keeps_nothing_and_says_nothing(cache, caplog):
    with caplog.at_level(logging.DEBUG, "piecewise_core"):
        fast = compiled_eager()
    assert books(fast) == (3, 0, 0)
    assert "is not kept" not in caplog.text
    assert "from the store" not in str(fast.explain())
    assert "not kept" not in str(fast.explain())
    assert pieces(cache) == []


def compiled_eager():
    config = pw.Config(dynamic={"x": {0: ROWS}}, splitting_ops=SPLIT, compiler="eager")
    fast = pw.compile(Layers(), config, SourcePlatform())
    fast.warmup(torch.randn(3, 8), progress=False)
    return fast


def test_a_compiler_without_load_is_named_once_and_nothing_of_it_is_kept(cache, caplog):
    class Forgetful:
        name = "forgetful"

        def compile(self, graph, example_inputs, *, key, config):
            return CompiledGraph(graph.forward)

        def hash_factors(self):
            return {}

    with caplog.at_level(logging.INFO, "piecewise_core"):
        fast = warmed(Layers(), Forgetful())
    assert books(fast) == (3, 0, 0)
    assert caplog.text.count("'forgetful' cannot load what it compiled") == 1
    assert "not kept: compiler 'forgetful' cannot load" in str(fast.explain(verbose=True))
    assert pieces(cache) == []


def test_a_piece_without_a_handle_is_named_and_the_rest_is_kept(caplog):
    class Partial(SourceCompiler):
        def compile(self, graph, example_inputs, *, key, config):
            made = super().compile(graph, example_inputs, key=key, config=config)
            if "mul" in graph.code:
                return CompiledGraph(made.run)
            return made

    class Failing(Partial):
        def compile(self, graph, example_inputs, *, key, config):
            made = super().compile(graph, example_inputs, key=key, config=config)
            return made if made.handle else CompiledGraph(made.run, lambda: 1 / 0)

    for compiler, why in ((Partial, "hand the code"), (Failing, "ZeroDivisionError")):
        with caplog.at_level(logging.INFO, "piecewise_core"):
            assert books(warmed(Layers(), compiler())) == (3, 3, 0)
        assert why in caplog.text
        assert books(warmed(Layers(), compiler())) == (1, 1, 2)


def test_a_model_that_went_on_uncompiled_keeps_nothing(cache):
    class Toolless(SourceCompiler):
        def compile(self, graph, example_inputs, *, key, config):
            raise CompilerUnavailable("no C++ compiler.")

    with pytest.warns(RuntimeWarning, match="runs uncompiled"):
        fast = warmed(Layers(), Toolless())
    assert books(fast) == (3, 1, 0)  # the store is not asked for what runs as written
    assert pieces(cache) == []


def test_entries_serve_where_the_compiler_s_tools_are_missing(monkeypatch):
    model = Layers()
    warmed(model)

    def gone(self, graph, example_inputs, *, key, config):
        raise CompilerUnavailable("no C++ compiler.")

    monkeypatch.setattr(SourceCompiler, "compile", gone)
    fast = warmed(model)
    assert books(fast) == (0, 0, 3)
    x = torch.randn(5, 8)
    torch.testing.assert_close(fast(x), model(x))


def test_a_sealed_model_does_not_even_load():
    warmed(Layers(), compile_sizes=(4, 5))
    fast = compiled(Layers(), compile_sizes=(4, 5))
    fast(torch.randn(4, 8))
    fast.seal()
    with pytest.raises(Sealed, match=r"\[5, 5\]"):
        fast(torch.randn(5, 8))


def test_nothing_is_loaded_inside_a_capture():
    platform = SimulatedPlatform()
    platform.compiler = SourceCompiler()
    fast = compiled(Layers(), platform)
    graph, pool = platform.graphs.new_graph(), platform.graphs.new_pool()
    with platform.device.stream(platform.device.new_stream()):
        platform.graphs.capture_begin(graph, pool, platform.device.current_stream())
        with pytest.raises(CaptureFailed):
            fast(torch.randn(3, 8))
        platform.graphs.capture_end(graph)


def test_captured_sizes_replay_loaded_code():
    model = Layers()
    for expected in ((6, 6, 0), (0, 0, 6)):
        platform = SimulatedPlatform()
        platform.compiler = SourceCompiler()
        fast = warmed(model, platform, capture_sizes=(4,), capture_max=False, compile_sizes=(4,))
        assert books(fast) == expected
        x = torch.randn(4, 8)
        torch.testing.assert_close(fast(x).clone(), model(x))
        assert fast.stats().calls["replayed"] == 1


# Bundles' view -----------------------------------------------------------------------------


def test_every_artifact_can_be_had_as_an_entry_again(cache):
    for fast in (warmed(Layers()), warmed(Layers())):
        scheduler = fast._pw_session.scheduler
        entries = [scheduler.entry(artifact) for artifact in scheduler.artifacts]
        assert {e.manifest.key for e in entries} == set(pieces(cache))
        assert all(b"def forward" in e.artifact for e in entries)
    for key in list(stored(cache).all_keys()):
        stored(cache).discard(key)
    assert [scheduler.entry(a).artifact for a in scheduler.artifacts] == [
        e.artifact for e in entries
    ]


def test_entries_can_be_had_without_a_store_and_not_of_what_runs_as_written(monkeypatch):
    monkeypatch.setenv("PIECEWISE_CACHE_MODE", "off")
    fast = warmed(Layers())
    assert books(fast) == (3, 0, 0)
    scheduler = fast._pw_session.scheduler
    assert len({scheduler.entry(a).manifest.key for a in scheduler.artifacts}) == 3
    eager = compiled_eager()._pw_session.scheduler
    with pytest.raises(StoreError, match="is not compiled"):
        eager.entry(eager.artifacts[0])


# Other doors ---------------------------------------------------------------------------------


@pytest.fixture
def installed(tmp_path, monkeypatch) -> None:
    """The platform as a plugin, for this process and the worker."""
    source_platform.install(tmp_path / "plugins")
    for folder in (KIT, str(tmp_path / "plugins")):
        monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path / "plugins"), KIT)))
    monkeypatch.setenv("SOURCE_LOG", str(tmp_path / "log"))
    invalidate_caches()


def in_background(model):
    config = pw.Config(
        dynamic={"x": {0: ROWS}},
        splitting_ops=SPLIT,
        compile_ranges_endpoints=(8,),
        compile_mode="background",
    )
    fast = pw.compile(model, config, "source")
    deadline = time.monotonic() + 200
    for rows in (3, 20):
        while fast.stats().calls["compiled_range"] < (1 if rows == 3 else 2):
            assert time.monotonic() < deadline
            fast(torch.randn(rows, 8))
            time.sleep(0.02)
    return fast


def test_what_the_worker_compiled_is_kept_and_found_without_a_worker(installed, tmp_path):
    model = Layers()
    cold = in_background(model)
    assert cold.stats().compilations == cold.stats().cache_misses == 6
    log = (tmp_path / "log").read_text().splitlines()
    assert len(log) == 6
    fast = in_background(model)
    assert books(fast) == (0, 0, 6)
    workers = fast._pw_session.shared.background._pool._workers
    assert [worker._process for worker in workers] == [None] * len(workers)
    assert (tmp_path / "log").read_text().splitlines() == log
    x = torch.randn(3, 8)
    torch.testing.assert_close(fast(x), model(x))
    assert books(warmed_by_name(model)) == (0, 0, 6)


def test_a_warm_up_beside_the_worker_waits_for_it_and_neither_waits_for_ever(
    installed, tmp_path, monkeypatch
):
    monkeypatch.setenv("SOURCE_SECONDS", "0.3")
    model = Layers()
    config = pw.Config(
        dynamic={"x": {0: ROWS}},
        splitting_ops=SPLIT,
        compile_ranges_endpoints=(8, 16, 32),
        compile_mode="background",
    )
    fast = pw.compile(model, config, "source")
    for rows in (3, 10, 20, 40):
        fast(torch.randn(rows, 8))
    fast.warmup(progress=False)
    keys = [line.split("\t")[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 12
    x = torch.randn(3, 8)
    torch.testing.assert_close(fast(x), model(x))


def warmed_by_name(model):
    config = pw.Config(dynamic={"x": {0: ROWS}}, splitting_ops=SPLIT, compile_ranges_endpoints=(8,))
    fast = pw.compile(model, config, "source")
    fast.warmup(torch.randn(3, 8), progress=False)
    return fast


def test_a_worker_compiles_under_the_switches_of_its_parent(installed, cache):
    torch.set_float32_matmul_precision("high")  # the worker is a fresh interpreter
    try:
        assert books(in_background(Layers())) == (6, 6, 0)
        assert books(in_background(Layers())) == (0, 0, 6)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert len(pieces(cache)) == 6
    assert warmed_by_name(Layers()).stats().cache_hits == 0


def test_torch_compile_s_door_uses_the_store_too(installed):
    model = Layers()
    for expected in (3, 0):
        torch._dynamo.reset()
        before = pw.counters.stats()
        fast = torch.compile(
            model,
            backend="piecewise",
            options={"platform": "source", "splitting_ops": SPLIT},
            dynamic=True,
        )
        x = torch.randn(5, 8)
        torch.testing.assert_close(fast(x), model(x))
        after = pw.counters.stats()
        assert after.compilations - before.compilations == expected
        assert after.cache_hits - before.cache_hits == 3 - expected
    torch._dynamo.reset()
