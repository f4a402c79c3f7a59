"""The wheels of platforms use what any vendor may use of core, and nothing else."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from piecewise_core import building_blocks

PLATFORMS = Path(__file__).parents[2] / "platforms"

PUBLIC = ("protocols", "hookspecs", "errors", "building_blocks")


def foreign_imports(text: str) -> Iterator[str]:
    """What ``text`` imports of core that is not for plugins."""
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names = [a.value for a in node.args if isinstance(a, ast.Constant)]
        for name in names:
            core, _, inside = name.partition(".")
            if core == "piecewise_core" and not _is_public(inside):
                yield name


def _is_public(inside: str) -> bool:
    module, _, name = inside.partition(".")
    if inside == "config.Config":
        return True
    if module == "building_blocks":
        return name in building_blocks.__all__
    return module in PUBLIC and "." not in name


@pytest.mark.parametrize("name", ["cpu", "cuda", "rocm"])
def test_a_platform_s_wheel_imports_nothing_of_core_but_what_is_for_plugins(name: str) -> None:
    sources = list((PLATFORMS / name / "src").rglob("*.py"))
    assert sources
    found = {p.name: list(foreign_imports(p.read_text(encoding="utf-8"))) for p in sources}
    assert {where: what for where, what in found.items() if what} == {}


@pytest.mark.parametrize(
    "text",
    [
        "import piecewise_core",
        "import piecewise_core.capture.torch_driver",
        "from piecewise_core.config import ConfigWarning",
        "from piecewise_core import graph",
        "def f():\n    from piecewise_core.compile.eager import EagerCompiler",
        "importlib.import_module('piecewise_core.store')",
        "from piecewise_core.building_blocks import _HOMES",
    ],
)
def test_an_import_of_anything_else_is_found(text: str) -> None:
    assert len(list(foreign_imports(text))) == 1


@pytest.mark.parametrize("name", building_blocks.__all__)
def test_a_building_block_is_what_core_itself_uses(name: str) -> None:
    home = importlib.import_module(f"piecewise_core.{building_blocks._HOMES[name]}")
    assert getattr(building_blocks, name) is getattr(home, name, home)


def test_what_is_no_building_block_is_said_so() -> None:
    assert building_blocks._HOMES.keys() == set(dir(building_blocks))
    with pytest.raises(AttributeError, match="has no attribute 'Maker'"):
        building_blocks.Maker  # noqa: B018


def test_taking_torch_build_imports_no_torch() -> None:
    code = "from piecewise_core.building_blocks import torch_build\nimport sys\n"
    code += "assert not {'torch', 'piecewise_core.capture'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
