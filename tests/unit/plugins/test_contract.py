from __future__ import annotations

from types import SimpleNamespace

import pytest

from piecewise_core.errors import PluginError
from piecewise_core.plugins.contract import check_compiler, check_platform
from piecewise_core.protocols import Capabilities


def refused(platform) -> str:
    with pytest.raises(PluginError) as caught:
        check_platform(platform, "acme 3.2")
    assert str(caught.value).startswith("acme 3.2: ")
    return str(caught.value)


def test_a_platform_that_keeps_the_contract_is_accepted(platform):
    check_platform(platform, "acme 3.2")
    platform.graphs = None
    check_platform(platform, "acme 3.2")


@pytest.mark.parametrize("name", ["device", "graphs", "compiler", "capabilities"])
def test_a_missing_attribute_is_named(platform, name):
    delattr(platform, name)
    assert f"Platform.{name} is missing" in refused(platform)


def test_a_missing_method_is_named_with_its_parameters(platform):
    platform.device = SimpleNamespace(current_stream=print, new_stream=print, stream=print)
    assert "DeviceRuntime.synchronize() is missing" in refused(platform)


def test_every_difference_is_printed(platform):
    platform.device = SimpleNamespace()
    platform.compiler = SimpleNamespace(name="acme", compile=None)
    message = refused(platform)
    for name in ("current_stream", "new_stream", "stream", "synchronize", "hash_factors"):
        assert f".{name}(" in message
    assert "CompilerAdaptor.compile is None, not a method" in message


@pytest.mark.parametrize(
    ("method", "shown"),
    [
        (lambda graph, pool: None, "(graph, pool)"),
        (lambda graph, pool, stream, mode: None, "(graph, pool, stream, mode)"),
        (lambda graph, *, pool, stream: None, "(graph, *, pool, stream)"),
    ],
)
def test_parameters_that_core_cannot_call_are_shown_beside_those_it_needs(platform, method, shown):
    platform.graphs.capture_begin = method
    message = refused(platform)
    assert f"capture_begin must accept (graph, pool, stream), takes {shown}" in message


@pytest.mark.parametrize(
    "method",
    [
        lambda g, p, s: None,
        lambda graph, pool, stream, mode="global": None,
        lambda *args: None,
        max,
    ],
)
def test_parameters_may_have_other_names_more_defaults_or_be_a_builtin_s(platform, method):
    platform.graphs.capture_begin = method
    check_platform(platform, "acme 3.2")


def test_a_keyword_argument_must_be_accepted_by_its_name(platform):
    platform.compiler.compile = lambda graph, example_inputs, *, name, config: None
    assert "compile must accept (graph, example_inputs, *, key, config)" in refused(platform)
    platform.compiler.compile = lambda graph, example_inputs, **options: None
    check_platform(platform, "acme 3.2")


@pytest.mark.parametrize(
    ("part", "method", "wrong"),
    [
        ("device", "memory_info", lambda device: None),
        ("compiler", "load", lambda: None),
        ("graphs", "explain", lambda: None),
        ("graphs", "unsafe_ops", ("aten::nonzero",)),
    ],
)
def test_an_optional_method_may_be_absent_but_not_wrong(platform, part, method, wrong):
    setattr(getattr(platform, part), method, wrong)
    assert f".{method} " in refused(platform)


def test_an_attribute_that_raises_is_a_difference_and_not_a_crash(platform):
    class Lazy:
        graphs = None
        compiler = platform.compiler
        capabilities = platform.capabilities

        @property
        def device(self):
            raise OSError("no driver")

    assert "Platform.device is a property that raises OSError: no driver" in refused(Lazy())


def test_capabilities_must_be_capabilities(platform):
    platform.capabilities = {"alignment": 16}
    assert "capabilities is {'alignment': 16}, not a Capabilities" in refused(platform)


def test_a_compiler_is_checked_alone_too(platform):
    check_compiler(platform.compiler, "acme 3.2")
    platform.compiler.name = None
    with pytest.raises(PluginError, match=r"(?s)acme 3\.2: .*name is None, not a string"):
        check_compiler(platform.compiler, "acme 3.2")
    assert "name is None" in refused(platform)


@pytest.mark.parametrize(
    ("part", "name", "meant"),
    [
        ("graphs", "registr_generator", "register_generator"),
        ("graphs", "weakref", "weak_ref"),
        ("graphs", "unsafe_op", "unsafe_ops"),
        ("graphs", "before_reply", "before_replay"),
        ("device", "memory_inf", "memory_info"),
        ("device", "emptycache", "empty_cache"),
        ("compiler", "loads", "load"),
        ("compiler", "configur", "configure"),
    ],
)
def test_an_optional_method_that_is_misspelt_is_named_with_the_nearest(platform, part, name, meant):
    setattr(getattr(platform, part), name, lambda *args: None)
    message = refused(platform)
    assert f".{name} is not a method that core calls; did you mean {meant}?" in message


def test_a_misspelt_self_check_is_named(platform):
    platform.selfcheck = dict
    assert "Platform.selfcheck is not a method that core calls; did you mean self_check?" in (
        refused(platform)
    )


@pytest.mark.parametrize(
    "name", ["memory_used", "live_graphs", "replay_all", "_weakref", "synchronize_host", "stats"]
)
def test_a_vendor_s_own_methods_are_nobody_s_business(platform, name):
    for part in (platform.graphs, platform.device, platform.compiler):
        setattr(part, name, lambda *args: None)
    check_platform(platform, "acme 3.2")


def test_a_name_is_not_misspelt_when_the_method_meant_is_there_too(platform):
    platform.compiler.load = platform.compiler.loads = lambda handle: None
    check_platform(platform, "acme 3.2")


@pytest.mark.parametrize(
    ("part", "name", "value", "complaint"),
    [
        (None, "name", 3, "Platform.name is 3, not a string"),
        (None, "device_type", None, "Platform.device_type is None, not a string"),
        ("graphs", "runs_captures", "no", "GraphDriver.runs_captures is 'no', not a bool"),
        (None, "piecewise_backend", 7, "Platform.piecewise_backend is 7, not a class"),
        (None, "piecewise_backend", object, "piecewise_backend must accept (graph, conf"),
        (None, "capabilities", Capabilities(alignment=12), "alignment is 12, not a power of two"),
        (None, "capabilities", Capabilities(symmetric_memory=3), "SymmetricMemory.total"),
        (None, "capabilities", Capabilities(alignment=True), "alignment is True, not a power"),
    ],
)
def test_a_value_of_the_wrong_kind_is_named(platform, part, name, value, complaint):
    setattr(getattr(platform, part) if part else platform, name, value)
    assert complaint in refused(platform)


def test_a_piecewise_backend_must_be_callable(platform):
    class Mute:
        def __init__(self, *args, **kwargs): ...

    platform.piecewise_backend = Mute
    assert "piecewise_backend.__call__(*args) is missing" in refused(platform)
    Mute.__call__ = lambda self, *args: args
    check_platform(platform, "acme 3.2")


@pytest.mark.parametrize("part", ["device", "graphs", "compiler"])
def test_a_half_implemented_protocol_is_refused_with_all_that_is_missing(platform, part):
    whole = type(getattr(platform, part))
    names = sorted(n for n in vars(whole) if n[0] != "_" and callable(getattr(whole, n)))
    half = type("Half", (), {n: vars(whole)[n] for n in names[::2]} | {"name": "half"})
    setattr(platform, part, half())
    message = refused(platform)
    assert [n for n in names if f".{n}(" in message] == names[1::2]
