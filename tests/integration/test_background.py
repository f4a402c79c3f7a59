"""``compile_mode="background"``: the general graph serves while one worker process compiles.

The worker finds the compiler through an installed plugin. Most tests install one whose compiler
hands over the piece's source; what it does otherwise stands in files that a test writes.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from importlib import invalidate_caches
from pathlib import Path

import pytest
import torch

import piecewise_core as pw
from piecewise_core.compile.messages import Answer, Request
from piecewise_core.compile.pool import WorkerPool

PLUGIN = '''
"""A platform whose compiled pieces are source code: made in one process, loaded in another."""

import contextlib
import os
import pathlib
import time

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
    name = "acmec"

    def compile(self, graph, example_inputs, *, key, config):
        # There at once and whole: others wait for the name and then read.
        note = NOTES / f"compiled-in-{os.getpid()}"
        note.write_text(str(os.getpid()))
        note.replace(NOTES / "compiled-in")
        refused = NOTES / "refuse"
        if refused.exists() and refused.read_text() in graph.code:
            raise ValueError("acmec knows no such operator")
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
    device, graphs, compiler, capabilities = Runtime(), None, Compiler(), Capabilities()


@hookimpl
def piecewise_platforms():
    yield PlatformInfo("acme", "cpu", (1, 0), lambda: Probe(True, "simulated"), Platform)
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A directory on the path of this process and its children, with the plugin installed."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "piecewise_acme_background.py").write_text(PLUGIN)
    info = folder / "piecewise_acme_background-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: piecewise-acme-background\nVersion: 1.0\n"
    )
    (info / "entry_points.txt").write_text("[piecewise]\nacme = piecewise_acme_background\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
        invalidate_caches()
        yield folder
    invalidate_caches()


@pytest.fixture
def notes(site: Path) -> Iterator[Path]:
    """Where a test says what the plugin's compiler does."""
    for name in ("refuse", "compiled-in"):
        (site / name).unlink(missing_ok=True)
    yield site
    (site / "hang").unlink(missing_ok=True)


@pytest.fixture(autouse=True)
def _alone_under_inference_mode():
    gc.collect()
    assert eventually(lambda: not workers(os.getpid()) and not starting(), 30)
    with torch.inference_mode():
        yield


def starting() -> list[threading.Thread]:
    """What waits for a worker: of the test before, it may just be starting one."""
    return [t for t in threading.enumerate() if t.name == "piecewise-pool"]


def workers(parent: int | None = None) -> list[int]:
    """The pids of the compile workers of a process."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
            state, of = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        ours = parent is None or int(of) == parent
        if ours and b"piecewise_core.compile.worker" in command and state != "Z":
            found.append(int(entry.name))
    return found


def eventually(holds: Callable[[], bool], seconds: float = 120.0) -> bool:
    """Whether ``holds`` comes true; the limit only ends a hang."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def said(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What our own loggers said; torch logs its traces at DEBUG."""
    return [r for r in caplog.records if r.name.startswith("piecewise_core")]


def mlp() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4)
    ).eval()


def halves(x):
    """Two pieces around a cumsum."""
    return (x + 1).cumsum(0).sigmoid()


def compiled(fn, *, argument: str = "input", **settings):
    settings.setdefault("compile_ranges_endpoints", (8,))
    config = pw.Config(
        dynamic={argument: {0: pw.Dim("rows", 0, 64)}}, compile_mode="background", **settings
    )
    return pw.compile(fn, config, platform="acme" if "compiler" not in settings else "cpu")


def served_by(fast, fn, x) -> dict[str, int]:
    """Call once, check the numbers; what the call counted as."""
    before = dict(fast.stats().calls)
    torch.testing.assert_close(fast(x), fn(x), atol=1e-5, rtol=1e-5)
    return {k: n - before[k] for k, n in fast.stats().calls.items() if n > before[k]}


def switches(fast, fn, x) -> bool:
    """Call until the range's own code serves ``x``; every call's numbers are checked."""
    return eventually(lambda: served_by(fast, fn, x) == {"compiled_range": 1})


# Serving ----------------------------------------------------------------------------


@pytest.mark.inductor
def test_calls_are_served_at_once_and_by_the_worker_s_code_when_it_is_ready():
    model = mlp()
    fast = compiled(model, compiler="inductor")
    x = torch.randn(5, 8)
    assert served_by(fast, model, x) == {"general": 1}
    assert fast.stats().compilations == 0
    assert switches(fast, model, x)
    assert fast.stats().compilations == 1
    assert "compiled by inductor" in str(fast.explain())
    for rows in (0, 1, 3, 8):
        assert served_by(fast, model, torch.randn(rows, 8)) == {"compiled_range": 1}
    assert served_by(fast, model, torch.randn(9, 8)) == {"general": 1}


def test_pieces_are_compiled_in_another_process_and_a_target_waits_for_all_of_its_pieces(notes):
    fast = compiled(halves, argument="x", splitting_ops=("aten::cumsum",))
    x = torch.randn(5, 3)
    assert served_by(fast, halves, x) == {"general": 1}
    assert switches(fast, halves, x)
    worker = int((notes / "compiled-in").read_text())
    assert worker in workers(os.getpid())
    assert os.getpriority(os.PRIO_PROCESS, worker) == 19  # calls have the processor first
    stats = fast.stats()
    assert (stats.compilable_pieces, stats.compilations) == (2, 2)
    assert sum(stats.calls.values()) == stats.calls["general"] + 1


def test_a_compiler_that_cannot_hand_its_code_over_compiles_in_this_process():
    model = mlp()
    fast = compiled(model, compiler="eager")
    assert served_by(fast, model, torch.randn(5, 8)) == {"compiled_range": 1}
    assert fast.stats().compilations == 1


def test_warm_up_compiles_in_this_process(notes):
    model = mlp()
    fast = compiled(model)
    report = fast.warmup(torch.randn(5, 8), progress=False)
    assert report.compilations == 2
    assert (notes / "compiled-in").read_text() == str(os.getpid())
    assert served_by(fast, model, torch.randn(5, 8)) == {"compiled_range": 1}


def test_after_seal_a_target_that_was_asked_for_is_still_served_and_another_is_refused(notes):
    (notes / "hang").touch()
    model = mlp()
    fast = compiled(model)
    assert served_by(fast, model, torch.randn(5, 8)) == {"general": 1}
    fast.seal()
    assert served_by(fast, model, torch.randn(5, 8)) == {"general": 1}
    with pytest.raises(pw.errors.Sealed):
        fast(torch.randn(9, 8))
    (notes / "hang").unlink()
    assert switches(fast, model, torch.randn(5, 8))


@pytest.mark.parametrize("on_miss", ["error", pytest.param("warn", marks=pytest.mark.slow)])
def test_sealed_every_call_of_a_target_that_was_not_asked_for_is_answered_alike(notes, on_miss):
    (notes / "hang").touch()
    model = mlp()
    fast = compiled(model)
    served_by(fast, model, torch.randn(5, 8))
    fast.seal(on_miss)
    for _ in range(3):
        if on_miss == "error":
            with pytest.raises(pw.errors.Sealed):
                fast(torch.randn(9, 8))
        else:
            assert served_by(fast, model, torch.randn(9, 8)) == {"general": 1}
    (notes / "hang").unlink()
    if on_miss == "warn":
        assert switches(fast, model, torch.randn(9, 8))


# What goes wrong ----------------------------------------------------------------------


def test_a_killed_worker_costs_one_warning_and_the_next_request_starts_another(notes, caplog):
    (notes / "hang").touch()
    model = mlp()
    fast = compiled(model)
    small, large = torch.randn(5, 8), torch.randn(20, 8)
    assert served_by(fast, model, small) == {"general": 1}
    assert eventually((notes / "compiled-in").exists)
    (first,) = workers(os.getpid())
    os.kill(first, signal.SIGKILL)
    assert eventually(lambda: len(said(caplog)) == 1)
    (notes / "hang").unlink()
    assert "region 0 piece 0 for sizes [0, 8] was not compiled" in caplog.text
    assert "the worker process ended: code -9" in caplog.text
    assert "warmup()" in caplog.text

    assert served_by(fast, model, small) == {"general": 1}
    assert switches(fast, model, large)
    assert workers(os.getpid()) not in ([], [first])
    assert served_by(fast, model, small) == {"general": 1}
    assert len(said(caplog)) == 1
    fast.warmup(progress=False)
    assert served_by(fast, model, small) == {"compiled_range": 1}


def test_a_piece_that_the_worker_cannot_compile_goes_on_as_written_with_one_warning(notes, caplog):
    (notes / "refuse").write_text("sigmoid")
    caplog.set_level(logging.INFO, "piecewise_core.frontend.background")
    fast = compiled(halves, argument="x", splitting_ops=("aten::cumsum",))
    for rows in (5, 20):
        assert served_by(fast, halves, torch.randn(rows, 3)) == {"general": 1}
    assert eventually(lambda: len(said(caplog)) == 2)
    assert [r.levelno for r in said(caplog)] == [logging.WARNING, logging.INFO]
    assert "ValueError: acmec knows no such operator" in caplog.text
    for rows in (5, 20):
        assert served_by(fast, halves, torch.randn(rows, 3)) == {"general": 1}
    assert fast.stats().compilations == 2


def test_a_compilation_that_takes_too_long_is_given_up_and_the_pool_goes_on(notes):
    answers: list[Answer] = []
    pool = WorkerPool(timeout=0.2)
    for _ in range(2):
        pool.run(
            lambda ask: answers.append(ask(lambda n: Request(n, "acme", "{}", "key", b"", {}, {})))
        )
    assert eventually(lambda: len(answers) == 2)
    assert [a.serial for a in answers] == [0, 1]
    assert all("it took longer than 0.2 s" in a.error and a.handle is None for a in answers)
    pool.close()


def test_a_job_that_cannot_be_made_or_taken_in_does_not_stop_the_pool(caplog):
    answers: list[Answer] = []
    pool = WorkerPool()

    def made(serial: int) -> Request:
        raise TypeError("cannot pickle this")

    def taken(answer: Answer) -> None:
        answers.append(answer)
        raise ZeroDivisionError

    for _ in range(2):
        pool.run(lambda ask: taken(ask(made)))
    assert eventually(lambda: len(answers) == 2)
    assert answers[0].error == "TypeError: cannot pickle this"
    assert "could not take in a compiled piece" in caplog.text
    pool.close()


# The end ------------------------------------------------------------------------------


def test_the_worker_ends_with_the_model(notes):
    model = mlp()
    fast = compiled(model)
    assert switches(fast, model, torch.randn(5, 8))
    (pid,) = workers(os.getpid())
    del fast
    gc.collect()
    assert eventually(lambda: pid not in workers())
    assert eventually(lambda: not starting())


@pytest.mark.parametrize(
    "busy",
    [
        pytest.param(False, id="idle", marks=pytest.mark.slow),
        pytest.param(True, id="in mid-compile"),
    ],
)
def test_no_worker_outlives_the_interpreter(notes, busy, fresh_processes):
    script = f"""
        import pathlib, time, torch
        import piecewise_core as pw
        notes = pathlib.Path({str(notes)!r})
        config = pw.Config(compile_mode="background", dynamic={{"x": {{0: pw.Dim("rows", max=9)}}}})
        fast = pw.compile(lambda x: x + 1, config, platform="acme")
        with torch.inference_mode():
            fast(torch.ones(3))
            while not (notes / "compiled-in").exists():
                time.sleep(0.02)
            while not {busy} and not fast.stats().compilations:
                time.sleep(0.02)
        print((notes / "compiled-in").read_text())
    """
    if busy:
        (notes / "hang").touch()
    done = fresh_processes.run(textwrap.dedent(script))
    assert (done.returncode, done.stderr) == (0, "")
    assert eventually(lambda: int(done.stdout) not in workers())


@pytest.mark.parametrize(
    "how", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_a_worker_in_mid_compile_ends_when_its_process_is_killed(notes, how):
    (notes / "hang").touch()
    script = """
        import time, torch
        import piecewise_core as pw
        config = pw.Config(compile_mode="background", dynamic={"x": {0: pw.Dim("rows", max=9)}})
        fast = pw.compile(lambda x: x + 1, config, platform="acme")
        with torch.inference_mode():
            fast(torch.ones(3))
        time.sleep(600)
    """
    program = [sys.executable, "-c", textwrap.dedent(script)]
    with subprocess.Popen(program, stderr=subprocess.PIPE) as process:
        assert eventually((notes / "compiled-in").exists)
        worker = int((notes / "compiled-in").read_text())
        assert worker in workers(process.pid)
        process.send_signal(how)
        assert process.wait(60) == -how
        assert eventually(lambda: worker not in workers())


# Forks ------------------------------------------------------------------------------

FORKING = """
    import os, pathlib, sys, time, torch, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    import piecewise_core as pw
    torch.set_grad_enabled(False)
    notes, when = pathlib.Path(sys.argv[1]), sys.argv[2]
    config = pw.Config(dynamic={"x": {0: pw.Dim("rows", 0, 64)}}, compile_ranges_endpoints=(8,),
                       compile_mode="background")
    fast = pw.compile(lambda x: x * 2 + 1, config, platform="acme")

    def eventually(holds):
        end = time.monotonic() + 120
        while not holds():
            assert time.monotonic() < end, "never"
            time.sleep(0.02)

    def switches(rows):
        def done():
            before = fast.stats().calls["compiled_range"]
            x = torch.randn(rows, 3)
            torch.testing.assert_close(fast(x), x * 2 + 1)
            return fast.stats().calls["compiled_range"] > before
        eventually(done)

    def worker():
        return int((notes / "compiled-in").read_text())

    if when == "compiling":
        (notes / "hang").touch()
    fast(torch.randn(5, 3))
    if when == "compiling":
        eventually((notes / "compiled-in").exists)
    if when == "compiled":
        switches(5)
    mine = worker() if when != "asked" else 0
    pid = os.fork()
    if pid == 0:
        (notes / "hang").unlink(missing_ok=True)
        switches(5), switches(20)
        print("child", worker() not in (0, mine, os.getpid()))
        sys.exit(0)  # what runs at exit must not end the parent's worker
    print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    switches(5), switches(20)
    print("parent", mine in (0, worker()))
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "when", ["asked", "compiling", pytest.param("compiled", marks=pytest.mark.slow)]
)
def test_a_forked_child_has_a_worker_of_its_own_and_leaves_the_parent_s_alone(
    notes, when, monkeypatch, fresh_processes
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    done = fresh_processes.run(textwrap.dedent(FORKING), str(notes), when)
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = ["child", "True", "ended", "0", "parent", "True"]
    assert done.stdout.split() == wanted, done.stderr  # the child's errors are there
