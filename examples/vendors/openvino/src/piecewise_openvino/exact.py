"""What OpenVINO's CPU device would compute otherwise than torch, without a word: left to torch."""

import sys

import numpy as np
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


def check(lowered):
    """Raise PieceDeclined where a piece needs what is not computed as torch does."""
    lowered.decline(other_than=TYPES)
    of_sizes = set()  # whole numbers made of sizes alone
    for node in lowered.graph.graph.nodes:
        kinds = {getattr(v, "dtype", None) for v in pytree.tree_leaves(node.meta.get("val"))}
        whole = kinds & {torch.int64, torch.int32}
        data = node.op == "get_attr" or (node.op == "placeholder" and kinds - {None})
        if not data and of_sizes.issuperset(node.all_input_nodes):
            of_sizes.add(node)
        if not hasattr(node.target, "tags"):
            continue
        name = node.target.__name__.partition(".")[0]
        large = [a for a in node.args if type(a) is int and 2**31 <= abs(a) < sys.maxsize]
        if large or (whole and name not in MOVES and not (node in of_sizes and name == "add")):
            raise PieceDeclined(f"{name} of whole numbers is computed in 32 bits")


def refuse_wide(arrays):
    """Raise OverflowError for whole numbers of more than 32 bits; sizes have fewer."""
    for array in arrays:
        if array.dtype == np.int64 and array.ndim and (array.astype(np.int32) != array).any():
            raise OverflowError("OpenVINO's CPU device has 32 bits for whole numbers")
