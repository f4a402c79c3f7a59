"""The structure of a call as JSON, and back."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from piecewise_core.config import Dim
from piecewise_core.graph.savable import NotSavable, Values
from piecewise_core.graph.structure import Constant, Container, Node, Structure, TensorLeaf

__all__ = ["read_structure", "write_structure"]

_VALUES = Values()


def write_structure(structure: Structure) -> dict[str, Any]:
    """The structure. Raises NotSavable for constants that are objects."""
    return {
        "signature": str(_bare(structure.signature)),
        "arguments": {name: _write(node) for name, node in structure.arguments.items()},
    }


def _bare(signature: inspect.Signature) -> inspect.Signature:
    """Names and kinds only: annotations and defaults print differently from place to place."""
    bare = [p.replace(annotation=p.empty, default=p.empty) for p in signature.parameters.values()]
    return signature.replace(
        parameters=sorted(bare, key=lambda p: p.kind), return_annotation=signature.empty
    )


def _write(node: Node) -> Any:
    if isinstance(node, TensorLeaf):
        return {
            "tensor": node.path,
            "dtype": _VALUES.encode(node.dtype),
            "device": node.device.type,
            "sizes": list(node.sizes),
            "dims": {str(place): dim.name for place, dim in node.dims.items()},
            "order": list(node.order),
        }
    if isinstance(node, Constant):
        if node.by_identity:
            raise NotSavable(
                f'argument "{node.path}" holds a {type(node.value).__name__}, which is a constant '
                "by identity and exists in this process only"
            )
        return {"constant": node.path, "value": _VALUES.encode(node.value)}
    return {
        "container": node.path,
        "kind": _VALUES.encode(node.kind),
        "keys": [_VALUES.encode(k) for k in node.keys],
        "children": [_write(child) for child in node.children],
    }


def read_structure(
    data: Mapping[str, Any],
    signature: inspect.Signature,
    dims: Sequence[Dim],
    devices: Mapping[str, torch.device],
) -> Structure:
    """The structure, for a callable of the ``signature`` it was saved with.

    ``devices``: the device of each type to take inputs on. Raises NotSavable when the signature
    is another one.
    """
    now = str(_bare(signature))
    if now != data["signature"]:
        raise NotSavable(f"the call's signature is {now}, and was {data['signature']}")
    reader = _Reader({d.name: d for d in dims}, devices)
    arguments = {name: reader.node(node) for name, node in data["arguments"].items()}
    return Structure(signature, arguments, tuple(reader.tensors), tuple(dims))


class _Reader:
    def __init__(self, dims: Mapping[str, Dim], devices: Mapping[str, torch.device]) -> None:
        self._dims = dims
        self._devices = devices
        self.tensors: list[TensorLeaf] = []

    def node(self, data: Mapping[str, Any]) -> Node:
        if "tensor" in data:
            return self._tensor(data)
        if "constant" in data:
            return Constant(data["constant"], _VALUES.decode(data["value"]), by_identity=False)
        keys = tuple(_VALUES.decode(k) for k in data["keys"])
        children = tuple(self.node(child) for child in data["children"])
        return Container(data["container"], _VALUES.decode(data["kind"]), keys, children)

    def _tensor(self, data: Mapping[str, Any]) -> TensorLeaf:
        leaf = TensorLeaf(
            data["tensor"],
            len(self.tensors),
            _VALUES.decode(data["dtype"]),
            self._devices.get(data["device"], torch.device(data["device"])),
            tuple(data["sizes"]),
            {int(place): self._dims[name] for place, name in data["dims"].items()},
            tuple(data["order"]),
        )
        self.tensors.append(leaf)
        return leaf
