"""What OpenVINO's CPU device would compute otherwise than torch, without a word: left to torch."""

import sys

import torch

from piecewise_core.building_blocks import pytree
from piecewise_core.errors import PieceDeclined

TYPES = {torch.float32, torch.int64, torch.int32, torch.bool}
"""Others are computed as one of these: float64 as float32."""

MOVES = {
    *("alias", "clone", "expand", "permute", "select", "slice", "squeeze", "t", "transpose"),
    *("unsqueeze", "view", "_unsafe_view", "cat", "where", "gather", "index", "index_select"),
    *("arange", "full", "ones", "ones_like", "scalar_tensor", "zeros", "zeros_like"),
    *("new_full", "new_ones", "new_zeros", "argmax", "argmin"),
}
"""Operators whose whole numbers are among those that they are given, or are places."""


def check(graph):
    """Raise PieceDeclined where a piece needs what is not computed as torch does."""
    of_sizes = set()  # whole numbers made of sizes alone
    for node in graph.graph.nodes:
        kinds = {getattr(v, "dtype", None) for v in pytree.tree_leaves(node.meta.get("val"))}
        whole = kinds & {torch.int64, torch.int32}
        if kinds - TYPES - {None}:
            raise PieceDeclined(f"{node} is of {kinds - TYPES - {None}}, computed as another dtype")
        data = node.op == "get_attr" or (node.op == "placeholder" and kinds - {None})
        if not data and of_sizes.issuperset(node.all_input_nodes):
            of_sizes.add(node)
        if not hasattr(node.target, "tags"):
            continue
        name = node.target.__name__.partition(".")[0]
        exact = "attention" in name and not any(node.args[3:4])  # no dropout, whatever its tag says
        if torch.Tag.nondeterministic_seeded in node.target.tags and not exact:
            raise PieceDeclined(f"{name} draws from another generator than torch's")
        large = [a for a in node.args if type(a) is int and 2**31 <= abs(a) < sys.maxsize]
        if large or (whole and name not in MOVES and not (node in of_sizes and name == "add")):
            raise PieceDeclined(f"{name} of whole numbers is computed in 32 bits")


def fits(tensor):
    """Whether each of these whole numbers has 32 bits."""
    return bool((tensor.to(torch.int32) == tensor).all())
