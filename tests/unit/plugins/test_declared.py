"""What a platform may have or lack is asked for in one place."""

from __future__ import annotations

import ast
import inspect
from dataclasses import fields
from functools import partial
from pathlib import Path

import pytest

import piecewise_core
from piecewise_core.plugins import Declared, attributed, declared
from piecewise_core.plugins.selection import select
from piecewise_core.protocols import GraphExtras, RuntimeExtras

ROOT = Path(piecewise_core.__file__).parent
OPTIONAL = {
    name
    for extras in (GraphExtras, RuntimeExtras)
    for name, method in vars(extras).items()
    if inspect.isfunction(method) and not name.startswith("_")
} | {"runs_captures", "operators_only"}
ELSEWHERE = {
    "cli/checkup.py": {"memory_info"},  # of platforms that were not selected
    "plugins/declared.py": set(),
    "capture/torch_runtime.py": {"wait_stream"},  # of torch's streams
}


def asked(source):
    """Optional names of a platform that ``source`` asks for by getattr or hasattr."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and len(node.args) > 1:
            name = node.args[1]
            if node.func.id in ("getattr", "hasattr") and isinstance(name, ast.Constant):
                yield from {name.value} & OPTIONAL


def test_nothing_but_declared_asks_a_platform_what_it_may_lack():
    found = {}
    for path in ROOT.rglob("*.py"):
        where = path.relative_to(ROOT).as_posix()
        names = set(asked(path.read_text(encoding="utf-8"))) - ELSEWHERE.get(where, set())
        if names and not where.startswith("testing/"):
            found[where] = names
    assert found == {}


def test_the_scan_sees_either_way_of_asking():
    assert set(asked('getattr(driver, "dump", None)')) == {"dump"}
    assert set(asked('hasattr(self._driver, "weak_ref")')) == {"weak_ref"}


def test_everything_optional_is_declared():
    assert {field.name for field in fields(Declared)} >= OPTIONAL


def test_what_is_lacking_is_what_the_protocols_say(platform):
    found = declared(platform)
    graph = object()
    assert isinstance(found.replayer(graph), partial)
    assert found.replayer(graph).func == platform.graphs.replay
    assert found.abort_capture == platform.graphs.capture_end
    assert (found.pool_bytes(None), found.driver_bytes(None), found.live_bytes(None)) == (0, 0, 0)
    assert found.resource_budget(None) is None
    assert found.explain(ValueError()) is None
    assert tuple(found.unsafe_ops()) == ()
    assert found.stager(()) is None
    assert (found.stages, found.runs_captures, found.operators_only) == (False, False, False)
    absent = ("weak_ref", "register_generator", "before_replay", "dump", "rng", "memory_info")
    assert [getattr(found, name) for name in absent] == [None] * len(absent)
    with found.capture_context():
        pass


@pytest.mark.parametrize("name", ["dump", "stager", "before_replay"])
def test_what_there_is_names_who_made_it(everything, name):
    platform = attributed(select(everything.Platform()))
    assert getattr(platform.declared, name) is getattr(platform.graphs, name)
    assert platform.declared.by == platform.by


def test_a_platform_without_graphs_declares_none(platform):
    platform.graphs = None
    assert declared(platform).graphs is None
    assert tuple(declared(platform).unsafe_ops()) == ()
