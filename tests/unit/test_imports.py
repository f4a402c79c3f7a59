"""Imports go one way, type-checking ones too: a stage imports only stages to its left."""

from __future__ import annotations

import ast
import pkgutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = "piecewise_core"
ROOT = Path(__file__).parents[2] / PACKAGE
FACE = "__init__"

ORDER: tuple[tuple[str, ...], ...] = (
    ("errors",),
    ("ranges_bits",),
    ("ranges",),
    ("targets",),
    ("table",),
    ("afterfork", "interpreter", "ownership"),
    ("tally", "events"),
    ("config", "counters"),
    ("planner",),
    ("protocols",),
    ("hookspecs",),
    ("plugins",),
    ("torch_compat",),
    ("graph",),
    ("ranks",),
    ("rewrites",),
    ("store",),
    ("compile",),
    ("capture",),
    ("replay",),
    ("building_blocks",),
    ("runtime",),
    ("backend",),
    ("frontend",),
    ("bundle",),
    ("compiled",),
    ("compiled_module",),
    ("api",),
    (FACE,),
    ("testing", "entry", "integrations", "metrics"),
    ("cli",),
)
"""Top-level modules from left to right; those in one group do not import each other."""

RANK = {unit: rank for rank, group in enumerate(ORDER) for unit in group}

LIGHT = (
    "errors",
    "ranges_bits",
    "ranges",
    "targets",
    "table",
    "afterfork",
    "interpreter",
    "ownership",
    "tally",
    "events",
    "config",
    "counters",
    "planner",
    "protocols",
    "hookspecs",
    "plugins",
    "building_blocks",
)
"""What must import neither torch nor a plugin, so that a plugin module may import it freely."""


@dataclass(frozen=True)
class Arrow:
    """One import: ``where`` it stands, in which dotted ``module``, of which dotted ``target``."""

    where: str
    module: str
    target: str

    @property
    def source(self) -> str:
        """The top-level module that it stands in."""
        return unit_of(self.module)


def unit_of(dotted: str) -> str:
    """The top-level module that ``piecewise_core.x.y`` belongs to; config and config_* are one."""
    parts = dotted.split(".")
    unit = parts[1] if len(parts) > 1 else FACE
    return "config" if unit.startswith("config_") else unit


def arrows(root: Path) -> Iterator[Arrow]:
    """Every import under ``root``, wherever it stands."""
    for path in sorted(root.rglob("*.py")):
        module = _dotted(path, root)
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        shown = path.relative_to(root.parent)
        for node in ast.walk(tree):
            for target in _targets(node, root):
                yield Arrow(f"{shown}:{node.lineno}", module, target)


def wrong(arrow: Arrow) -> str | None:
    """What is wrong with ``arrow``, naming it, or None."""
    top = arrow.target.split(".")[0]
    if top != PACKAGE:
        is_plugin = top.startswith("piecewise_")
        return f"{arrow.where}: core imports the plugin {arrow.target}" if is_plugin else None
    target = unit_of(arrow.target)
    for unit in (arrow.source, target):
        if unit not in RANK:
            return f"{arrow.where}: unknown top-level module {unit!r}: give it a place in the order"
    if target == arrow.source or RANK[target] < RANK[arrow.source]:
        return None
    return f"{arrow.where}: {arrow.source} -> {target} goes the wrong way"


def unplaced(root: Path) -> list[str]:
    """Top-level modules and packages under ``root`` that have no place in the order."""
    units = {
        unit_of(f"{PACKAGE}.{path.stem}")
        for path in root.iterdir()
        if path.suffix == ".py" or any(path.rglob("*.py"))
    }
    return sorted(units - RANK.keys())


def circles(root: Path, found_arrows: Iterable[Arrow]) -> list[str]:
    """One circle of imports for each package under ``root`` whose children have any."""
    modules = {_dotted(path, root) for path in root.rglob("*.py")}
    inside = {(a.module, a.target) for a in found_arrows if a.target in modules}
    found = []
    for package in sorted(_dotted(path, root) for path in root.rglob("__init__.py")):
        children: dict[str, set[str]] = {}
        for names in inside:
            source, target = (_child(name, package) for name in names)
            if source is not None and target is not None and source != target:
                children.setdefault(source, set()).add(target)
        try:
            TopologicalSorter(children).prepare()
        except CycleError as error:
            found.append(" <- ".join(error.args[1]))
    return found


def _child(module: str, package: str) -> str | None:
    """The child of ``package`` that ``module`` is or is in; its face is one; None outside."""
    if module == package:
        return f"{package}.{FACE}"
    inside = module.startswith(f"{package}.")
    return ".".join(module.split(".")[: package.count(".") + 2]) if inside else None


def _dotted(path: Path, root: Path) -> str:
    """The name of the module in file ``path``."""
    return ".".join(path.relative_to(root.parent).with_suffix("").parts).removesuffix(f".{FACE}")


def _targets(node: ast.AST, root: Path) -> list[str]:
    """The dotted names that ``node`` imports, if it is an import."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        if node.level or node.module is None:
            return []  # ruff bans relative imports
        return [_named(node.module, alias.name, root) for alias in node.names]
    if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name, value = ast.unparse(node.func), node.args[0].value
        if name.endswith(("import_module", "__import__")) and isinstance(value, str):
            return [value]
    return []


def _named(package: str, name: str, root: Path) -> str:
    """``from package import name``: a module of ours, or something that ``package`` defines."""
    path = root.parent.joinpath(*package.split("."), name)
    is_module = path.with_suffix(".py").exists() or path.is_dir()
    return f"{package}.{name}" if is_module else package


def write_tree(root: Path, files: dict[str, str]) -> Path:
    package = root / PACKAGE
    for name, text in {"__init__.py": "", **files}.items():
        path = package / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return package


def complaints(found_arrows: Iterable[Arrow]) -> list[str]:
    return [what for what in map(wrong, found_arrows) if what is not None]


@pytest.fixture(scope="module")
def in_core() -> list[Arrow]:
    """Every import in core, for which all of it is parsed once."""
    return list(arrows(ROOT))


def test_every_top_level_module_has_a_place_in_the_order():
    missing = unplaced(ROOT)
    assert not missing, f"{missing}: give it a place in the order (ORDER in {Path(__file__).name})"


def test_every_import_in_core_goes_from_right_to_left(in_core):
    assert in_core, f"no imports found under {ROOT}"
    assert not complaints(in_core), "\n".join(complaints(in_core))


@pytest.mark.parametrize(
    ("file", "text", "complaint"),
    [
        ("errors.py", "from piecewise_core.ranges import Range", "errors -> ranges"),
        ("errors.py", "from piecewise_core import ranges", "errors -> ranges"),
        ("ranges.py", "import piecewise_core.config_io", "ranges -> config"),
        ("ranges.py", "import piecewise_core", "ranges -> __init__"),
        ("ranges.py", "from piecewise_core import Range", "ranges -> __init__"),
        ("config_io.py", "import piecewise_core.counters", "config -> counters"),
        ("graph/split.py", "def f():\n    import piecewise_core.store", "graph -> store"),
        ("graph/split.py", "m = importlib.import_module('piecewise_core.api')", "graph -> api"),
        ("graph/a.py", "if TYPE_CHECKING:\n    from piecewise_core.api import compile", "-> api"),
        ("compile/a.py", "if TYPE_CHECKING:\n    pass\nelse:\n    import piecewise_core.api", "->"),
        ("compile/a.py", "import piecewise_cuda.driver", "core imports the plugin"),
        ("compile/a.py", "import piecewise_core.helpers", "give it a place in the order"),
    ],
)
def test_the_walker_names_a_wrong_arrow(tmp_path, file, text, complaint):
    modules = {f"{name}.py": "" for name in ("ranges", "config_io", "counters", "api")}
    (found,) = complaints(arrows(write_tree(tmp_path, {**modules, file: text})))
    assert complaint in found
    assert found.startswith(f"{PACKAGE}/{file}:")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("config.py", "from piecewise_core import config_io, errors"),
        ("config_io.py", "from piecewise_core.config import Config"),
        ("graph/split.py", "from piecewise_core.graph.names import resolve"),
        ("__init__.py", "from piecewise_core.api import compile"),
        ("cli/main.py", "import torch, piecewise_core"),
    ],
)
def test_the_walker_lets_a_right_arrow_pass(tmp_path, file, text):
    modules = {f"{name}.py": "" for name in ("config", "config_io", "errors", "api")}
    assert complaints(arrows(write_tree(tmp_path, {**modules, file: text}))) == []


def test_no_imports_in_core_go_in_a_circle(in_core):
    found = circles(ROOT, in_core)
    assert not found, "\n".join(found)


TYPES = "if TYPE_CHECKING:\n    "
FACES = {f"{name}/__init__.py": "" for name in ("graph", "graph/saved")}


@pytest.mark.parametrize(
    "files",
    [
        {"a.py": "import piecewise_core.b", "b.py": "from piecewise_core import a"},
        {
            "graph/a.py": "from piecewise_core.graph.b import c",
            "graph/b.py": f"{TYPES}from piecewise_core.graph.a import d",
        },
        {
            "graph/a.py": "from piecewise_core.graph.saved.b import c",
            "graph/d.py": "",
            "graph/saved/b.py": "from piecewise_core.graph.d import e",
            "graph/saved/f.py": "def g():\n    from piecewise_core.graph import a",
        },
        {
            "graph/__init__.py": "from piecewise_core.graph.a import b",
            "graph/a.py": f"{TYPES}from piecewise_core.graph import c",
        },
    ],
)
def test_the_walker_finds_a_circle(tmp_path, files):
    root = write_tree(tmp_path, FACES | files)
    (found,) = circles(root, arrows(root))
    assert " <- " in found


def test_the_walker_lets_what_only_looks_like_a_circle_pass(tmp_path):
    files = {
        "graph/a.py": "from piecewise_core.graph.b import a",
        "graph/b.py": "from piecewise_core.graph.saved import a",
        "graph/saved/a.py": "from piecewise_core.graph.saved.b import a\nimport a",
        "graph/saved/b.py": "from piecewise_core.errors import a",
        "errors.py": "",
    }
    root = write_tree(tmp_path, FACES | files)
    assert circles(root, arrows(root)) == []


def test_a_new_top_level_module_without_a_place_is_found(tmp_path):
    root = write_tree(tmp_path, {"helpers.py": "", "tools/shed.py": "", "config_toml.py": ""})
    assert unplaced(root) == ["helpers", "tools"]


def loaded_by(*modules: str) -> set[str]:
    """The top-level modules that a fresh interpreter holds after importing ``modules``."""
    code = f"import sys, {', '.join(modules)}\nprint('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True
    )
    return {name.split(".")[0] for name in done.stdout.split()}


def unwanted(loaded: set[str]) -> set[str]:
    plugins = {name for name in loaded if name.startswith("piecewise_")} - {PACKAGE}
    return plugins | (loaded & {"torch", "triton", "numpy", "sympy"})


def test_importing_piecewise_core_imports_neither_torch_nor_a_plugin():
    assert unwanted(loaded_by(PACKAGE)) == set()


def test_what_a_plugin_imports_brings_in_neither_torch_nor_a_plugin():
    present = [name for name in LIGHT if _named(PACKAGE, name, ROOT) != PACKAGE]
    light = [f"{PACKAGE}.{name}" for name in present]
    light += [
        found.name
        for name in present
        if (ROOT / name).is_dir()
        for found in pkgutil.walk_packages([str(ROOT / name)], f"{PACKAGE}.{name}.")
    ]
    assert f"{PACKAGE}.errors" in light
    assert unwanted(loaded_by(*light)) == set()


def test_the_subprocess_does_see_what_is_unwanted_when_it_is_imported():
    assert "numpy" in unwanted(loaded_by("numpy"))
