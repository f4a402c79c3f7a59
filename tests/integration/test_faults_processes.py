"""FAULTS 30, 31 and 38: threads, processes, and an interrupt in warm-up."""

from __future__ import annotations

import pickle
import subprocess
import textwrap
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import piecewise_core as pw
from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.errors import CompileFailed, PiecewiseError
from piecewise_core.protocols import Capabilities

LIBRARY = "faults_processes"
ROWS = pw.Dim("rows", 0, 64)


@torch.library.custom_op(f"{LIBRARY}::attend", mutates_args=())
def attend(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x)


@attend.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Linear(8, 8)
        self.after = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.after(attend(self.before(x)).relu())


class Decoder(nn.Module):
    """Layers cut at attention."""

    def __init__(self, layers: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    torch.manual_seed(0)
    with torch.inference_mode():
        yield


def compiled(model, platform="cpu", **config):
    settings = {
        "dynamic": {"x": {0: ROWS}},
        "splitting_ops": (f"{LIBRARY}::attend",),
        "compiler": "eager",
        **config,
    }
    return pw.compile(model, pw.Config(**settings), platform)


# 30: threads -------------------------------------------------------------------------------


def in_threads(count: int, work: Callable[[int], None]) -> None:
    """Run ``work(place)`` in threads that all begin together."""
    start = threading.Barrier(count)

    def begin(place: int) -> None:
        start.wait()
        with torch.inference_mode():
            work(place)

    with ThreadPoolExecutor(count) as pool:
        for done in [pool.submit(begin, place) for place in range(count)]:
            done.result()


@pytest.mark.parametrize("mode", ["lazy", "warmup"])
def test_threads_that_call_one_model_get_eager_results_and_every_call_is_counted(mode):
    """FAULTS 30."""
    model = Decoder()
    fast = compiled(
        model, compile_ranges_endpoints=(4, 16), compile_sizes=(8, 9), compile_mode=mode
    )
    expected = {size: model(torch.full((size, 8), 0.1 * size)) for size in range(65)}

    def work(place: int) -> None:
        for call in range(150):
            size = (place * 31 + call * 7) % 65
            torch.testing.assert_close(fast(torch.full((size, 8), 0.1 * size)), expected[size])

    in_threads(4, work)
    stats = fast.stats()
    assert sum(stats.calls.values()) == 600
    assert stats.graphs == 1
    # Three distinct pieces (first, middle, last) for five targets, and once for all sizes.
    assert stats.compilations == 3 * (5 + (mode == "lazy"))


def test_threads_may_warm_up_and_call_at_once():
    """FAULTS 30."""
    model = Decoder()
    fast = compiled(model, compile_ranges_endpoints=(4, 16), compile_sizes=(8, 9))
    expected = model(torch.ones(5, 8))

    def work(place: int) -> None:
        if place % 2:
            fast.warmup(torch.ones(3, 8), progress=False)
        for _ in range(20):
            torch.testing.assert_close(fast(torch.ones(5, 8)), expected)

    in_threads(4, work)
    assert sum(fast.stats().calls.values()) == 80
    assert fast.stats().compilations <= 3 * 6


def test_threads_may_trace_different_models_at_once():
    """FAULTS 30."""

    def work(place: int) -> None:
        model = Decoder(place + 1)
        fast = compiled(model)
        for size in (3, 0, 1, 9):
            x = torch.randn(size, 8)
            torch.testing.assert_close(fast(x), model(x))

    in_threads(4, work)


def test_a_failing_call_in_one_thread_does_not_block_the_others():
    """FAULTS 30."""
    model = Decoder()
    fast = compiled(model)
    fast(torch.ones(3, 8))

    def work(place: int) -> None:
        for _ in range(20):
            if place == 0:
                with pytest.raises(PiecewiseError):
                    fast(torch.ones(3, 9))
            else:
                torch.testing.assert_close(fast(torch.ones(3, 8)), model(torch.ones(3, 8)))

    in_threads(3, work)


# 31: processes -----------------------------------------------------------------------------


PRELUDE = """
import os, sys, torch
import piecewise_core as pw
torch.set_num_threads(1)

def model(x):
    return (x @ x.t()).softmax(-1) + x.shape[0]

def make(**config):
    config = {"dynamic": {"x": {0: pw.Dim("rows", 0, 64)}}, "compiler": "eager", **config}
    return pw.compile(model, pw.Config(**config), "cpu")

def check(fast, sizes=(3, 0, 1, 20)):
    with torch.inference_mode():
        for size in sizes:
            x = torch.randn(size, 4)
            torch.testing.assert_close(fast(x), model(x))
"""


@pytest.fixture
def run_script(fresh_processes) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run a program in a fresh process: a fork of this one would have pytest's threads."""
    start = "import warnings\nwarnings.simplefilter('error')\n" + PRELUDE
    return lambda body: fresh_processes.run(start + textwrap.dedent(body), timeout=120)


def test_a_forked_child_goes_on_with_the_model_and_so_does_the_parent(
    without_accelerators, run_script
):
    """FAULTS 31. Where torch sees a device, Dynamo initialises it, and no child can use it."""
    done = run_script("""
        fresh, called, warmed = (make(compile_ranges_endpoints=(8,)) for _ in range(3))
        check(called, (5,))
        with torch.inference_mode():
            warmed.warmup(torch.randn(5, 4), progress=False)
        child = os.fork()
        for fast in (fresh, called, warmed):
            check(fast)
        if child == 0:
            os._exit(0)
        _, status = os.waitpid(child, 0)
        sys.exit(os.waitstatus_to_exitcode(status))
    """)
    assert done.returncode == 0, done.stderr


SPAWNS = """
import multiprocessing

def work():
    check(make())

if __name__ == "__main__":
    work()
    worker = multiprocessing.get_context("spawn").Process(target=work, daemon=True)
    worker.start()
    worker.join(100)
    sys.exit(worker.exitcode)
"""


def test_a_spawned_daemon_worker_compiles_for_itself(fresh_processes):
    """FAULTS 31."""
    done = fresh_processes.run(PRELUDE + SPAWNS, timeout=120)
    assert done.returncode == 0, done.stderr


def test_a_compiled_model_sent_to_another_process_is_refused_saying_what_to_send():
    """FAULTS 31."""
    model = Decoder()
    for thing in (compiled(model), pw.compile(lambda x: x, pw.Config(compiler="eager"), "cpu")):
        with pytest.raises(
            PiecewiseError, match=r"cannot be pickled.*compile it again where it is loaded"
        ):
            pickle.dumps(thing)
    pickle.dumps(model)


# 38: an interrupt in warm-up ---------------------------------------------------------------


class Interrupted(EagerCompiler):
    """Raises ``error`` in place of the ``at``-th compilation, once."""

    name = "interrupted"

    def __init__(self, at: int, error: BaseException) -> None:
        self.at = at
        self.error = error
        self.compiled: list[str] = []

    def compile(self, graph, example_inputs, *, key, config):
        if len(self.compiled) == self.at:
            self.at = -1
            raise self.error
        self.compiled.append(key)
        return super().compile(graph, example_inputs, key=key, config=config)


class Runtime:
    def current_stream(self): ...
    def new_stream(self): ...
    def stream(self, stream):
        return nullcontext()

    def synchronize(self): ...


def platform(compiler) -> SimpleNamespace:
    return SimpleNamespace(
        device=Runtime(), graphs=None, compiler=compiler, capabilities=Capabilities()
    )


TARGETS = {"compile_ranges_endpoints": (4, 16), "compile_sizes": (8,)}
DISTINCT = 3 * 4
"""Pieces times targets."""


@pytest.mark.parametrize("at", range(DISTINCT))
def test_an_interrupt_in_warm_up_leaves_a_model_that_serves_and_warm_up_resumes(at):
    """FAULTS 38."""
    compiler = Interrupted(at, KeyboardInterrupt())
    model = Decoder()
    fast = compiled(model, platform(compiler), compiler=None, **TARGETS)
    with pytest.raises(KeyboardInterrupt):
        fast.warmup(torch.randn(5, 8), progress=False)
    assert fast.stats().compilations == at
    report = fast.warmup(torch.randn(5, 8), progress=False)
    assert report.compilations == DISTINCT - at
    assert len(set(compiler.compiled)) == len(compiler.compiled) == DISTINCT
    fast.seal()
    for size in (0, 1, 5, 8, 17, 64):
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), model(x))


def test_a_model_serves_between_an_interrupted_warm_up_and_the_next():
    """FAULTS 38."""
    compiler = Interrupted(4, KeyboardInterrupt())
    model = Decoder()
    fast = compiled(model, platform(compiler), compiler=None, **TARGETS)
    with pytest.raises(KeyboardInterrupt):
        fast.warmup(torch.randn(5, 8), progress=False)
    for size in (0, 1, 5, 8, 17, 64):
        x = torch.randn(size, 8)
        torch.testing.assert_close(fast(x), model(x))
    assert sum(fast.stats().calls.values()) == 6


def test_an_interrupt_while_tracing_leaves_a_model_that_serves():
    """FAULTS 38."""
    interrupts = [KeyboardInterrupt()]

    class Interrupting(Decoder):
        def forward(self, x):
            if torch.compiler.is_compiling() and stop():
                x = x + 1
            return super().forward(x)

    @torch._dynamo.assume_constant_result
    def stop() -> bool:
        if interrupts:
            raise interrupts.pop()
        return False

    model = Interrupting()
    fast = compiled(model)
    with pytest.raises(KeyboardInterrupt):
        fast(torch.randn(5, 8))
    x = torch.randn(5, 8)
    torch.testing.assert_close(fast(x), model(x))
    assert fast.stats().graphs == 1


def test_a_compiler_that_fails_in_warm_up_is_named_with_piece_and_range_and_the_rest_is_kept():
    """FAULTS 38: an error is no worse than an interrupt."""
    compiler = Interrupted(4, RuntimeError("no registers left"))
    model = Decoder()
    fast = compiled(model, platform(compiler), compiler=None, **TARGETS)
    with pytest.raises(CompileFailed) as caught:
        fast.warmup(torch.randn(5, 8), progress=False)
    for part in ("region 0 piece ", "[0, 4]", "'interrupted'", "no registers left", "explain()"):
        assert part in str(caught.value)
    assert fast.warmup(progress=False).compilations == DISTINCT - 4
    x = torch.randn(5, 8)
    torch.testing.assert_close(fast(x), model(x))
