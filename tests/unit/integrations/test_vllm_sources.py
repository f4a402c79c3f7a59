"""The plugin's sources: how many lines they are, and that they patch nobody."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[3] / "integrations" / "vllm" / "src" / "piecewise_vllm"
LINES = 400
"""Code, docstrings and blank lines."""


def patches(text: str) -> Iterator[str]:
    """Where a module sets or deletes an attribute of something that it imported."""
    tree = ast.parse(text)
    imported = {
        (alias.asname or alias.name).partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load):
            root: ast.AST = node
            while isinstance(root, ast.Attribute | ast.Subscript | ast.Call):
                root = root.func if isinstance(root, ast.Call) else root.value
            if isinstance(root, ast.Name) and root.id in imported:
                yield f"{node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("setattr", "delattr"):
            yield f"{node.lineno}: {ast.unparse(node)}"


def test_the_plugin_is_as_short_as_it_is_to_be():
    texts = [path.read_text(encoding="utf-8") for path in SOURCE.glob("*.py")]
    assert sum(len(text.splitlines()) for text in texts) <= LINES


def test_the_plugin_patches_nothing():
    # A counter of vLLM's, which its own wrapper adds to as well, is no patch.
    counter = "compilation_counter.num_cudagraph_captured"
    found = [
        f"{path.name}:{what}"
        for path in SOURCE.glob("*.py")
        for what in patches(path.read_text(encoding="utf-8"))
        if not what.endswith(counter)
    ]
    assert found == []


def test_patches_are_seen():
    text = "import vllm.a\nfrom vllm import b as c\nvllm.a.f = 1\nc.g().h = 2\ndel c.i\n"
    assert len(list(patches(text + "setattr(d, 'e', 1)\n"))) == 4
    assert list(patches("import os\nos.environ['A'] = '1'\nself.x = 1\n")) == []
