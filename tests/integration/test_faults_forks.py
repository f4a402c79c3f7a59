"""FAULTS 59: a forked child traces, compiles and serves by itself, whatever threads were doing.

Each program forks while a thread of its own stands in the middle of something; the child then does
what ``child`` says, and the parent goes on.
"""

from __future__ import annotations

import os
import textwrap

import pytest

if not hasattr(os, "fork"):
    pytest.skip("this system does not fork", allow_module_level=True)

PRELUDE = """
    import os, select, signal, sys, threading, time, warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    import torch
    import piecewise_core as pw
    from piecewise_core.torch_compat.dynamo import compile_lock
    from piecewise_core.protocols import CompiledGraph
    from piecewise_core.testing import SimulatedPlatform

    torch.set_grad_enabled(False)
    ROWS = {"x": {0: pw.Dim("rows", min=1, max=16)}}
    STANDS, GO = threading.Event(), threading.Event()
    WHERE = {"stop": ""}

    def stop(here):
        \"\"\"Let the thread that is to be stopped here wait; everybody else passes.\"\"\"
        if WHERE["stop"] == here and threading.current_thread() is not threading.main_thread():
            STANDS.set()
            GO.wait(60)

    @torch.library.custom_op("forks::op", mutates_args=())
    def op(x: torch.Tensor) -> torch.Tensor:
        stop("call")
        return x * 2

    @op.register_fake
    def _(x):
        stop("trace")
        return torch.empty_like(x)

    class Compiler:
        name = "stops"
        def compile(self, graph, example_inputs, *, key, config):
            stop("compile")
            return CompiledGraph(graph.forward)
        def hash_factors(self):
            return {}

    def made(fn=lambda x: torch.ops.forks.op(x.sin()) + 1, **settings):
        platform = SimulatedPlatform()
        platform.compiler = Compiler()
        settings = {"dynamic": ROWS, "splitting_ops": ("forks::op",), **settings}
        return pw.compile(fn, pw.Config(**settings), platform=platform)

    def right(model, rows=3):
        x = torch.randn(rows, 2)
        torch.testing.assert_close(model(x), x.sin() * 2 + 1)
        return True

    def thread(call):
        def run():
            with torch.inference_mode():
                call()
        made = threading.Thread(target=run, daemon=True)
        made.start()
        return made

    def forked_at(here, call, child, seconds=60):
        \"\"\"What ``child()`` gives in a fork made while ``call()`` stands ``here``.\"\"\"
        WHERE["stop"] = here
        busy = thread(call)
        assert STANDS.wait(60), "nothing came there"
        given = forked(child, seconds)
        GO.set()
        busy.join(60)
        assert not busy.is_alive(), "the parent's thread is stuck"
        STANDS.clear(), GO.clear()
        return given

    def forked(child, seconds=60):
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                said = str(child())
            except BaseException as error:
                said = f"{type(error).__name__}: {error}"
            os.write(into, said.encode())
            os._exit(0)
        os.close(into)
        ready, _, _ = select.select([out], [], [], seconds)
        if not ready:
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return os.read(out, 65536).decode() if ready else "hangs"
"""


@pytest.fixture
def program(fresh_processes, monkeypatch):
    """Run a program behind PRELUDE in a process of its own; the lines it printed."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(text, timeout=240):
        done = fresh_processes.run(
            textwrap.dedent(PRELUDE) + textwrap.dedent(text), timeout=timeout
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout.split()

    return run


def test_a_child_of_a_process_that_compiles_traces_and_compiles_by_itself(program):
    found = program("""
        ready, busy, new = made(), made(), made()
        right(ready)
        def child():
            again = right(busy)
            theirs = torch.compile(lambda x: x + 1, backend="eager")
            return again, right(ready), right(new), theirs(1)
        print(forked_at("compile", lambda: busy(torch.ones(3, 2)), child).replace(" ", ""))
        print(right(busy))
    """)
    assert found == ["(True,True,True,2)", "True"]


def test_a_child_of_a_process_that_traces_traces_by_itself_and_has_torch_as_it_was(program):
    found = program("""
        from torch.fx.experimental import _config as sizes
        def state():
            nnpack = torch._C._get_nnpack_enabled()
            return sizes.backed_size_oblivious, torch.backends.mkldnn.enabled, nnpack
        busy, before = made(), state()
        def child():
            return state() == before, right(busy), right(made())
        print(forked_at("trace", lambda: busy(torch.ones(3, 2)), child).replace(" ", ""))
        print(right(busy), state() == before)
    """)
    assert found == ["(True,True,True)", "True", "True"]


@pytest.mark.parametrize(
    "settings",
    ["", "capture_sizes=(3,), capture_max=False", "check='verify', verify_rate=1.0"],
    ids=["plain", "captured", "verified"],
)
def test_a_child_of_a_process_in_the_middle_of_a_call_serves_by_itself(program, settings):
    found = program(f"""
        model, sealed = made({settings}), made({settings})
        for each in (model, sealed):
            right(each), right(each), right(each)
        sealed.warmup(progress=False)
        sealed.seal()
        for each in (model, sealed):
            print(forked_at("call", lambda: each(torch.ones(3, 2)), lambda: [
                right(each), right(each), right(each, 5)]).replace(" ", ""))
            print(right(each))
        call, grandchild = (lambda: model(torch.ones(3, 2))), (lambda: right(model))
        print(forked_at("call", call, lambda: forked(grandchild)))
    """)
    assert found == ["[True,True,True]", "True"] * 2 + ["True"]


def test_a_child_of_a_process_that_replays_replays_in_its_turn(program):
    found = program("""
        model = made(capture_sizes=(3,), capture_max=False)
        right(model), right(model), model.seal()
        def child():
            before = model.stats().calls["replayed"]
            right(model), right(model)
            return model.stats().calls["replayed"] - before
        print(forked_at("call", lambda: model(torch.ones(3, 2)), child))
    """)
    assert found == ["2"]


@pytest.mark.parametrize("seals", [False, True], ids=["open", "sealed"])
def test_a_child_of_a_process_in_a_recorded_call_records_by_itself(program, seals):
    found = program(f"""
        config = pw.Config(dynamic=ROWS, splitting_ops=("forks::op",), capture_sizes=(3,),
                           capture_max=False)
        model = pw.record(lambda x: torch.ops.forks.op(x.sin()) + 1, config, SimulatedPlatform())
        right(model), right(model)
        if {seals}:
            model.seal()
        print(forked_at("call", lambda: model(torch.ones(3, 2)), lambda: [
            right(model), right(model), right(model, 5)]).replace(" ", ""))
        print(right(model))
    """)
    assert found == ["[True,True,True]", "True"]


def test_a_child_of_a_process_that_records_has_torch_as_it_was(program):
    found = program("""
        config = pw.Config(dynamic=ROWS, splitting_ops=("forks::op",), capture_sizes=(3,),
                           capture_max=False)
        model = pw.record(lambda x: torch.ops.forks.op(x.sin()) + 1, config, SimulatedPlatform())
        def child():
            compiled = []
            def backend(graph, inputs):
                compiled.append(graph)
                return graph.forward
            torch.compile(lambda x: x + 1, backend=backend)(torch.ones(2))
            return len(compiled), torch.compiler.is_compiling(), right(model), right(made())
        print(forked_at("call", lambda: model(torch.ones(3, 2)), child).replace(" ", ""))
        print(right(model))
    """)
    assert found == ["(1,False,True,True)", "True"]


def test_what_a_thread_was_building_is_built_by_the_child_that_lacks_it(program):
    found = program("""
        model = made(compile_ranges_endpoints=(4,))
        right(model)
        # The child waits for nobody: neither for the trace nor for the compilation under way.
        print(forked_at("compile", lambda: model.warmup(progress=False), lambda: right(model)))
        other = made(compile_ranges_endpoints=(4,))
        right(other), right(other)
        print(forked_at("compile", lambda: other(torch.ones(9, 2)), lambda: right(other, 9)))
        print(right(other, 9))
    """)
    assert found == ["True", "True", "True"]


def test_a_child_of_a_process_that_holds_every_lock_counts_and_keeps(program, tmp_path):
    found = program("""
        from piecewise_core.store.memory import MemoryStore
        from piecewise_core.counters import Counters, process_counters
        counters, store, free = Counters(), MemoryStore(), threading.RLock()
        def hold():
            with counters._lock, process_counters._lock, store._guard, compile_lock:
                WHERE["stop"] = "here"
                stop("here")
        def child():
            counters.add("graphs")
            del counters_of[:]
            return counters.stats().graphs, right(made()), compile_lock.acquire(blocking=False)
        counters_of = [Counters()]
        print(forked_at("here", hold, child).replace(" ", ""))
        with compile_lock:
            # What the forking thread itself holds, it holds in the child too.
            print(forked(lambda: (compile_lock.release(), right(made()))).replace(" ", ""))
    """)
    assert found == ["(1,True,True)", "(None,True)"]


def test_a_call_that_forks_inside_goes_on_in_both(program):
    found = program("""
        @torch.library.custom_op("forks::forks", mutates_args=())
        def forks(x: torch.Tensor) -> torch.Tensor:
            PIDS.append(os.fork() if FORK else 0)
            return x * 2
        forks.register_fake(lambda x: torch.empty_like(x))
        PIDS, FORK = [], False
        fn = lambda x: torch.ops.forks.forks(x.sin()) + 1
        model = made(fn, splitting_ops=("forks::forks",), capture_sizes=(3,), capture_max=False)
        right(model), right(model)
        FORK = True
        good = right(model)
        FORK = False
        pid = PIDS[-1]
        if pid == 0:
            os._exit(7 if good and right(model) and right(model, 5) else 1)
        print(good, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), right(model))
    """)
    assert found == ["True", "7", "True"]


def test_a_device_that_the_parent_had_begun_to_use_is_refused_with_what_to_do(program):
    found = program("""
        parent = os.getpid()
        torch.cpu._is_in_bad_fork = lambda: os.getpid() != parent  # as torch.cuda says
        config = pw.Config(dynamic=ROWS, capture_sizes=(3,), capture_max=False)
        recorded = pw.record(lambda x: x.sin() * 2 + 1, config, SimulatedPlatform())
        model, new = made(), made()
        right(model), right(recorded)
        for each in (model, new, recorded):
            said = forked(lambda: each(torch.ones(3, 2)))
            print(said.split(":")[0], "spawn" in said and '"cpu"' in said, right(each))
    """)
    assert found == ["PlatformError", "True", "True"] * 3
