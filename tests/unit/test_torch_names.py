"""Names that are private to torch stand in ``torch_compat`` alone, and a missing one is named."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import torch
import torch.fx

REPO = Path(__file__).parents[2]
ROOM = REPO / "piecewise_core" / "torch_compat"

PYTHONS = frozenset({"_replace", "_asdict", "_fields", "_exit", "_getframe", "_at_fork_reinit"})
"""Private by their look, and public or at least Python's own."""

TRITONS = frozenset({"_active"})
"""Private to Triton, which `piecewise_cuda.triton_private` is made for."""

OURS = frozenset({"_values"})
"""Attributes of ours (``Counters``) that torch's objects have as well."""

TORCHS = frozenset(
    name
    for sample in (
        torch.Tensor,
        torch.UntypedStorage,
        torch.fx.Graph,
        torch.fx.Node,
        torch.ops.aten.add,
        torch.ops.aten.add.Tensor,
    )
    for name in dir(sample)
)
"""Attributes of torch's objects, which ours do not have under the same names."""


def sources() -> list[Path]:
    """Every module of core and of the platforms but those of the room itself."""
    found = [*REPO.glob("piecewise_core/**/*.py"), *REPO.glob("platforms/*/src/**/*.py")]
    return sorted(path for path in found if ROOM not in path.parents)


def is_private(part: str) -> bool:
    return part.startswith("_") and not part.startswith("__")


def is_torchs_own(dotted: str) -> bool:
    """Whether a dotted name is private to torch; names of operators are data, and are not."""
    top, *rest = dotted.split(".")
    return top == "torch" and rest[:1] != ["ops"] and any(map(is_private, rest))


def names_of_ours(trees: Iterable[ast.AST]) -> set[str]:
    """Names that our classes, functions and assignments define."""
    found: set[str] = set()
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            owner = node.value
            found.update({node.attr} if isinstance(owner, ast.Name) and owner.id == "self" else ())
    return found - TORCHS


class Scan(ast.NodeVisitor):
    """Finds private names of torch: imported, reached from a name of torch's, or of an object.

    ``ours``: private attributes that our own objects have. An attribute of ``self`` is ours.
    """

    def __init__(self, ours: set[str]) -> None:
        self.found: list[tuple[int, str]] = []
        self._ours = ours | PYTHONS | OURS | TRITONS
        self._bound: dict[str, str] = {}

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._bind(node, alias.name, alias.asname or alias.name.split(".")[0], alias.asname)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            dotted = f"{node.module}.{alias.name}"
            self._bind(node, dotted, alias.asname or alias.name, dotted)

    def _bind(self, node: ast.AST, dotted: str, name: str, whole: str | None) -> None:
        if dotted.split(".")[0] == "torch":
            self._bound[name] = dotted if whole else name
            self._note(node, dotted)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        dotted = self._dotted(node)
        if dotted is not None:
            self._note(node, dotted)
            return
        own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        if is_private(node.attr) and not own and node.attr not in self._ours:
            self.found.append((node.lineno, f"?.{node.attr}"))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        named = node.func.id if isinstance(node.func, ast.Name) else ""
        if named in ("getattr", "hasattr", "setattr", "delattr"):
            owner, name = self._dotted(node.args[0]), text_of(node.args[1])
            if is_private(name) and name not in self._ours:
                self.found.append((node.lineno, f"{owner or '?'}.{name}"))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and re.fullmatch(r"(torch|_C)(\.\w+)+", node.value):
            self._note(node, node.value if node.value[0] == "t" else f"torch.{node.value}")

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # docstrings may name what they like
            self.generic_visit(node)

    def _dotted(self, node: ast.AST) -> str | None:
        if isinstance(node, ast.Name):
            return self._bound.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._dotted(node.value)
            return owner and f"{owner}.{node.attr}"
        return None

    def _note(self, node: ast.AST, dotted: str) -> None:
        if is_torchs_own(dotted):
            self.found.append((getattr(node, "lineno", 0), dotted))


def text_of(node: ast.AST) -> str:
    """A string as far as it is known: ``f"_{device}_x"`` is ``_*_x``."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(v.value if isinstance(v, ast.Constant) else "*" for v in node.values)
    return ""


def scan(tree: ast.AST, ours: set[str]) -> list[tuple[int, str]]:
    visitor = Scan(ours)
    visitor.visit(tree)
    return visitor.found


def private_names() -> Iterator[tuple[str, int, str]]:
    """(module, line, name) of every private name of torch outside of the room."""
    trees = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sources()}
    ours = names_of_ours(trees.values())
    for path, tree in trees.items():
        for line, name in scan(tree, ours):
            yield path.relative_to(REPO).as_posix(), line, name


def test_no_module_but_those_of_torch_compat_names_what_is_private_to_torch():
    found = [f"{path}:{line}: {name}" for path, line, name in private_names()]
    assert not found, "\n".join(["put these into piecewise_core/torch_compat:", *found])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("import torch._dynamo", "torch._dynamo"),
        ("import torch._dynamo as dynamo", "torch._dynamo"),
        ("from torch._guards import tracing", "torch._guards.tracing"),
        ("from torch.fx import _pytree", "torch.fx._pytree"),
        ("def f():\n    import torch._inductor.config", "torch._inductor.config"),
        ("import torch\ntorch._C._x()", "torch._C._x"),
        ("import torch as t\nt.compiler._flag = 1", "torch.compiler._flag"),
        ("from torch import fx\nfx.graph._x", "torch.fx.graph._x"),
        ("import torch\ngetattr(torch._C, '_x', None)", "torch._C._x"),
        ("import torch\ngetattr(torch.compiler, '_flag')", "torch.compiler._flag"),
        ("import torch\ngetattr(torch.x, f'_{d}_y')", "torch.x._*_y"),
        ("sys.modules['torch._inductor.config']", "torch._inductor.config"),
        ("_function('_C._get')", "torch._C._get"),
        ("graph._codegen", "?._codegen"),
        ("hasattr(graph, '_codegen')", "?._codegen"),
        ("tensor.untyped_storage()._cdata", "?._cdata"),
    ],
)
def test_the_scan_finds_a_private_name(text, name):
    assert name in [found for _, found in scan(ast.parse(text), {"_ours"})]


@pytest.mark.parametrize(
    "text",
    [
        "import torch\ntorch.ops.aten._softmax(x)",
        "import torch\ntorch.fx.Graph.__init__",
        "'''Of torch._dynamo.'''",
        "self._codegen",
        "other._ours",
        "getattr(other, '_ours')",
        "point._replace(x=1)",
        "from ours import _x",
    ],
)
def test_the_scan_lets_what_is_public_or_ours_pass(text):
    assert scan(ast.parse(text), {"_ours"}) == []
