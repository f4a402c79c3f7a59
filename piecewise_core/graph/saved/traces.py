"""One region's trace as JSON, and back over new symbols."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from piecewise_core.graph.assumptions import Assumptions
from piecewise_core.graph.codefacts import CodeFact
from piecewise_core.graph.origins import GraphInput
from piecewise_core.graph.outputcode import OutputCode
from piecewise_core.graph.savable import NotSavable, Values
from piecewise_core.graph.saved.graphreader import GraphReader, constants_from_bytes
from piecewise_core.graph.saved.graphwriter import GraphWriter, constants_to_bytes
from piecewise_core.graph.sizes import expression, new_size
from piecewise_core.graph.trace import Traced, hints
from piecewise_core.ranges import Box, Range
from piecewise_core.torch_compat.dynamo import oblivious_sizes
from piecewise_core.torch_compat.fakes import FakeTensorMode

__all__ = ["SavedTrace", "read_trace", "write_trace"]


@dataclass(frozen=True)
class SavedTrace:
    """``text``: JSON. ``constants``: tensors that the trace made, or nothing."""

    text: dict[str, Any]
    constants: bytes


def write_trace(traced: Traced) -> SavedTrace:
    """Everything a trace says. Raises NotSavable."""
    if traced.assumptions is None:
        raise NotSavable("a trace that did not note what it took for granted")
    if traced.assumptions.unasked:
        raise NotSavable(traced.assumptions.unasked[0])
    if traced.assumptions.unnamed:
        raise NotSavable("a trace that read globals of a function that is in no module")
    if traced.output.stores:
        raise NotSavable("a trace that sets attributes of the model's modules")
    if traced.counted:
        raise NotSavable("a trace that counts in objects of its calls")
    writer = GraphWriter(traced.symbols)
    text = {
        "box": [r.plain for r in traced.box.ranges],
        "asks_layout": traced.asks_layout,
        "reads_layout": traced.reads_layout,
        "words": sorted(traced.words),
        "cuts": list(traced.cuts),
        "dims": sorted(set(traced.symbols.values())),
        "graph": writer.graph(traced.graph),
        "inputs": [_input(source, writer) for source in traced.inputs],
        "output": _output(traced.output),
        "assumptions": _assumptions(traced.assumptions),
    }
    return SavedTrace(text, constants_to_bytes(writer.tensors) if writer.tensors else b"")


def read_trace(saved: SavedTrace, device: torch.device | None) -> Traced:
    """The trace over symbols of its own.

    ``device``: where the model is. Raises ValueError, KeyError and what imports raise.
    """
    text = saved.text
    box = Box(tuple(map(Range.read, text["box"])))
    env = ShapeEnv()
    with oblivious_sizes():
        pairs = zip(hints(box), box.ranges, strict=True)
        sizes = [
            new_size(env, i, r.start, r.end, hint) if i in text["dims"] else hint
            for i, (hint, r) in enumerate(pairs)
        ]
        mode = FakeTensorMode(shape_env=env, allow_non_fake_inputs=True)
        constants = constants_from_bytes(saved.constants) if saved.constants else []
        reader = GraphReader(sizes, mode, constants, device)
        graph = reader.graph(text["graph"])
        inputs = tuple(_read_input(i, reader) for i in text["inputs"])
    symbols = {size.node.expr: i for i, size in enumerate(sizes) if isinstance(size, torch.SymInt)}
    output = _read_output(text["output"])
    assumptions = _read_assumptions(text["assumptions"])
    asked = bool(text["asks_layout"]), bool(text["reads_layout"])
    words = frozenset(map(str, text["words"]))
    cuts = tuple(str(cut) for cut in text["cuts"])
    return Traced(graph, inputs, symbols, box, output, assumptions, *asked, words, cuts)


# Inputs -------------------------------------------------------------------------------


def _input(source: GraphInput, writer: GraphWriter) -> dict[str, Any]:
    if source.tensor is not None:
        return {"tensor": source.tensor}
    if source.bound is not None:
        return {"bound": source.bound}
    return {"size": writer.source(source.size)}


def _read_input(data: Mapping[str, Any], reader: GraphReader) -> GraphInput:
    if "size" in data:
        return GraphInput(size=sympy.sympify(expression(reader.number(data["size"]))))
    return GraphInput(tensor=data.get("tensor"), bound=data.get("bound"))


# The result ---------------------------------------------------------------------------


def _output(output: OutputCode) -> dict[str, Any]:
    held = {k: v for k, v in output.rebuild.__globals__.items() if k.startswith("_pw_k")}
    return {
        "source": output.source,
        "names": {name: Values().encode(value) for name, value in held.items()},
        "uses_inputs": output.uses_inputs,
        "single": output.single,
        "used": list(output.used),
        "floats": list(output.floats),
    }


def _read_output(data: Mapping[str, Any]) -> OutputCode:
    names = {name: Values().decode(value) for name, value in data["names"].items()}
    return OutputCode.of(
        data["source"],
        names,
        uses_inputs=data["uses_inputs"],
        single=data["single"],
        used=tuple(data["used"]),
        floats=tuple(data["floats"]),
    )


# Assumptions --------------------------------------------------------------------------


def _assumptions(held: Assumptions) -> dict[str, Any]:
    return {
        "facts": [[s, list(q) if q else None, a] for s, q, a in held.facts],
        "imports": dict(held.imports),
        "code": [asdict(fact) for fact in held.code],
        "settings": dict(held.settings),
        "ops": dict(held.ops),
    }


def _read_assumptions(data: Mapping[str, Any]) -> Assumptions:
    return Assumptions(
        tuple((s, q and (q[0], q[1]), a) for s, q, a in data["facts"]),
        dict(data["imports"]),
        tuple(CodeFact(**fact) for fact in data["code"]),
        dict(data["settings"]),
        dict(data["ops"]),
    )
