"""A piece in functional ATen operators, for compilers that know no views' memory and no writes.

``lower`` gives the graph and says what must come out of it; ``Results.around`` makes of a plain
function, which returns new tensors, the ``run`` of a CompiledGraph: it writes to the inputs that
the piece writes to, and lays each result as the piece promises. A whole adaptor::

    class Acme:
        name = "acme"

        def compile(self, graph, example_inputs, *, key, config):
            lowered = lower(graph, example_inputs)
            return self.load(lowered.results.pack(translate(lowered.graph)))

        def load(self, handle):
            results, code = Results.unpack(handle)
            return CompiledGraph(results.around(acme_runtime(code)), lambda: handle)

Since API 1.1. Importing this imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from piecewise_core.protocols.laying import Layout, laid

if TYPE_CHECKING:
    import torch

__all__ = ["Layout", "Lowered", "Results", "lower", "place_of"]

Compute = Callable[..., Sequence[Any]]

_HOME = "piecewise_core.compile.functional"
_EXPORTED = "piecewise_core.compile.exported"
"""Where torch is traced with: a stage that plugins' modules must not import."""

_NAMES = {"__builtins__": {"max": max, "min": min, "abs": abs}, "math": math}
"""What an expression over sizes may call."""


@dataclass(frozen=True)
class Results:
    """What a piece gives besides numbers: where its results lie, and what it writes to.

    ``layouts``: one per result of the piece. ``written``: inputs that the piece writes to; their
    new values are further results of the lowered graph, in this order. ``symbols``: name ->
    (input, dim) that has this size; dim -1 where the input is the size itself.
    """

    layouts: tuple[Layout, ...]
    written: tuple[int, ...]
    symbols: Mapping[str, tuple[int, int]]

    def around(self, compute: Compute) -> Compute:
        """The ``run`` of a CompiledGraph over ``compute``.

        ``compute``: takes the piece's inputs and returns what the lowered graph does, as new
        tensors that lie anyhow; it writes to no input. What lies right is handed on uncopied.
        """
        place = self._places()

        def run(*inputs: Any) -> list[Any]:
            found = compute(*inputs)
            count = len(self.layouts)
            if len(found) != count + len(self.written):
                raise ValueError(
                    f"compiled code returned {len(found)} results; the lowered graph has {count}, "
                    f"and {len(self.written)} new values of inputs behind them"
                )
            for where, value in zip(self.written, found[count:], strict=True):
                inputs[where].copy_(value)
            sizes = [
                inputs[i] if dim < 0 else inputs[i].shape[dim] for i, dim in self.symbols.values()
            ]
            return laid(self.layouts, place(*sizes), found[:count], inputs)

        return run

    def around_arrays(self, compute: Compute, places: Sequence[int]) -> Compute:
        """The same over a ``compute`` that takes NumPy arrays and returns some.

        ``places``: of the inputs that it takes; a size is an array of no dims.
        """
        import torch

        def tensors(*inputs: Any) -> list[Any]:
            arrays = [torch.as_tensor(inputs[place]).numpy() for place in places]
            return [torch.from_numpy(array) for array in compute(*arrays)]

        return self.around(tensors)

    def _places(self) -> Callable[..., Sequence[tuple[Any, Any, int]]]:
        """A function of the sizes that gives shape, strides and offset of each result."""
        texts = [
            f"(({''.join(f'{n},' for n in one.shape)}), ({''.join(f'{n},' for n in one.stride)}),"
            f" {one.offset})"
            for one in self.layouts
        ]
        source = f"lambda {', '.join(self.symbols)}: ({''.join(f'{text},' for text in texts)})"
        made: Any = eval(compile(source, "<piecewise layouts>", "eval"), dict(_NAMES))
        found: Callable[..., Sequence[tuple[Any, Any, int]]] = made
        return found

    def pack(self, *parts: bytes) -> bytes:
        """These and ``parts``, the code, as the bytes of a handle."""
        whole = (self.to_json().encode(), *parts)
        return b"".join(len(part).to_bytes(8, "little") + part for part in whole)

    @classmethod
    def unpack(cls, handle: bytes) -> tuple[Any, ...]:
        """What ``pack`` was given, these first."""
        parts, place = [], 0
        while place < len(handle):
            begun = place + 8
            place = begun + int.from_bytes(handle[place:begun], "little")
            parts.append(handle[begun:place])
        return (cls.from_json(parts[0]), *parts[1:])

    def to_json(self) -> str:
        """As text, to be kept beside the code that it is for."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Results:
        """What ``to_json`` wrote."""
        found = json.loads(text)
        layouts = (
            Layout(**{**one, "shape": tuple(one["shape"]), "stride": tuple(one["stride"])})
            for one in found["layouts"]
        )
        symbols = {name: (place, dim) for name, (place, dim) in found["symbols"].items()}
        return cls(tuple(layouts), tuple(found["written"]), symbols)


@dataclass(frozen=True)
class Lowered:
    """A piece in ATen operators.

    ``graph``: takes the piece's inputs, called ``arg_0``, ``arg_1`` and so on after their places
    (``place_of(name)``), and writes to none of them. Returns the piece's results,
    behind them the new values of inputs. Views are operators like others (``aten.t``); which
    memory its results share is in ``results`` alone. Tensors that it holds are its attributes
    (get_attr). Nodes have ``meta["val"]``. ``results``: see there.
    """

    graph: torch.fx.GraphModule
    results: Results

    def decline(self, *, other_than: Collection[torch.dtype]) -> None:
        """Raise PieceDeclined for a value of another dtype, and for operators that draw.

        Those draw from torch's generator, in torch's order, which other libraries do not.
        """
        import_module(_HOME).decline(self.graph, other_than)

    def exported(self) -> torch.export.ExportedProgram:
        """The graph as torch.export has programs, which compilers read; nothing is traced again.

        Sizes that do not vary are none of its inputs. It takes ``graph`` over.
        """
        found: torch.export.ExportedProgram = import_module(_EXPORTED).exported(self.graph)
        return found


def place_of(name: str) -> int:
    """The place of an input of a lowered graph, from its name: 3 of "arg_3"."""
    return int(name.rpartition("_")[2])


def lower(graph: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Lowered:
    """The piece that ``CompilerAdaptor.compile`` was given, in functional ATen operators.

    To be called inside of ``compile``, with what it was given; adds no guard but those of torch's
    own decompositions (whether a product of matrices is empty). Raises PieceDeclined where the
    piece cannot be written so: let it through.
    """
    found: Lowered = import_module(_HOME).lowered(graph, example_inputs)
    return found
