"""What a key depends on, and what it does not. Each case is one change to one baseline."""

from __future__ import annotations

import importlib
import json
import os
import random
import re
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from source_platform import SourceCompiler, SourcePlatform
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

import piecewise_core as pw
from piecewise_core.compile.artifact_cache import ArtifactCache
from piecewise_core.compile.eager import EagerCompiler
from piecewise_core.errors import StoreError
from piecewise_core.graph.canonical import canonical_form
from piecewise_core.graph.split import Piece
from piecewise_core.plugins.attribution import attributed_compiler
from piecewise_core.ranges import Box, Range
from piecewise_core.store import environment, machine, sources
from piecewise_core.store.entry import Ticket
from piecewise_core.store.environment import Environment, compiler_factors

RANGE = Box((Range(1, 64),))
ROWS = {"x": {0: pw.Dim("rows", 1, 64)}}


def base(x, w):
    return torch.relu(x @ w + 1.5) * 2


def doubled(graph: torch.fx.GraphModule) -> None:
    """A pass; changes nothing."""


def halved(graph: torch.fx.GraphModule) -> None:
    """Another."""


def by(graph: torch.fx.GraphModule, factor: float) -> None:
    """A pass with a constant."""


ARGS = (torch.randn(5, 8), torch.randn(8, 8))


class Case:
    """Everything that goes into one key; a test changes one thing of it.

    The baseline's program is traced once for all tests, another for every ticket.
    """

    def __init__(self, pieces_of: Callable[..., Any], base_pieces: Any) -> None:
        self._pieces_of = pieces_of
        self._base_pieces = base_pieces
        self.fn: Callable[..., Any] = base
        self.args: tuple[torch.Tensor, ...] = ARGS
        self.dynamic: dict[str, Any] = ROWS
        self.settings: dict[str, Any] = {}
        self.place = 0
        self.box = RANGE
        self.compiler = SourceCompiler({"opt": "3", "arch": "sm90"})
        self.facts = {"name": "Acme 9", "driver": "570"}
        self.alignment = 1
        self.name, self.distribution = "source", "piecewise-source 1.0"
        self.passes: tuple[Any, ...] = ()
        self.more: dict[str, str] = {}
        self.label = "region 0 piece 0"
        self.around: AbstractContextManager[Any] = ExitStack()

    def ticket(self, *, traced_again: bool = False) -> Ticket:
        of_base = self.fn is base and self.args is ARGS and self.dynamic is ROWS
        if of_base and not self.settings and not traced_again:
            found = self._base_pieces
        else:
            found = self._pieces_of(self.fn, *self.args, dynamic=self.dynamic, **self.settings)
        with self.around:
            return self.of(found.compilable[self.place], found.config)

    def of(self, piece: Piece, config: pw.Config) -> Ticket:
        platform = SourcePlatform(self.compiler, self.facts, self.alignment)
        settings = config.replace(compiler=self.compiler.name)
        around = Environment(
            platform, self.name, self.distribution, settings, self.passes, self.more
        )
        cache = ArtifactCache(None, around)
        return cache.ticket(self.compiler, piece, canonical_form(piece), self.box, self.label)


@pytest.fixture(scope="module")
def base_pieces(pieces_of) -> Any:
    return pieces_of(base, *ARGS, dynamic=ROWS)


@pytest.fixture
def case(pieces_of, base_pieces) -> Case:
    return Case(pieces_of, base_pieces)


@contextmanager
def setting(change: Callable[[Any], Any], new: Any, old: Any):
    change(new)
    try:
        yield
    finally:
        change(old)


@contextmanager
def patched(thing: Any, name: str, value: Any):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(thing, name, value)
        yield


class Other(SourceCompiler):
    """A compiler of another class."""


def in_place(x, w):
    return torch.relu((x @ w).add_(1.5)) * 2


def with_autocast(x, w):
    with torch.autocast("cpu", torch.bfloat16):
        return torch.relu(x @ w + 1.5) * 2


def cut(x, w):
    return torch.nn.functional.softmax(torch.relu(x @ w), -1) * 2


def shared(x, w):
    return torch.relu(w @ w.T[:, :8] + 1.5) * 2 + x.sum()


CHANGES: dict[str, Callable[[Case], Any]] = {
    "an operation": lambda c: {"fn": lambda x, w: torch.tanh(x @ w + 1.5) * 2},
    "a constant": lambda c: {"fn": lambda x, w: torch.relu(x @ w + 1.25) * 2},
    "a constant's type": lambda c: {"fn": lambda x, w: torch.relu(x @ w + 1.5) * 2.0},
    "the order of operations": lambda c: {"fn": lambda x, w: torch.relu((x @ w) * 2 + 1.5)},
    "the order of operands": lambda c: {"fn": lambda x, w: torch.relu(1.5 + x @ w) * 2},
    "an operation in place": lambda c: {"fn": in_place},
    "autocast": lambda c: {"fn": with_autocast},
    "a place to cut": lambda c: {"fn": cut},
    "the dtype of all": lambda c: {"args": tuple(a.double() for a in c.args)},
    "the dtype of one input": lambda c: {
        "fn": lambda x, w: torch.relu(x.float() @ w + 1.5) * 2,
        "args": (c.args[0].half(), c.args[1]),
    },
    "a fixed size": lambda c: {"args": (torch.randn(5, 4), torch.randn(4, 8))},
    "strides": lambda c: {"args": (c.args[0], c.args[1].T)},
    "what varies": lambda c: {
        "dynamic": {"x": {0: pw.Dim("a", 1, 64)}, "w": {1: pw.Dim("b", 1, 64)}},
        "box": Box((Range(1, 64), Range(1, 64))),
    },
    "memory that inputs share": lambda c: {"fn": shared},
    "the range": lambda c: {"box": Box((Range(1, 32),))},
    "an exact size": lambda c: {"box": Box((Range(8, 8),))},
    "the compiler": lambda c: {"compiler": renamed(c)},
    "the compiler's class": lambda c: {"compiler": Other(c.compiler.factors)},
    "a compiler option": lambda c: {"compiler": SourceCompiler({**c.compiler.factors, "opt": "2"})},
    "a new option": lambda c: {"compiler": SourceCompiler({**c.compiler.factors, "x": ""})},
    "the platform": lambda c: {"name": "acme"},
    "the platform's version": lambda c: {"distribution": "piecewise-source 1.1"},
    "the device": lambda c: {"facts": {**c.facts, "name": "Acme 8"}},
    "the driver": lambda c: {"facts": {**c.facts, "driver": "575"}},
    "the alignment": lambda c: {"alignment": 16},
    "a graph pass": lambda c: {"passes": (doubled,)},
    "a declared factor": lambda c: {"more": {"tensor_parallel": "2"}},
    "core's version": lambda c: {"around": patched(environment, "version", lambda name: "9")},
    "core's code": lambda c: {"around": patched(environment, "core_digest", lambda: "other")},
    "torch's version": lambda c: {"around": patched(torch, "__version__", "9.0")},
    "Python's version": lambda c: {
        "around": patched(sys, "implementation", SimpleNamespace(cache_tag="cpython-399"))
    },
    "the processor": lambda c: {
        "around": patched(
            environment,
            "machine_factors",
            lambda: {**machine.machine_factors(), "machine.flags": "avx2"},
        )
    },
    "matmul precision": lambda c: {
        "around": setting(torch.set_float32_matmul_precision, "high", "highest")
    },
    "the default dtype": lambda c: {
        "around": setting(torch.set_default_dtype, torch.float64, torch.float32)
    },
    "determinism": lambda c: {"around": setting(torch.use_deterministic_algorithms, True, False)},
}  # fmt: skip


def renamed(case: Case) -> SourceCompiler:
    compiler = SourceCompiler(case.compiler.factors)
    compiler.name = "source2"
    return compiler


def changed(case: Case, changes: dict[str, Any], *, traced_again: bool = False) -> Ticket:
    for name, value in changes.items():
        assert hasattr(case, name)
        setattr(case, name, value)
    return case.ticket(traced_again=traced_again)


@pytest.mark.parametrize("what", CHANGES)
def test_what_changes_the_program_changes_the_key(case, what):
    before = case.ticket()
    after = changed(case, CHANGES[what](case))
    assert after.key != before.key
    assert [
        n
        for n in {*before.factors, *after.factors}
        if before.factors.get(n) != after.factors.get(n)
    ]


def other_names(first, second):
    product = first @ second
    return torch.relu(product + 1.5) * 2


def with_unused(x, w):
    _ = 3 + 4
    y = base(x, w)
    return y  # noqa: RET504


@contextmanager
def environ(**variables: str):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


@contextmanager
def elsewhere():
    here = Path.cwd()
    os.chdir("/")
    try:
        yield
    finally:
        os.chdir(here)


SAME: dict[str, Callable[[Case], dict[str, Any]]] = {
    "nothing": lambda c: {},
    "names of values": lambda c: {"fn": other_names, "dynamic": {"first": ROWS["x"]}},
    "names of functions, and lines": lambda c: {"fn": lambda x, w: base(x, w)},
    "code that leaves no trace": lambda c: {"fn": with_unused},
    "names of dims": lambda c: {"dynamic": {"x": {0: pw.Dim("n", 1, 64)}}},
    "values of weights": lambda c: {"args": (c.args[0], torch.zeros(8, 8))},
    "the size of the example": lambda c: {"args": (torch.randn(31, 8), c.args[1])},
    "bounds, with the same range": lambda c: {"dynamic": {"x": {0: pw.Dim("rows", 1, 9999)}}},
    "other ranges": lambda c: {"settings": {"compile_ranges_endpoints": (8, 16)}},
    "other sizes": lambda c: {"settings": {"compile_sizes": (4,), "capture_sizes": (2, 4)}},
    "how calls are checked": lambda c: {"settings": {"check": "strict", "clone_outputs": True}},
    "when compilation happens": lambda c: {"settings": {"compile_mode": "warmup"}},
    "what other sizes do": lambda c: {"settings": {"out_of_range": "eager"}},
    "the cache's directory": lambda c: {"settings": {"cache_dir": "/elsewhere"}},
    "the memory limit": lambda c: {"settings": {"memory_limit": 1 << 20}},
    "padding": lambda c: {"settings": {"padding": "capture_sizes", "capture_sizes": (8,)}},
    "what messages call the piece": lambda c: {"label": "region 7 piece 9"},
    "the order of compiler options": lambda c: {
        "compiler": SourceCompiler(dict(reversed(c.compiler.factors.items())))
    },
    "the order of the device's facts": lambda c: {"facts": dict(reversed(c.facts.items()))},
    "another instance of the compiler": lambda c: {"compiler": SourceCompiler(c.compiler.factors)},
    "the working directory": lambda c: {"around": elsewhere()},
    "the rank": lambda c: {"around": environ(RANK="3", LOCAL_RANK="3", WORLD_SIZE="8")},
    "visible devices": lambda c: {"around": environ(CUDA_VISIBLE_DEVICES="5")},
    "home and temporary directory": lambda c: {"around": environ(HOME="/x", TMPDIR="/y")},
    "unrelated variables": lambda c: {"around": environ(LANG="C", PIECEWISE_CACHE_LIMIT="1G")},
    "the seed": lambda c: {"around": setting(torch.manual_seed, 7, 0)},
    "random state of Python": lambda c: {"around": setting(random.seed, 7, 0)},
    "gradients": lambda c: {"around": torch.enable_grad()},
    "inference mode": lambda c: {"around": torch.inference_mode()},
}


@pytest.mark.parametrize("what", SAME)
def test_what_changes_nothing_keeps_the_key(case, what):
    before = case.ticket()
    assert changed(case, SAME[what](case), traced_again=True).factors == before.factors


def test_there_are_twenty_cases_of_either_kind_and_more():
    assert len(CHANGES) >= 20
    assert len(SAME) >= 20


def test_equal_layers_have_one_key_and_the_thread_does_not_matter(case):
    def layers(x, w):
        for _ in range(4):
            x = torch.nn.functional.softmax(torch.relu(x @ w), -1)
        return x * 2

    case.fn = layers
    keys = []
    for case.place in range(1, 4):
        work = threading.Thread(target=lambda: keys.append(case.ticket().key))
        work.start()
        work.join()
    assert len(keys) == 3
    assert len(set(keys)) == 1


SCRIPT = """
    import json, sys
    import torch
    from source_platform import SourcePlatform
    import piecewise_core as pw

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 4)

        def forward(self, x, bias):
            y = torch.nn.functional.softmax(self.first(x) + bias, -1)
            return {"out": self.second(y), "rows": x.shape[0]}

    config = pw.Config(
        dynamic={"x": {0: pw.Dim("rows", 1, 64)}, "bias": {0: pw.Dim("rows", 1, 64)}},
        splitting_ops=("torch.nn.functional.softmax",),
        compile_ranges_endpoints=(8,),
    )
    fast = pw.compile(Model(), config, SourcePlatform())
    with torch.inference_mode():
        fast.warmup(torch.randn(3, 8), torch.randn(3, 8), progress=False)
    scheduler = fast._pw_session.scheduler
    print(json.dumps([scheduler.entry(a).manifest.key for a in scheduler.artifacts]))
"""


def test_another_process_in_another_place_has_the_same_keys(tmp_path, monkeypatch, fresh_processes):
    here, there = tmp_path / "a", tmp_path / "b" / "deeper"
    here.mkdir()
    there.mkdir(parents=True)
    script = there / "model.py"
    script.write_text("\n" + textwrap.dedent(SCRIPT))
    kit = str(Path(sys.modules["source_platform"].__file__).parent)
    # Both are to find the same core: a process that is forked has its parent's path besides.
    path = os.pathsep.join([kit, *filter(None, [os.environ.get("PYTHONPATH")])])

    def surroundings(home: Path, number: int) -> dict[str, str]:
        return {"PYTHONPATH": path, "HOME": str(home), "LOCAL_RANK": str(number)}

    with monkeypatch.context() as patch:
        patch.chdir(here)
        for name, value in surroundings(here, 0).items():
            patch.setenv(name, value)
        first = fresh_processes.run(textwrap.dedent(SCRIPT))
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    second = subprocess.run(
        [sys.executable, str(script)],
        cwd=there,
        env={**os.environ, **surroundings(there, 1), "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
    )
    assert [first.returncode, second.returncode] == [0, 0], first.stderr + second.stderr
    keys = json.loads(first.stdout)
    assert len(set(keys)) == 4
    assert json.loads(second.stdout) == keys


# Devices -------------------------------------------------------------------------------


def on_devices(*devices: str) -> Piece:
    """A piece with one tensor on each of ``devices``, made without any of them."""
    graph, mode = torch.fx.Graph(), FakeTensorMode()
    nodes = [graph.placeholder(f"x{n}") for n in range(len(devices))]
    for node, device in zip(nodes, devices, strict=True):
        tensor = FakeTensor(mode, torch.empty(4, device="meta"), torch.device(device))
        node.meta["example_value"] = tensor
    made = graph.call_function(torch.zeros, (4,), {"device": torch.device(devices[-1])})
    graph.output((made,))
    module = torch.fx.GraphModule(torch.nn.Module(), graph)
    return Piece(0, False, (made,), (), module, (), tuple(nodes))


def test_the_device_index_is_in_the_in_process_key_and_in_no_other(case):
    case.box = Box(())
    config = pw.Config()
    first, second = on_devices("cuda:0"), on_devices("cuda:1")
    assert case.of(first, config) == case.of(second, config)
    assert canonical_form(first).text == canonical_form(second).text
    assert canonical_form(first).key != canonical_form(second).key
    assert canonical_form(second).devices == ("cuda:1",)


def test_one_device_and_two_are_different_programs(case):
    case.box = Box(())
    config = pw.Config()
    keys = {
        case.of(on_devices(*devices), config).key
        for devices in (
            ("cuda:0", "cuda:0"),
            ("cuda:0", "cuda:1"),
            ("cpu", "cuda:0"),
            ("cuda:0", "cpu"),
        )
    }
    assert len(keys) == 4
    assert case.of(on_devices("cuda:0", "cuda:1"), config) == case.of(
        on_devices("cuda:2", "cuda:0"), config
    )


# Passes --------------------------------------------------------------------------------


def passes_key(case: Case, *passes: Any) -> str:
    case.passes = passes
    return case.ticket().factors["passes"]


def made_from(source: str) -> Any:
    names: dict[str, Any] = {}
    exec(source, names)
    return names["change"]


def test_a_pass_is_known_by_its_name_its_code_and_what_it_holds(case):
    def with_value(value):
        return lambda graph: value

    found = [
        passes_key(case, doubled),
        passes_key(case, halved),
        passes_key(case, doubled, halved),
        passes_key(case, halved, doubled),
        passes_key(case, partial(by, factor=2.0)),
        passes_key(case, partial(by, factor=3.0)),
        passes_key(case, with_value(1)),
        passes_key(case, with_value("1")),
        passes_key(case, made_from("def change(graph): return 1")),
        passes_key(case, made_from("def change(graph): return 2")),
        passes_key(case, made_from("def change(graph, n=1): return 1")),
    ]
    assert len(set(found)) == len(found)
    assert passes_key(case, with_value(1)) == passes_key(case, with_value(1))
    again = made_from("def change(graph): return 1")
    assert passes_key(case, again) == passes_key(case, made_from("def change(graph): return 1"))


def test_a_pass_that_holds_what_nobody_can_compare_names_its_remedy(case):
    held = object()
    case.passes = (lambda graph: held,)
    with pytest.raises(StoreError, match="give it an attribute key"):
        case.ticket()

    def keyed(graph):
        return held

    keyed.key = "mine 1.0"
    first = passes_key(case, keyed)
    keyed.key = "mine 1.1"
    assert passes_key(case, keyed) != first


def test_the_file_that_a_pass_stands_in_counts(case, tmp_path, monkeypatch):
    keys = []
    for number, text in enumerate(("LIMIT = 1", "LIMIT = 2")):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "changing.py").write_text(f"{text}\ndef change(graph):\n    return LIMIT\n")
        with monkeypatch.context() as patch:
            patch.syspath_prepend(str(folder))
            patch.delitem(sys.modules, "changing", raising=False)
            import changing  # type: ignore[import-not-found]

            keys.append(passes_key(case, changing.change))
            patch.delitem(sys.modules, "changing")
    assert keys[0] != keys[1]


# What cannot be kept -------------------------------------------------------------------


def refused(case: Case) -> str:
    with pytest.raises(StoreError) as caught:
        case.ticket()
    return str(caught.value)


def test_a_constant_of_this_process_alone_cannot_be_kept(case):
    held = torch.arange(8.0)
    case.fn = lambda x, w: torch.relu(x @ w + 1.5) * torch.tensor([1.0, 2.0]).sum() + held
    case.ticket()  # such tensors are inputs of the graph, like parameters

    piece = on_devices("cpu")
    module = piece.graph
    module.register_buffer("constant", torch.arange(4.0))
    with module.graph.inserting_before(next(iter(reversed(module.graph.nodes)))):
        node = module.graph.get_attr("constant")
    next(iter(reversed(module.graph.nodes))).args = ((node,),)
    case.box = Box(())
    with pytest.raises(StoreError, match="refers to Tensor, which another process cannot tell"):
        case.of(piece, pw.Config())


def test_a_function_of_the_user_s_in_the_graph_cannot_be_kept(case):
    piece = on_devices("cpu")
    for node in piece.graph.graph.nodes:
        if node.op == "call_function":
            node.target = base
    case.box = Box(())
    with pytest.raises(StoreError, match=r"refers to .*\.base"):
        case.of(piece, pw.Config())


def test_a_compiler_that_cannot_load_or_does_not_say_its_factors_cannot_be_kept(case):
    class Cannot(SourceCompiler):
        name = "cannot"
        load = None

    del Cannot.load
    case.compiler = SimpleNamespace(name="cannot", compile=None, hash_factors=dict)
    assert "'cannot' cannot load what it compiled" in refused(case)
    case.compiler = SourceCompiler()
    case.compiler.hash_factors = lambda: 1 / 0
    assert "ZeroDivisionError" in refused(case)


def test_operators_of_other_libraries_count_with_schema_and_fake_kernel(case):
    def define(library, layout):
        library.define("turn(Tensor x) -> Tensor")
        library.impl("turn", lambda x: layout(x), "CPU")
        torch.library.register_fake("store_key::turn", lambda x: layout(x), lib=library)

    def fn(x, w):
        return torch.ops.store_key.turn(x) @ w + 1

    with torch.library._scoped_library("store_key", "FRAGMENT") as library:
        define(library, lambda x: torch.empty_like(x))
        case.fn = fn
        first = case.ticket()
        assert "store_key::turn(Tensor x)" in first.factors["piece.operators"]
        assert case.ticket() == first
    torch._dynamo.reset()
    with torch.library._scoped_library("store_key", "FRAGMENT") as library:
        define(library, lambda x: x.new_empty(x.shape[::-1]).T)
        second = case.ticket()
    assert first.factors["piece.form"] == second.factors["piece.form"]
    assert first.key != second.key


def test_an_operator_whose_python_code_is_compiled_in_cannot_be_kept(case):
    with torch.library._scoped_library("store_inlined", "FRAGMENT") as library:
        library.define("twice(Tensor x) -> Tensor")
        library.impl("twice", lambda x: x * 2, "CompositeImplicitAutograd")
        case.fn = lambda x, w: torch.ops.store_inlined.twice(x) @ w
        assert "store_inlined::twice, which compilers replace" in refused(case).replace(
            ".default", ""
        ).replace("store_inlined.twice", "store_inlined::twice")


def test_no_factor_holds_an_address_or_a_place_in_files(case):
    case.passes = (doubled,)
    for name, value in case.ticket().factors.items():
        assert " at 0x" not in value, name
        assert not name.startswith("path")
        assert str(Path.home()) not in value or Path.home() == Path("/"), name
        assert str(Path(__file__).parent) not in value, name
        assert str(os.getpid()) not in value.split(), name


def test_factors_of_a_piece_can_be_read(case):
    factors = case.ticket().factors
    assert "matmul" in factors["piece.operations"]
    assert factors["piece.tensors"] == (
        "torch.float32 cpu [d0, 8] [8, 1] +[0]; torch.float32 cpu [8, 8] [8, 1] +[0]"
    )
    case.fn = lambda x, w: sum((torch.relu(x + n) for n in range(20)), x @ w)
    case.args = (torch.randn(5, 8), torch.randn(8, 8))
    assert " x20" in case.ticket().factors["piece.operations"]


def test_flags_that_tell_of_mitigations_are_no_factor(tmp_path):
    def flags(text: str) -> str:
        file = tmp_path / f"cpuinfo{len(list(tmp_path.iterdir()))}"
        file.write_text(text)
        return machine.machine_factors(file)["machine.flags"]

    assert flags("flags\t\t: avx2 md_clear sse4_1\n") == flags("flags : sse4_1 avx2 ibrs\nflags: x")
    assert flags("flags\t\t: avx2 avx512f\n") != flags("flags\t\t: avx2\n")
    assert flags("Features\t: fp asimd sve\n") == "asimd fp sve"


def test_identities_of_classes_follow_their_files():
    assert sources.class_identity(SourceCompiler) != sources.class_identity(Other)
    assert sources.class_identity(Other) == sources.class_identity(Other)
    assert sources.core_digest() == sources.core_digest()
    assert replace(Ticket("k", {}, RANGE, "l"), label="m") != Ticket("k", {}, RANGE, "l")


def test_core_s_digest_reads_every_package_that_has_a_part_in_what_is_compiled():
    root = Path(pw.__file__).parent
    imported = {
        name
        for package in sources.COMPILING
        for path in (root / package).rglob("*.py")
        for name in re.findall(r"^ *from piecewise_core\.(\w+)", path.read_text(), re.MULTILINE)
        if (root / name).is_dir()
    }
    assert {"graph", "store"} <= imported
    assert imported - {"errors", "protocols", "plugins"} <= set(sources.COMPILING)


def test_a_plugin_s_compiler_is_known_by_its_whole_package_and_who_brought_it(
    tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(tmp_path)

    def factors(helper: str, number: int, by: str) -> dict[str, str]:
        folder = tmp_path / f"acme_{number}"
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "helper.py").write_text(helper)
        source = "class Acme:\n    name = 'acme'\n    def hash_factors(self):\n        return {}\n"
        (folder / "compiler.py").write_text(source)
        module = importlib.import_module(f"acme_{number}.compiler")
        found = compiler_factors(attributed_compiler(module.Acme(), by))
        return {n: v for n, v in found.items() if n != "compiler.class"}  # holds the name

    first = factors("a = 1", 1, "piecewise-acme 1.0")
    assert first == factors("a = 1", 2, "piecewise-acme 1.0")
    assert first["compiler.distribution"] == "piecewise-acme 1.0"
    assert (
        first["compiler.package"] != factors("a = 2", 3, "piecewise-acme 1.0")["compiler.package"]
    )
    assert first != factors("a = 1", 4, "piecewise-acme 1.1")
    assert compiler_factors(EagerCompiler())["compiler.package"] == ""
