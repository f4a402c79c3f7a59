"""Operators of torch's own database as small programs, each with inputs at several sizes."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.utils._pytree as pytree

import piecewise_core as pw

__all__ = ["Case", "cases_of", "fresh", "operators"]

LEFT_OUT = {
    "empty": "its numbers are whatever lies in memory",
    "empty_like": "its numbers are whatever lies in memory",
    "empty_permuted": "its numbers are whatever lies in memory",
    "empty_strided": "its numbers are whatever lies in memory",
    "new_empty": "its numbers are whatever lies in memory",
    "new_empty_strided": "its numbers are whatever lies in memory",
    "resize_": "it changes the sizes of its input, which only a trace's own tensors may",
    "resize_as_": "it changes the sizes of its input, which only a trace's own tensors may",
}
"""Operators that cannot be compared, and why."""


@dataclass(frozen=True)
class Case:
    """One call of an operator.

    ``model``: calls it with the tensors given and the sample's other arguments. ``inputs``: the
    tensors of the sample. ``rows``: places of the inputs whose dim 0 varies. ``sizes``: legal
    sizes of that dim, the sample's own first. ``out``: calls it with ``out=``, or None.
    ``in_place``: its in-place form on a copy of its first input, or None. ``random``: whether it
    draws random numbers.
    """

    name: str
    model: Callable[..., Any]
    inputs: tuple[torch.Tensor, ...]
    rows: tuple[int, ...]
    sizes: tuple[int, ...]
    out: Callable[..., Any] | None
    in_place: Callable[..., Any] | None
    random: bool

    @property
    def dynamic(self) -> dict[str | int, Any]:
        """What Config.dynamic says of the rows."""
        return {place: {0: pw.Dim("rows", min=0, max=64)} for place in self.rows}

    def fixed(self) -> Case:
        """The same call at its sample's size alone."""
        return dataclasses.replace(self, rows=(), sizes=self.sizes[:1])


def operators() -> list[Any]:
    """Torch's operator database, each entry once."""
    from torch.testing._internal.common_methods_invocations import op_db

    return list(op_db)


def label(op: Any) -> str:
    """The entry's name, with its variant's."""
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else str(op.name)


def cases_of(op: Any, limit: int) -> Iterator[Case]:
    """Up to ``limit`` calls of ``op``, taken evenly from its samples on a CPU."""
    if op.name in LEFT_OUT:
        return
    wanted = (torch.float32, torch.int64, torch.bool, torch.complex64, *sorted(op.dtypes, key=str))
    dtype = next(d for d in wanted if d in op.dtypes)
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = list(op.sample_inputs("cpu", dtype, requires_grad=False))
    step = max(1, len(samples) // limit)
    for sample in samples[::step][:limit]:
        made = _case(op, sample)
        if made is not None:
            yield made


def _case(op: Any, sample: Any) -> Case | None:
    call = (sample.input, tuple(sample.args), dict(sample.kwargs))
    inputs, tree = _emptied(call)
    plain = [type(t) is torch.Tensor and t.layout is torch.strided for t in inputs]
    if not inputs or not all(plain) or any(t.device.type != "cpu" for t in inputs):
        return None
    model = functools.partial(_run, op.op, tree)
    # An unsafe index is not checked: of fewer rows it may be one of nobody's memory.
    rows = () if label(op).startswith("_unsafe") else _rows(inputs)
    sizes = tuple(_legal(model, inputs, rows))
    if not sizes:
        return None
    in_place = op.inplace_variant
    out = functools.partial(_run_out, op.op, tree) if op.supports_out else None
    return Case(
        label(op),
        _named(model, label(op)),
        inputs,
        rows,
        sizes,
        _named(out, label(op)) if out is not None and _one_result(model, inputs) else None,
        _named(functools.partial(_run_copy, in_place, tree), label(op)) if in_place else None,
        _draws(model, inputs),
    )


class _Hole:
    """Stands for the tensor at ``place`` of the call's tensors."""

    def __init__(self, place: int) -> None:
        self.place = place


def _emptied(call: Any) -> tuple[tuple[torch.Tensor, ...], Any]:
    """The tensors of a call, and the call with holes in their place."""
    found: list[torch.Tensor] = []

    def take(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            found.append(value.detach())
            return _Hole(len(found) - 1)
        if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
            return type(value)(take(v) for v in value) if type(value) in (list, tuple) else value
        if type(value) is dict:
            return {k: take(v) for k, v in value.items()}
        return value

    tree = take(call)
    return tuple(found), tree


def _filled(node: Any, tensors: Sequence[torch.Tensor]) -> Any:
    if isinstance(node, _Hole):
        return tensors[node.place]
    if type(node) is list:
        return [_filled(n, tensors) for n in node]
    if type(node) is tuple:
        return tuple([_filled(n, tensors) for n in node])
    if type(node) is dict:
        return {k: _filled(n, tensors) for k, n in node.items()}
    return node


def _run(op: Any, tree: Any, *tensors: torch.Tensor) -> Any:
    first, args, kwargs = _filled(tree, tensors)
    return op(first, *args, **kwargs)


def _run_copy(op: Any, tree: Any, *tensors: torch.Tensor) -> Any:
    first, args, kwargs = _filled(tree, tensors)
    written = first.clone()
    return op(written, *args, **kwargs), written


def _run_out(op: Any, tree: Any, out: torch.Tensor, *tensors: torch.Tensor) -> Any:
    first, args, kwargs = _filled(tree, tensors)
    return op(first, *args, **{**kwargs, "out": out})


def _named(model: Any, name: str) -> Callable[..., Any]:
    """``model`` as a function of its own, as users write one."""

    def program(*tensors: torch.Tensor) -> Any:
        return model(*tensors)

    program.__qualname__ = f"program of {name}"
    return program


def _rows(inputs: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """The inputs that share the first tensor's first dim."""
    first = next((t for t in inputs if t.dim() and t.shape[0] >= 2), None)
    if first is None:
        return ()
    return tuple(i for i, t in enumerate(inputs) if t.dim() and t.shape[0] == first.shape[0])


def _legal(model: Any, inputs: Sequence[torch.Tensor], rows: Sequence[int]) -> Iterator[int]:
    """Sizes at which the operator runs and its numbers are defined, the sample's own first."""
    own = inputs[rows[0]].shape[0] if rows else -1
    for size in dict.fromkeys((own, own - 1, 1, 0) if rows else (-1,)):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model(*_at(inputs, rows, size))
                if not _defined(model, _at(inputs, rows, size)):
                    continue
        except Exception:  # whatever the operator says of such a call
            if size == own:
                return
            continue
        yield size


def _defined(model: Any, inputs: Sequence[torch.Tensor]) -> bool:
    """Whether no number of the result is whatever lay in memory: some losses of no rows are.

    Torch fills new memory with NaN where it must be deterministic.
    """
    found = []
    for filled in (False, True):
        torch.manual_seed(0)
        torch.use_deterministic_algorithms(filled, warn_only=True)
        try:
            found.append(model(*(t.clone() for t in inputs)))
        finally:
            torch.use_deterministic_algorithms(False)
    try:
        torch.testing.assert_close(*found, equal_nan=True)
    except AssertionError:
        return False
    return True


def _at(inputs: Sequence[torch.Tensor], rows: Sequence[int], size: int) -> tuple[torch.Tensor, ...]:
    return tuple(t[:size].clone() if i in rows else t.clone() for i, t in enumerate(inputs))


def fresh(case: Case, size: int, turn: int) -> tuple[torch.Tensor, ...]:
    """The inputs at ``size``; every odd ``turn`` has the same numbers in another order."""
    made = _at(case.inputs, case.rows, size)
    if turn % 2 == 0:
        return made
    return tuple(_flipped(t) if t.dim() and t.is_floating_point() else t for t in made)


def _flipped(tensor: torch.Tensor) -> torch.Tensor:
    """The rows in the other order; ``flip`` itself has no kernel for eight-bit numbers."""
    return tensor[torch.arange(tensor.shape[0] - 1, -1, -1)]


def _draws(model: Any, inputs: Sequence[torch.Tensor]) -> bool:
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found.append(model(*(t.clone() for t in inputs)))
    leaves = [[v for v in pytree.tree_leaves(f) if isinstance(v, torch.Tensor)] for f in found]
    return any(
        not torch.equal(a.nan_to_num(), b.nan_to_num())
        for a, b in zip(*leaves, strict=True)
        if a.layout is torch.strided
    )


def _one_result(model: Any, inputs: Sequence[torch.Tensor]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return isinstance(model(*(t.clone() for t in inputs)), torch.Tensor)
