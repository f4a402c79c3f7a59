from __future__ import annotations

from types import SimpleNamespace

import pytest

from piecewise_core.errors import PluginError
from piecewise_core.platforms.contract import check_compiler, check_platform


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
