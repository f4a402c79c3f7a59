"""Whatever a vendor's method raises names distribution, version and method."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import sys
from types import SimpleNamespace

import pytest
import torch

import piecewise_core as pw
from piecewise_core.cli.diagnosis import diagnose
from piecewise_core.errors import CompileFailed, PiecewiseError, PlatformFault
from piecewise_core.plugins import all_passes, attributed, error_text, raised, select
from piecewise_core.protocols import (
    CompiledGraph,
    CompilerAdaptor,
    CompilerExtras,
    DeviceRuntime,
    GraphDriver,
    GraphExtras,
    RuntimeExtras,
)

PLUGIN = """
import sys
from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import PlatformInfo, Probe

@hookimpl
def piecewise_platforms():
    create = lambda: sys.modules["acme_parts"].create()
    yield PlatformInfo("acme", "cpu", (1, 0), lambda: Probe(True, "simulated"), create)
"""

CONFIG = pw.Config(
    dynamic={"x": {0: pw.Dim("rows", min=1, max=8)}},
    splitting_ops=("torch.nn.functional.layer_norm",),
    capture_sizes=(8,),
)

PARTS = {
    "device": (DeviceRuntime, RuntimeExtras),
    "graphs": (GraphDriver, GraphExtras),
    "compiler": (CompilerAdaptor, CompilerExtras),
}
METHODS = [
    (part, name)
    for part, protocols in PARTS.items()
    for protocol in protocols
    for name, member in vars(protocol).items()
    if inspect.isfunction(member) and not name.startswith("_")
]
ON_FAILURE = {"explain", "abort_capture", "memory_info", "memory_stats"}
"""What is called when a capture fails."""
FOR_STORED = {"load", "hash_factors", "fingerprint"}
"""What is called for the compile store."""


def layers(x):
    x = torch.nn.functional.layer_norm(torch.relu(x) + 1, (4,))
    return x * 2


def boom(*args, **kwargs):
    raise RuntimeError("boom")


@pytest.fixture
def acme(site, monkeypatch):
    """Install acme 3.2, whose platform is what the test puts into ``create``."""
    parts = SimpleNamespace(create=None)
    monkeypatch.setitem(sys.modules, "acme_parts", parts)
    site.install("acme", "3.2", entry="acme", source=PLUGIN)
    return parts


def live(directory, name="", parts=None):
    """A model's life on acme; yields what was said when something went wrong in ``name``.

    ``parts``: the model for two streams.
    """
    shared = "shared" if name in ("graph_like", "executables") else "own"
    model, config = layers, CONFIG.replace(graph_executables=shared)
    if name == "wait_stream":
        model = parts()
        config = CONFIG.replace(graph_streams="two", graph_mode="full", splitting_ops=())
    fast = None
    with torch.inference_mode():
        try:
            fast = pw.compile(model, config, platform="acme")
            yield from fast.warmup(torch.ones(3, 4)).dropped
        except PiecewiseError as error:
            yield str(error)
        steps = [lambda: fast(torch.ones(8, 4)), lambda: fast.dump_graphs(directory)]
        for step in [*steps, lambda: fast.release()] if fast is not None else ():
            try:
                step()
            except PiecewiseError as error:
                yield str(error)


@pytest.mark.parametrize(("part", "name"), [m for m in METHODS if m[1] not in FOR_STORED])
def test_a_method_that_raises_is_named_with_distribution_and_version(
    acme, everything, part, name, caplog, tmp_path
):
    platform = everything.Platform()
    if name in ON_FAILURE:
        platform.graphs.failing = True
    if name == "replay":
        platform.graphs.runs_captures = False
        kind = type("NoReplayer", (everything.Driver,), {"replayer": property()})
        platform.graphs = kind(platform.graphs)
    setattr(getattr(platform, part), name, boom)
    acme.create = lambda: platform

    caplog.set_level(logging.INFO, "piecewise_core")
    said = [
        *live(tmp_path, name, everything.Parts),
        *(record.getMessage() for record in caplog.records),
    ]
    title = f"{PARTS[part][0].__name__}.{name}"
    named = [text for text in said if title in text]
    assert named, said
    assert any("acme 3.2" in text and "RuntimeError: boom" in text for text in named), named


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize(("part", "name"), [m for m in METHODS if m[1] in FOR_STORED])
def test_a_method_that_the_store_asks_and_that_raises_is_named(
    acme, everything, part, name, caplog, tmp_path
):
    caplog.set_level(logging.INFO, "piecewise_core")
    acme.create = everything.Platform
    said = [*live(tmp_path)]
    assert said == []
    platform = everything.Platform()
    setattr(getattr(platform, part), name, boom)
    acme.create = lambda: platform
    said = [*live(tmp_path), *(record.getMessage() for record in caplog.records)]
    named = [text for text in said if f"{PARTS[part][0].__name__}.{name}" in text]
    assert any("acme 3.2" in text and "RuntimeError: boom" in text for text in named), said


def test_a_piecewise_backend_that_raises_is_named(acme, everything):
    class Broken(pw.PiecewiseBackend):
        __init__ = boom

        def __new__(cls, *args):
            raise RuntimeError("boom")

    platform = everything.Platform()
    platform.piecewise_backend = Broken
    acme.create = lambda: platform
    with (
        torch.inference_mode(),
        pytest.raises(PlatformFault, match=r"acme 3\.2: Platform\.piecewise_backend raised"),
    ):
        pw.compile(layers, CONFIG, platform="acme")(torch.ones(2, 4))


def test_a_piecewise_backend_that_raises_in_a_call_is_named(acme, everything):
    class Broken:
        def __init__(self, *args, **kwargs): ...

        __call__ = boom

    platform = everything.Platform()
    platform.graphs = None
    platform.piecewise_backend = Broken
    acme.create = lambda: platform
    with (
        torch.inference_mode(),
        pytest.raises(PlatformFault, match=r"acme 3\.2: Platform\.piecewise_backend\.__call__ rai"),
    ):
        pw.compile(layers, CONFIG.replace(capture_sizes=()), platform="acme")(torch.ones(2, 4))


HOOKS = """
from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import PlatformInfo, Probe

@hookimpl
def piecewise_{hook}():
    raise OSError("no fan")
"""


@pytest.mark.parametrize("hook", ["platforms", "compilers", "passes"])
def test_a_hook_that_raises_is_named_where_it_was_asked_for_and_harms_nobody_else(
    site, caplog, hook
):
    site.platform("good", "good")
    site.install("bad", "3.2", entry="bad", source=HOOKS.format(hook=hook))
    ask = {
        "platforms": lambda: select("bad"),
        "compilers": lambda: pw.compile(layers, pw.Config(compiler="bad"), platform="good")(1),
        "passes": all_passes,
    }[hook]
    said = ""
    try:
        ask()
    except PiecewiseError as error:
        said = str(error)
    said += caplog.text
    assert f"bad 3.2: its hook piecewise_{hook} failed with OSError: no fan" in said
    assert select("good").platform.made_by == "good"


def test_a_self_check_that_raises_is_shown_by_doctor_beside_the_distribution(acme, everything):
    platform = everything.Platform()
    platform.self_check = boom
    acme.create = lambda: platform
    (checkup,) = [c for c in diagnose("acme", compiling=True).checkups if c.platform == "acme"]
    assert checkup.distribution == "acme 3.2"
    assert not checkup.computes
    assert ("self-check", False, "RuntimeError: boom", True) in [
        (s.title, s.ok, s.detail, s.needed) for s in checkup.steps
    ]


def test_a_replay_that_raises_in_a_recorded_function_is_named(acme, everything):
    platform = everything.Platform()
    acme.create = lambda: platform
    fast = pw.record(layers, CONFIG, platform="acme")
    with torch.inference_mode():
        fast(torch.ones(8, 4))
        fast(torch.ones(8, 4))
        for graph in list(platform.graphs._graphs.values()):
            graph.peek()[0].recording = None
        with pytest.raises(PlatformFault, match=r"acme 3\.2: GraphDriver\.replay raised Device"):
            fast(torch.ones(8, 4))


def test_an_operator_s_own_error_between_graphs_is_nobody_else_s(acme, everything):
    acme.create = everything.Platform
    fail = []

    @torch.library.custom_op("acme_attribution::fussy", mutates_args=())
    def fussy(x: torch.Tensor) -> torch.Tensor:
        if fail:
            raise KeyError("mine")
        return x.clone()

    fussy.register_fake(torch.empty_like)
    config = CONFIG.replace(splitting_ops=("acme_attribution::fussy",))
    fast = pw.compile(lambda x: fussy(x + 1) * 2, config, platform="acme")
    with torch.inference_mode():
        fast.warmup(torch.ones(8, 4))
        fail.append(True)
        with pytest.raises(KeyError, match="mine"):
            fast(torch.ones(8, 4))


def test_a_compilation_that_fails_is_a_failed_compilation_that_names_the_plugin(acme, everything):
    platform = everything.Platform()
    platform.compiler.compile = boom
    acme.create = lambda: platform
    with torch.inference_mode(), pytest.raises(CompileFailed) as caught:
        pw.compile(layers, CONFIG, platform="acme")(torch.ones(2, 4))
    assert "raised RuntimeError: boom (acme 3.2: CompilerAdaptor.compile)" in str(caught.value)
    assert isinstance(caught.value.__cause__, RuntimeError)


# One stand-in alone ---------------------------------------------------------------


@pytest.fixture
def stand_in(acme, everything):
    """The stand-in for a platform of acme's, and the platform."""
    platform = everything.Platform()
    acme.create = lambda: platform
    return attributed(select("acme")), platform


@pytest.mark.parametrize(
    ("part", "name", "result", "arguments"),
    [
        ("compiler", "compile", None, (None, [])),
        ("compiler", "compile", CompiledGraph(None), (None, [])),
        ("compiler", "compile", CompiledGraph(print, b"bytes"), (None, [])),
        ("compiler", "load", lambda: None, (b"",)),
        ("compiler", "hash_factors", "flags", ()),
        ("compiler", "passes", [3], ()),
        ("compiler", "passes", None, ()),
        ("device", "stream", None, (None,)),
        ("device", "memory_info", 12, ()),
        ("device", "memory_info", (1.5, "all"), ()),
        ("device", "memory_stats", 12, ()),
        ("device", "elapsed", None, (print,)),
        ("graphs", "capture_context", None, ()),
        ("graphs", "unsafe_ops", "aten::nonzero", ()),
        ("graphs", "unsafe_ops", [None], ()),
        ("graphs", "resource_budget", "many", (None,)),
        ("graphs", "pool_bytes", None, (None,)),
        ("graphs", "live_bytes", True, (None,)),
        ("graphs", "replayer", None, (None,)),
        ("graphs", "stager", 7, ((),)),
    ],
)
def test_a_result_that_is_not_what_was_promised_is_named(stand_in, part, name, result, arguments):
    stand, platform = stand_in
    setattr(getattr(platform, part), name, lambda *args, **kwargs: result)
    with pytest.raises(PlatformFault, match=rf"acme 3\.2: \w+\.{name} raised") as caught:
        getattr(getattr(stand, part), name)(*arguments)
    assert caught.value.by == "acme 3.2"
    assert caught.value.method.endswith(f".{name}")


def test_none_is_a_budget_and_a_stager(stand_in):
    stand, platform = stand_in
    platform.graphs.resource_budget = platform.graphs.stager = lambda given: None
    assert stand.graphs.resource_budget(None) is None
    assert stand.graphs.stager([]) is None


def test_an_iterable_that_raises_half_way_is_named(stand_in):
    stand, platform = stand_in

    def ops():
        yield "aten::nonzero"
        raise RuntimeError("boom")

    platform.graphs.unsafe_ops = platform.compiler.passes = ops
    with pytest.raises(PlatformFault, match=r"GraphDriver\.unsafe_ops raised RuntimeError: boom"):
        stand.graphs.unsafe_ops()
    with pytest.raises(PlatformFault, match=r"CompilerAdaptor\.passes raised RuntimeError: boom"):
        stand.compiler.passes()


def test_a_pass_that_raises_is_named(stand_in):
    stand, platform = stand_in
    platform.compiler.passes = lambda: [boom]
    with pytest.raises(PlatformFault, match=r"acme 3\.2: a pass of CompilerAdaptor\.passes raised"):
        stand.compiler.passes()[0](None)


@pytest.mark.parametrize("side", ["enter", "exit"])
def test_a_context_s_own_errors_are_named_and_those_of_its_block_are_not(stand_in, side):
    stand, platform = stand_in

    @contextlib.contextmanager
    def context(stream):
        if side == "enter":
            raise RuntimeError("boom")
        yield stream
        raise RuntimeError("boom")

    platform.device.stream = context
    with (
        pytest.raises(PlatformFault, match=r"DeviceRuntime\.stream raised"),
        stand.device.stream(0),
    ):
        pass
    platform.device.stream = lambda stream: contextlib.nullcontext(stream)
    with pytest.raises(ZeroDivisionError), stand.device.stream(0):
        _ = 1 / 0


@pytest.mark.parametrize("error", [pw.errors.ConfigError("no"), KeyboardInterrupt()])
def test_piecewise_s_own_errors_and_ctrl_c_pass_as_they_are(stand_in, error):
    stand, platform = stand_in

    def refuse(options):
        raise error

    platform.compiler.configure = refuse
    with pytest.raises(type(error)) as caught:
        stand.compiler.configure({})
    assert caught.value is error


def test_a_stand_in_has_what_its_part_has_and_nothing_else(stand_in):
    stand, platform = stand_in
    assert stand.graphs.live_graphs == platform.graphs.live_graphs
    assert stand.compiler.name == "portable"
    assert stand.name == "simulated"
    assert stand.self_check() == {"board": "simulated"}
    assert not hasattr(stand.graphs, "no_such_method")
    assert stand.graphs.of is platform.graphs
    assert "acme 3.2" in repr(stand.device)
    assert copy.copy(stand.device).of is platform.device


def test_a_method_has_one_stand_in_until_its_part_has_another(stand_in):
    stand, platform = stand_in
    first = stand.graphs.new_graph
    assert stand.graphs.new_graph is first
    platform.graphs.new_graph = lambda: "another"
    assert stand.graphs.new_graph() == "another"
    del platform.graphs.new_graph
    assert stand.graphs.new_graph() != "another"


def test_what_was_raised_is_told_with_its_author_once(stand_in):
    stand, platform = stand_in
    platform.device.synchronize = boom
    with pytest.raises(PlatformFault) as caught:
        stand.device.synchronize()
    assert error_text(caught.value) == "RuntimeError: boom (acme 3.2: DeviceRuntime.synchronize)"
    assert error_text(raised(caught.value)) == "RuntimeError: boom"
    assert raised(KeyError) is KeyError
