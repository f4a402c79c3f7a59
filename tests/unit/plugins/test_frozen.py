"""A plugin written against version 1.0 of the contract works with every later 1.x core.

``frozen/api_1_0.py`` is that version, and ``frozen/plugin_1_0.py`` a plugin that spells every
method out. Neither is edited once 1.0 is released: a change that breaks them needs a new major
version, and an addition a new minor one with frozen files of its own.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from dataclasses import MISSING, fields, make_dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

import piecewise_core as pw
from piecewise_core import building_blocks, errors, hookspecs, protocols
from piecewise_core.plugins import all_passes, find_compiler, select
from piecewise_core.plugins.contract import differences
from piecewise_core.protocols import lowering

FROZEN = Path(__file__).parent / "frozen"
PAIRS = {
    "CompilerAdaptor": "CompilerExtras",
    "DeviceRuntime": "RuntimeExtras",
    "GraphDriver": "GraphExtras",
    "Platform": "PlatformExtras",
}
VALUES = ("Probe", "Capabilities", "BudgetContext", "ReplayCall", "PlatformInfo", "CompiledGraph")


def read(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"frozen_{name}", FROZEN / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[spec.name]
    return module


API = read("api_1_0")
API_1_1 = read("api_1_1")


def methods(protocol):
    return {n: m for n, m in vars(protocol).items() if n[0] != "_" and inspect.isfunction(m)}


def broken(now) -> list[str]:
    """How the contract ``now`` breaks what was written against the frozen one."""
    wrong = []
    for required, optional in PAIRS.items():
        old = getattr(API, required), getattr(API, optional)
        attributes = dict.fromkeys(inspect.get_annotations(old[0]))
        plugin = type(required, old, {**attributes, "__init__": lambda self: None})()
        wrong += differences(plugin, getattr(now, required), getattr(now, optional))
        known = {**methods(getattr(now, required)), **methods(getattr(now, optional))}
        wrong += [
            f"{required}.{name} is gone: plugins have it and it is not called any more"
            for protocol in old
            for name in methods(protocol)
            if name not in known
        ]
    for name in VALUES:
        wrong += changed_fields(name, fields(getattr(API, name)), fields(getattr(now, name)))
    old = inspect.signature(API.AbstractPiecewiseBackend.__init__).parameters
    new = inspect.signature(now.AbstractPiecewiseBackend.__init__).parameters
    if list(old) != list(new):
        wrong.append(f"AbstractPiecewiseBackend.__init__ takes {list(new)}, took {list(old)}")
    if now.API_VERSION[0] != API.API_VERSION[0] or now.API_VERSION < API.API_VERSION:
        wrong.append(f"API_VERSION is {now.API_VERSION}, which does not serve {API.API_VERSION}")
    return wrong


def changed_fields(name, old, new):
    wrong = []
    if [f.name for f in new][: len(old)] != [f.name for f in old]:
        wrong.append(f"{name}: fields {[f.name for f in new]} do not begin with the old ones")
    for field in (*new[len(old) :], *[f for f, o in zip(new, old, strict=False) if _has(o)]):
        if not _has(field):
            wrong.append(f"{name}.{field.name} has no default, so plugins cannot leave it out")
    return wrong


def _has(field):
    return field.default is not MISSING or field.default_factory is not MISSING


def test_the_contract_serves_what_was_written_against_the_frozen_one():
    assert broken(protocols) == []
    assert set(API.HOOKS) <= set(vars(hookspecs))
    assert [n for n in API.HOOKS if inspect.signature(getattr(hookspecs, n)).parameters] == []


def test_all_of_the_contract_is_frozen():
    """What 1.0 leaves out when it is released would be free to change."""
    for pair in PAIRS.items():
        for name in pair:
            added = API_1_1.METHODS.get(name, {}).keys()
            frozen = methods(getattr(API, name)).keys() | added
            assert methods(getattr(protocols, name)).keys() <= frozen
    for name in VALUES:
        added = API_1_1.FIELDS.get(name, ())
        frozen = (*[f.name for f in fields(getattr(API, name))], *added)
        assert tuple(f.name for f in fields(getattr(protocols, name))) == frozen


def test_what_1_1_added_is_there_and_all_of_it_is_frozen():
    assert protocols.API_VERSION == API_1_1.API_VERSION
    old, new = API_1_1.Rewrite, protocols.Rewrite
    assert list(inspect.get_annotations(old)) == list(inspect.get_annotations(new))
    plugin = type("Rewrite", (old,), dict.fromkeys(inspect.get_annotations(old)))()
    assert methods(new).keys() == methods(old).keys()
    assert differences(plugin, new, object) == []
    for name, gained in API_1_1.METHODS.items():
        found = methods(getattr(protocols, name))
        assert {m: list(inspect.signature(found[m]).parameters) for m in gained} == gained
    for name, arguments in API_1_1.HOOKS.items():
        assert list(inspect.signature(getattr(hookspecs, name)).parameters) == arguments
    hooks = {n for n in vars(hookspecs) if n.startswith("piecewise_")}
    assert hooks == {*API.HOOKS, *API_1_1.HOOKS}
    for name, names in API_1_1.LOWERING.items():
        assert tuple(f.name for f in fields(getattr(lowering, name))) == names
    assert list(inspect.signature(lowering.lower).parameters) == ["graph", "example_inputs"]
    assert set(API_1_1.ERRORS) <= set(errors.__all__)
    assert tuple(building_blocks.__all__) == API_1_1.BUILDING_BLOCKS


def today(**others):
    """The contract of today, with something in place of parts of it."""
    return SimpleNamespace(**{**{n: getattr(protocols, n) for n in protocols.__all__}, **others})


def changed(name, **members):
    """The contract of today with one class changed; None takes a member away."""
    kept = {n: m for n, m in vars(getattr(protocols, name)).items() if n not in _OF_A_CLASS}
    return today(**{name: type(name, (), {n: m for n, m in {**kept, **members}.items() if m})})


_OF_A_CLASS = ("__dict__", "__weakref__")


@pytest.mark.parametrize(
    ("name", "members", "complaint"),
    [
        ("GraphDriver", {"warm": lambda self: None}, "GraphDriver.warm() is missing"),
        ("GraphDriver", {"replay": lambda self, graph, stream: None}, "GraphDriver.replay must"),
        ("GraphDriver", {"reset": None}, "GraphDriver.reset is gone"),
        ("GraphExtras", {"weak_ref": None}, "GraphDriver.weak_ref is gone"),
        ("GraphExtras", {"stager": lambda self, a, b: None}, "GraphDriver.stager must accept"),
        ("RuntimeExtras", {"rng": lambda self, index: None}, "DeviceRuntime.rng must accept"),
        (
            "CompilerAdaptor",
            {"compile": lambda self, graph, example_inputs, *, key, config, box: None},
            "CompilerAdaptor.compile must accept",
        ),
        ("PlatformExtras", {"self_check": None}, "Platform.self_check is gone"),
        ("Platform", {"__annotations__": {"name": "str"}}, "Platform.name is missing"),
    ],
)
def test_a_change_that_breaks_old_plugins_is_named(name, members, complaint):
    wrong = broken(changed(name, **members))
    assert len(wrong) == 1
    assert complaint in wrong[0]


def test_an_optional_addition_breaks_nothing():
    assert broken(changed("GraphExtras", warm=lambda self: None)) == []


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["available", "why"], "do not begin with the old ones"),
        (["available", "reason", "facts", "unit"], "Probe.unit has no default"),
    ],
)
def test_a_value_may_gain_fields_with_defaults_and_nothing_else(names, complaint):
    wrong = broken(today(Probe=make_dataclass("Probe", names)))
    assert any(complaint in text for text in wrong), wrong


def test_another_major_version_is_another_contract():
    (wrong,) = broken(today(API_VERSION=(2, 0)))
    assert "does not serve (1, 0)" in wrong


# The plugin -----------------------------------------------------------------------


@pytest.fixture
def plugin(site):
    site.install("frozen", "1.0", entry="frozen", source=(FROZEN / "plugin_1_0.py").read_text())


def layers(x):
    x = torch.nn.functional.layer_norm(torch.relu(x) + 1, (4,))
    return x * 2


CONFIG = pw.Config(
    dynamic={"x": {0: pw.Dim("rows", min=1, max=8)}},
    splitting_ops=("torch.nn.functional.layer_norm",),
    capture_sizes=(4, 8),
    padding="capture_sizes",
)


@pytest.mark.usefixtures("plugin")
@pytest.mark.parametrize("name", ["frozen", "frozen-backend"])
def test_the_frozen_plugin_serves_a_model_from_set_up_to_release(name, tmp_path):
    fast = pw.compile(layers, CONFIG, platform=name)
    with torch.inference_mode():
        report = fast.warmup(torch.ones(3, 4))
        assert report.dropped == ()
        for rows in (8, 3, 4):
            x = torch.randn(rows, 4)
            assert torch.equal(fast(x), layers(x))
        assert len(fast.dump_graphs(tmp_path)) == fast.stats().captures == 4
        driver = fast._pw_session.setup.platform.graphs.of
        # The first padded calls are replayed twice more, to compare them with unpadded ones.
        assert [sizes for _, sizes, _ in driver.calls[::2]] == [(8,), (3,), (3,), (3,), (4,)]
        fast.release()
        assert torch.equal(fast(x), layers(x))


@pytest.mark.usefixtures("plugin")
def test_the_frozen_plugin_s_other_hooks_serve_too():
    assert select("frozen").info.api_version == API.API_VERSION
    assert find_compiler("frozen").hash_factors() == {"frozen": "1.0"}
    assert len(all_passes()) == 1
