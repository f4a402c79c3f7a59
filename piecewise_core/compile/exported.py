"""A lowered piece as torch.export has programs: what ``Lowered.exported`` gives."""

from __future__ import annotations

from typing import Any

import torch
from torch.export import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export import graph_signature as signs

from piecewise_core.torch_compat import pytree

__all__ = ["exported"]


def exported(graph: torch.fx.GraphModule) -> ExportedProgram:
    """``graph``, functional and in ATen operators, as a program over its own sizes.

    A size that is one number, which nothing reads, is none of its inputs.
    """
    for node in graph.graph.find_nodes(op="placeholder"):
        if type(node.meta["val"]) is int:
            graph.graph.erase_node(node)
    graph.recompile()
    inputs = graph.graph.find_nodes(op="placeholder")
    results: Any = graph.graph.output_node().args[0]
    signature = signs.ExportGraphSignature(
        [signs.InputSpec(signs.InputKind.USER_INPUT, _argument(node), None) for node in inputs],
        [signs.OutputSpec(signs.OutputKind.USER_OUTPUT, _argument(node), None) for node in results],
    )
    given: Any = (tuple(node.meta["val"] for node in inputs), {})
    taken, made = (pytree.tree_flatten(tree)[1] for tree in (given, [0] * len(results)))
    calls = [ModuleCallEntry("", ModuleCallSignature([], [], taken, made))]
    return ExportedProgram(graph, graph.graph, signature, {}, {}, calls, example_inputs=given)


def _argument(node: torch.fx.Node) -> Any:
    kind = signs.TensorArgument if torch.is_tensor(node.meta["val"]) else signs.SymIntArgument
    return kind(node.name)
