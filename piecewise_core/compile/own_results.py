"""Results that a program copied of an input that it wrote to stay copies.

Inductor takes a copy for nothing where source and copy are equal; where it then writes the source
into the input, it returns the input itself, and the next call changes what the caller holds. A
clone that such a write reads from would be changed while it is read.
"""

from __future__ import annotations

from typing import Any

import torch

from piecewise_core.torch_compat.operators import schema_name, schema_or_none
from piecewise_core.torch_compat.storages import storage_key

__all__ = ["keep_copies"]

_COPIES = ("aten::clone", "aten::_to_copy", "aten::repeat", "aten::cat")


def keep_copies(graph: torch.fx.Graph) -> bool:
    """Make every such copy, in a graph of ATen operators, by one that is not taken for nothing."""
    taken = {_memory(node) for node in graph.find_nodes(op="placeholder")}
    written = {_memory(arg) for node in graph.nodes for arg in _written(node)} & taken - {None}
    if not written:
        return False
    returned = {_memory(node) for node in graph.output_node().all_input_nodes} - taken
    changed = False
    for node in list(graph.nodes):
        if _memory(node) not in returned and schema_name(node.target) not in _COPIES:
            continue
        returned.discard(_memory(node))  # those behind are views of it
        if any(_memory(arg) in written and _alike(arg, node) for arg in node.all_input_nodes):
            with graph.inserting_after(node):
                copy = graph.call_function(torch.ops.aten.flip.default, (node, []))
            copy.meta = dict(node.meta)
            node.replace_all_uses_with(copy, delete_user_cb=lambda user, own=copy: user is not own)
            changed = True
    return changed


def _memory(node: torch.fx.Node) -> Any:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return None
    return storage_key(value.untyped_storage())


def _written(node: torch.fx.Node) -> list[torch.fx.Node]:
    """What an operator writes to."""
    schema = schema_or_none(node.target)
    if schema is None or not schema.is_mutable:
        return []
    named = zip(schema.arguments, node.args, strict=False)
    given = [value for argument, value in named if argument.is_write]
    given += [node.kwargs[a.name] for a in schema.arguments if a.is_write and a.name in node.kwargs]
    return [value for value in given if isinstance(value, torch.fx.Node)]


def _alike(source: torch.fx.Node, node: torch.fx.Node) -> bool:
    a, b = source.meta.get("val"), node.meta.get("val")
    if not isinstance(a, torch.Tensor) or not isinstance(b, torch.Tensor):
        return False
    return a.dtype == b.dtype and str(a.shape) == str(b.shape)  # asks symbols nothing
