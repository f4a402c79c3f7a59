"""A piece in functional ATen operators, for compilers that know no views' memory and no writes.

``lower`` gives the graph and says what must come out of it; ``Results.around`` makes of a plain
function, which returns new tensors, the ``run`` of a CompiledGraph: it writes to the inputs that
the piece writes to, and lays each result as the piece promises. A whole adaptor::

    class Acme:
        name = "acme"

        def compile(self, graph, example_inputs, *, key, config):
            lowered = lower(graph, example_inputs)
            blob = translate(lowered.graph) + SEPARATOR + lowered.results.to_json().encode()
            return self.load(blob)

        def load(self, handle):
            code, results = handle.split(SEPARATOR)
            run = Results.from_json(results).around(acme_runtime(code))
            return CompiledGraph(run, lambda: handle)

Since API 1.1. Importing this imports no torch.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["Layout", "Lowered", "Results", "lower"]

Compute = Callable[..., Sequence[Any]]

_HOME = "piecewise_core.compile.functional"
"""Where torch is traced with: a stage that plugins' modules must not import."""

_NAMES = {"__builtins__": {"max": max, "min": min, "abs": abs}, "math": math}
"""What an expression over sizes may call."""


@dataclass(frozen=True)
class Layout:
    """One result as the piece promises it. Sizes are Python expressions over ``Results.symbols``.

    ``dtype``: torch's name of it, "float32". ``input``: the input whose memory it is a view of, or
    None; ``offset`` then counts from that input's first element. ``shared``: a number that results
    which lie in one new memory have in common, or None; ``offset`` is in that memory.
    """

    dtype: str
    shape: tuple[str, ...]
    stride: tuple[str, ...]
    offset: str = "0"
    input: int | None = None
    shared: int | None = None


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
            return _laid(self.layouts, place(*sizes), found[:count], inputs)

        return run

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

    ``graph``: takes the piece's inputs and writes to none of them. Returns the piece's results,
    behind them the new values of inputs. Views are operators like others (``aten.t``); which
    memory its results share is in ``results`` alone. Tensors that it holds are its attributes
    (get_attr). Nodes have ``meta["val"]``. ``results``: see there.
    """

    graph: torch.fx.GraphModule
    results: Results


def lower(graph: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Lowered:
    """The piece that ``CompilerAdaptor.compile`` was given, in functional ATen operators.

    To be called inside of ``compile``, with what it was given; adds no guard but those of torch's
    own decompositions (whether a product of matrices is empty). Raises PieceDeclined where the
    piece cannot be written so: let it through.
    """
    found: Lowered = import_module(_HOME).lowered(graph, example_inputs)
    return found


def _laid(
    layouts: Sequence[Layout],
    places: Sequence[tuple[Any, Any, int]],
    found: Sequence[Any],
    inputs: Sequence[Any],
) -> list[Any]:
    """Each of ``found`` in its layout; the same tensor where it lies so already."""
    import torch

    extents: dict[int, int] = {}
    for one, (shape, stride, offset) in zip(layouts, places, strict=True):
        if one.shared is not None:
            end = offset + _extent(shape, stride)
            extents[one.shared] = max(extents.get(one.shared, 0), end)
    bases: dict[int, Any] = {}
    laid = []
    for one, (shape, stride, offset), value in zip(layouts, places, found, strict=True):
        if one.input is not None:
            base = inputs[one.input]
            laid.append(base.as_strided(shape, stride, base.storage_offset() + offset))
        elif one.shared is not None:
            if one.shared not in bases:
                bases[one.shared] = value.new_empty(extents[one.shared])
            view = bases[one.shared].as_strided(shape, stride, offset)
            laid.append(_fill(view, value))
        elif _lies(shape, value.stride(), stride):
            laid.append(value)
        else:
            made = torch.empty_strided(shape, stride, dtype=value.dtype, device=value.device)
            laid.append(_fill(made, value))
    return laid


def _fill(view: Any, value: Any) -> Any:
    """``view`` with the numbers of ``value``; rows that are one in memory are written once."""
    source, into = value, view
    for dim, (size, step) in enumerate(zip(view.shape, view.stride(), strict=True)):
        if size > 1 and not step:
            source, into = source.narrow(dim, 0, 1), into.narrow(dim, 0, 1)
    into.copy_(source)
    return view


def _extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Elements from the first to the last of such a tensor."""
    if 0 in shape:
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))


def _lies(shape: Sequence[int], now: Sequence[int], wanted: Sequence[int]) -> bool:
    if 0 in shape:
        return tuple(now) == tuple(wanted)
    return all(n <= 1 or a == b for n, a, b in zip(shape, now, wanted, strict=True))
