"""A traced graph run at given sizes, on tensors without data: whether it is what the trace says.

Sizes are symbols while a model is traced. An operator that has to know whether one is 0 or 1 is
told that it is neither, and no guard says so: ``squeeze`` keeps such a dim, ``contiguous`` copies.
With numbers for sizes operators decide as they do in eager, so the two can be compared.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from piecewise_core.graph import effects
from piecewise_core.graph.contexts import (
    functorch_units,
    is_autocast_enter,
    is_autocast_exit,
    is_switch,
)
from piecewise_core.graph.memory import storages, values
from piecewise_core.graph.names import op_name, source_of
from piecewise_core.graph.sizes import expression
from piecewise_core.graph.trace import Traced
from piecewise_core.ranges import Sizes
from piecewise_core.torch_compat import pytree
from piecewise_core.torch_compat.fakes import FakeTensorMode, unset_fake_temporarily
from piecewise_core.torch_compat.storages import memory_key
from piecewise_core.torch_compat.targets import exit_autocast

__all__ = ["NotRun", "disagreement"]

_FEW = 1 << 16
"""Elements that an operator may be given to be run with all of them."""


class NotRun(Exception):
    """The graph cannot be run by itself."""


def disagreement(traced: Traced, sizes: Sizes) -> str | None:
    """The first operation that gives another shape, layout or kind at ``sizes`` than was traced.

    None where all agree. Strides of dims with one element say nothing, nor do those of tensors
    without any. Memory counts where the program writes to it. Raises NotRun.
    """
    nodes = traced.graph.graph.nodes
    if any(len(unit) > 1 for unit in functorch_units(nodes)) or any(map(is_switch, nodes)):
        raise NotRun("it changes a state of torch as it goes")
    numbers = _Numbers(traced, sizes)
    written = frozenset().union(*map(effects.writes, nodes))
    run = _Run(traced.graph, numbers)
    try:
        mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
        with mode, torch.inference_mode():
            run.run(*_inputs(traced, numbers))
    except _Differs as found:
        return found.what
    except Exception as error:
        raise NotRun(f"{type(error).__name__}: {error}") from error
    finally:
        run.leave()
    return run.shared_otherwise(written) if written and 0 not in sizes else None


class _Differs(Exception):
    """What an operation gives is not what was traced. ``what``: the whole of it in a sentence."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what  # the interpreter adds to the arguments


class _Numbers:
    """Sizes of the trace as numbers."""

    def __init__(self, traced: Traced, sizes: Sizes) -> None:
        self._at = {s: sympy.Integer(sizes[place]) for s, place in traced.symbols.items()}
        self._known: dict[Any, Any] = {}

    def __call__(self, value: Any) -> Any:
        """``value``, a size or a number, at these sizes; None where it depends on data."""
        found = expression(value)
        if not isinstance(found, sympy.Basic):
            return found
        if found not in self._known:
            number = found.xreplace(self._at)
            self._known[found] = None if number.free_symbols else number
        number = self._known[found]
        return int(number) if number is not None and number.is_Integer else number


class _Run(torch.fx.Interpreter):
    """Runs a graph and compares each value with that of the trace."""

    def __init__(self, graph: torch.fx.GraphModule, numbers: _Numbers) -> None:
        # Memory is told apart by its number, so all of it stays.
        super().__init__(graph, garbage_collect_values=False)
        self._numbers = numbers
        self._entered: list[Any] = []
        self._values: list[tuple[torch.fx.Node, Any]] = []

    def run_node(self, n: torch.fx.Node) -> Any:
        made = super().run_node(n)
        if n.op.startswith("call_"):
            self._refuse_nothing(n)
        if is_autocast_enter(n):
            self._entered.append(made)
        elif is_autocast_exit(n):
            self._entered.remove(self.env[n.args[0]])  # type: ignore[index]
        if n.op != "output" and "example_value" in n.meta:
            self._values.append((n, made))
            if n.op != "placeholder":
                self._compare(n, made)
        return made

    def _refuse_nothing(self, node: torch.fx.Node) -> None:
        """Run an operator of torch that is given no elements with what it is given.

        Kernels refuse what tensors without data do not: a maximum of nothing.
        """
        if node.op == "call_module" or not _is_torchs(node):
            return
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        given = [v for v in values((args, kwargs)) if isinstance(v, torch.Tensor)]
        if all(t.numel() for t in given) or sum(t.numel() for t in given) > _FEW:
            return
        with (
            unset_fake_temporarily(),
            torch.random.fork_rng(devices=[]),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            real = pytree.tree_map_only(
                torch.Tensor, lambda t: torch.zeros(t.shape, dtype=t.dtype), (args, kwargs)
            )
            try:
                getattr(self, node.op)(node.target, *real)
            except (IndexError, RuntimeError, ValueError) as error:
                raise _Differs(_text(node, f"{type(error).__name__}: {error}", "a value")) from None

    def leave(self) -> None:
        """Leave what a run that broke off had entered."""
        for entered in reversed(self._entered):
            exit_autocast(entered)
        self._entered.clear()

    def _compare(self, node: torch.fx.Node, made: Any) -> None:
        traced, found = list(values(node.meta["example_value"])), list(values(made))
        if len(traced) != len(found):
            raise _Differs(_text(node, f"{len(found)} values", f"{len(traced)}"))
        for then, now in zip(traced, found, strict=True):
            if isinstance(then, torch.Tensor) or isinstance(now, torch.Tensor):
                before, here = _layout(then, self._numbers), _layout(now, lambda size: size)
                if before is not None and before != here:
                    raise _Differs(_text(node, here, before))
            elif isinstance(then, (torch.SymInt, torch.SymFloat, torch.SymBool)):
                number = self._numbers(then)
                if number is not None and not isinstance(now, torch.SymInt) and number != now:
                    raise _Differs(_text(node, now, number))

    def shared_otherwise(self, written: frozenset[int]) -> str | None:
        """Where memory ``written``, of the trace, is shared otherwise than was traced."""
        traced, found = _First(), _First()
        for place, (node, made) in enumerate(self._values):
            then, now = traced.of(place, storages(node)), found.of(place, _memory(made))
            if then != now and (then | now) & traced.all(written):
                return _text(node, "memory of its own or another's", "the opposite")
        return None


class _First:
    """Which value each memory was met with first."""

    def __init__(self) -> None:
        self._first: dict[int, int] = {}

    def of(self, place: int, memory: frozenset[int]) -> frozenset[int]:
        """The places of ``memory``, met now at ``place``."""
        return frozenset(self._first.setdefault(m, place) for m in sorted(memory))

    def all(self, memory: frozenset[int]) -> frozenset[int]:
        """The places of what was met so far of ``memory``."""
        return frozenset(self._first[m] for m in memory if m in self._first)


def _layout(value: Any, number: Callable[[Any], Any]) -> Any:
    """A tensor's kind, shape and strides; None where ``number`` has none for a size of it."""
    if not isinstance(value, torch.Tensor):
        return None if value is None else type(value)
    shape = [number(size) for size in value.shape]
    stride = [number(s) for s in value.stride()] if value.layout is torch.strided else shape
    if any(size is None for size in (*shape, *stride)):
        return None
    steps = [s for n, s in zip(shape, stride, strict=True) if n != 1] if 0 not in shape else []
    return value.dtype, str(value.device), value.layout, tuple(shape), tuple(steps)


def _is_torchs(node: torch.fx.Node) -> bool:
    """Whether a node calls a function or method of torch, which has no effects of its own."""
    if node.op == "call_method" or isinstance(node.target, type(torch.max)):
        return True
    return str(getattr(node.target, "__module__", "")) == "torch.nn.functional"


def _memory(value: Any) -> frozenset[int]:
    tensors = (t for t in values(value) if isinstance(t, torch.Tensor))
    return frozenset(memory_key(t) for t in tensors)


def _text(node: torch.fx.Node, now: Any, then: Any) -> str:
    where = source_of(node)
    return f"{op_name(node)}{f' at {where}' if where else ''} gives {now}, traced as {then}"


def _inputs(traced: Traced, numbers: _Numbers) -> Iterator[Any]:
    """One value per placeholder; tensors share memory as the traced ones do."""
    placeholders = [n for n in traced.graph.graph.nodes if n.op == "placeholder"]
    bases: dict[int, torch.Tensor] = {}
    for node, source in zip(placeholders, traced.inputs, strict=True):
        example = node.meta.get("example_value")
        if not isinstance(example, torch.Tensor):
            yield numbers(source.size if source.size is not None else example)
            continue
        shape = [numbers(s) for s in example.shape]
        stride = [numbers(s) for s in example.stride()]
        (memory,) = storages(node)
        if memory not in bases:
            made = torch.empty_strided(shape, stride, dtype=example.dtype, device=example.device)
            bases[memory] = made
        else:
            base = bases[memory].view(example.dtype)
            made = base.as_strided(shape, stride, numbers(example.storage_offset()))
        yield made
