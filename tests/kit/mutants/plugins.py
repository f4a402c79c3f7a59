"""L0: plugins that do at import, in a probe or in create() what they must not."""

from __future__ import annotations

import importlib
import itertools
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from mutants.base import Mutant

__all__ = ["PLUGINS", "installed"]

_PLUGIN = """
import os, sys
from piecewise_core.hookspecs import hookimpl
from piecewise_core.protocols import Capabilities, CompiledGraph, NoStreams, PlatformInfo, Probe

class Compiler:
    name = "mutant"
    def compile(self, graph, example_inputs, *, key, config): return CompiledGraph(graph.forward)
    def hash_factors(self): return {{}}

{compiler}

class Mutated:
    device, graphs, compiler, capabilities = NoStreams(), None, Compiler(), Capabilities()

PROBES = []

def probe():
    PROBES.append(os.getpid())
    return Probe({available}, {reason})

def create():
    {create}
    return Mutated()

@hookimpl
def piecewise_platforms():
    {hook}
    yield PlatformInfo({name!r}, "cpu", {api}, probe, create)

{top}
"""

_NUMBERS = itertools.count()


@contextmanager
def installed(
    *,
    top: str = "",
    available: str = "False",
    reason: str = "'no such board'",
    create: str = "pass",
    hook: str = "pass",
    api: str = "(1, 0)",
    entry: str = "mutant",
    name: str = "mutant",
    module: str | None = None,
    compiler: str = "",
) -> Iterator[str]:
    """A distribution with an entry point, on the path for as long as the context lasts."""
    stem = f"piecewise_mutant_{next(_NUMBERS)}"
    source = _PLUGIN.format(
        top=top,
        available=available,
        reason=reason,
        create=create,
        hook=hook,
        api=api,
        name=name,
        compiler=compiler,
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, f"{stem}.py").write_text(source, encoding="utf-8")
        info = Path(folder, "piecewise_mutant-1.0.dist-info")
        info.mkdir()
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: piecewise-mutant\nVersion: 1.0\n"
        )
        (info / "entry_points.txt").write_text(f"[piecewise]\n{entry} = {module or stem}\n")
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
        try:
            yield name
        finally:
            sys.path.remove(folder)
            sys.modules.pop(stem, None)
            os.environ.pop("MUTANT", None)


def _plugin(what: str, fails: str, **changes: str) -> Mutant:
    return Mutant(what, fails, partial(installed, **changes), level="L0")


_TABLE = """
class Compiler(Compiler):
    made = {}

    def compile(self, graph, example_inputs, *, key, config):
        handle = str(len(self.made)).encode()
        self.made[handle] = graph.forward
        return self.load(handle)

    def load(self, handle):
        return CompiledGraph(self.made[handle], lambda: handle)
"""

_BOUND = "assert PROBES[-1:] in ([], [os.getpid()]), 'initialised in another process'"

PLUGINS = (
    _plugin(
        "an entry point to a missing module",
        "test_the_platform_is_found",
        module="piecewise_mutant_gone",
    ),
    _plugin("a hook that raises", "test_the_platform_is_found", hook="raise OSError('no board')"),
    _plugin(
        "an entry point that is not called as its platform",
        "test_the_entry_point_has_the_platform_s_name",
        entry="board",
    ),
    _plugin("a plugin that imports torch", "test_nothing_heavy_is_imported", top="import torch"),
    _plugin(
        "a plugin that prints when imported",
        "test_importing_it_prints_nothing",
        top="print('hello')",
    ),
    _plugin(
        "a plugin that sets a variable when imported",
        "test_importing_it_changes_nothing",
        top="os.environ['MUTANT'] = '1'",
    ),
    _plugin(
        "a plugin written for a later API",
        "test_the_api_version_is_served",
        api="(1, 99)",
    ),
    _plugin("a probe without a reason", "test_the_probe_answers", reason="''"),
    _plugin("a probe that raises", "test_the_probe_answers", reason="1 / 0"),
    _plugin(
        "a probe that finds the device every other time",
        "test_the_probe_gives_the_same_answer_twice",
        available="len(PROBES) % 2 == 1",
        reason="'every other time'",
    ),
    _plugin(
        "create() that fails where the device is",
        "test_what_create_gives_keeps_the_protocols",
        available="True",
        create="raise OSError('the board is on fire')",
    ),
    _plugin(
        "create() that gives something else",
        "test_what_create_gives_keeps_the_protocols",
        available="True",
        create="return object()",
    ),
    _plugin(
        "a probe that initialises the device",
        "test_the_probe_initialises_no_device",
        available="True",
        reason="'one board'",
        create=_BOUND,
    ),
    _plugin(
        "create() that ends the process",
        "test_missing_hardware_is_a_clear_error",
        create="sys.exit(3)",
    ),
    _plugin(
        "create() whose error says nothing",
        "test_missing_hardware_is_a_clear_error",
        create="raise RuntimeError",
    ),
    _plugin(
        "a probe with another reason every time",
        "test_selecting_it_by_name_works_or_says_why",
        reason="f'no board, try {len(PROBES)}'",
    ),
    Mutant(
        "code that is kept as a place in a table of the process",
        "test_kept_code_serves_another_process",
        partial(installed, available="True", reason="'one board'", compiler=_TABLE),
        level="L1",
    ),
)
