"""What crosses from one compiled piece to another, in the order of its dims where it was not.

Sums, norms and activations give what they are given another order of dims for: behind the
convolutions of a speech or image model, ``[batch, width, length]`` in memory is read as
``[batch, length, width]``, and every residual sum keeps lying so. A compiler that has the whole
graph orders such values as it likes. Where they cross cuts their strides are promised, and each
norm of the model reads rows that lie scattered: three kernels in place of one, on a GPU. So do the
transformers of a diffusion model, which read an image as rows by a view.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import sympy
import torch

from piecewise_core.graph import effects
from piecewise_core.graph.contexts import functorch_units
from piecewise_core.graph.convolutions import is_convolution
from piecewise_core.graph.memory import storages
from piecewise_core.graph.segments import Segment, is_item, is_size, producer, segments
from piecewise_core.graph.sizes import expression, hint
from piecewise_core.graph.strides import fake_like
from piecewise_core.torch_compat import functorch
from piecewise_core.torch_compat.fakes import FakeTensor
from piecewise_core.torch_compat.symbols import Max

__all__ = ["CROSSINGS", "order_crossings"]

CROSSINGS = "contiguous_crossings"

_KEPT: dict[str, Any] = {"memory_format": torch.contiguous_format}


def order_crossings(graph: torch.fx.Graph, is_splitting: Callable[[torch.fx.Node], bool]) -> None:
    """Pass such values on as copies whose last dim lies together; readers get them as they were.

    A compiler makes neither copy: it writes the one, and reads it as the other. Values stay as
    they are that anybody writes to, that lie as images with channels last do, that are views of
    something else than a convolution's result, that splitting operators or the caller get, or that
    are passed on or read in the order of their memory through views. So does all where the program
    is cut at copies.
    """
    orders = {n: found for n in graph.nodes if (found := _order(n.meta.get("example_value")))}
    if not orders or _cuts_at_copies(is_splitting):
        return
    runs = segments(graph, is_splitting)
    home = {node: run for run in runs for node in run.nodes}
    home |= {n: home[producer(n)] for n in graph.nodes if is_item(n) and producer(n) in home}
    heads = {n: unit[0] for run in runs for unit in functorch_units(run.nodes) for n in unit}
    place = {node: i for i, node in enumerate(graph.nodes)}
    written = frozenset().union(*map(effects.writes, graph.nodes))
    living: dict[int, list[torch.fx.Node]] = {}
    for each in home:
        for memory in storages(each):
            living.setdefault(memory, []).append(each)

    def elsewhere(node: torch.fx.Node) -> list[torch.fx.Node]:
        return [u for u in node.users if not is_size(u) and home.get(u) is not home[node]]

    for run in runs:
        for node in [] if run.splitting else run.nodes:
            order = orders.get(node)
            if order is None or storages(node) & written or not _is_made_so(node, run):
                continue
            users = sorted(elsewhere(node), key=place.__getitem__)
            if not users or any(u not in home or home[u].splitting for u in users):
                continue
            (memory,) = storages(node)
            if any(elsewhere(n) or _reads_rows(n) for n in living[memory] if n is not node):
                continue
            readers: dict[int, list[torch.fx.Node]] = {}
            for user in users:
                readers.setdefault(id(home[user]), []).append(user)
            _pass_on(graph, node, order, [(heads[some[0]], some) for some in readers.values()])


def _cuts_at_copies(is_splitting: Callable[[torch.fx.Node], bool]) -> bool:
    graph = torch.fx.Graph()
    value = graph.placeholder("value")
    made = graph.call_method("clone", (value,), _KEPT), graph.call_method("permute", (value, 0))
    return any(map(is_splitting, made))


def _reads_rows(node: torch.fx.Node) -> bool:
    """Whether a node's value is read, and its last dim lies together."""
    value = node.meta.get("example_value")
    if not isinstance(value, FakeTensor) or value.dim() == 0:
        return False
    is_read = not all(map(effects.is_view, node.users))
    return is_read and bool(hint(value.stride(-1)) == 1 != hint(value.shape[-1]))


def _order(value: Any) -> list[int] | None:
    """Dims from the outermost in memory to the innermost, where rows lie scattered.

    None of what has gaps, and of all but ordinary tensors.
    """
    if not isinstance(value, FakeTensor) or functorch.is_functorch_wrapped_tensor(value):
        return None
    if value.layout is not torch.strided or value.is_conj() or value.is_neg():
        return None
    sizes, strides = [hint(n) for n in value.shape], [hint(n) for n in value.stride()]
    if None in (*sizes, *strides):  # they depend on data
        return None
    order = sorted(range(len(sizes)), key=lambda d: (-strides[d], sizes[d] != 1, d))
    long = [dim for dim in order if sizes[dim] != 1]
    if not long or long[-1] == max(long) or not _is_dense(value, order):
        return None
    return None if long[-1] == 1 and len(sizes) > 3 else order


def _is_dense(value: torch.Tensor, order: list[int]) -> bool:
    """Whether strides are what the sizes in that order make them, at all sizes."""
    inside: Any = 1
    for dim in reversed(order):
        if _unguarded(value.stride(dim)) != inside:
            return False
        inside = inside * expression(value.shape[dim])
    return True


def _unguarded(stride: Any) -> Any:
    """A stride without torch's ``Max(1, size)``: of what is empty, it tells nothing."""
    found = expression(stride)
    if not isinstance(found, sympy.Basic):
        return found
    largest: Any = Max
    return found.replace(largest, lambda *sizes: largest(*(n for n in sizes if n != 1)))


def _dense(sizes: Sequence[Any]) -> list[Any]:
    strides: list[Any] = [1] * len(sizes)
    for dim in reversed(range(len(sizes) - 1)):
        strides[dim] = strides[dim + 1] * sizes[dim + 1]
    return strides


def _is_made_so(node: torch.fx.Node, run: Segment) -> bool:
    """Whether an operator of the run made the memory, in this order: it is no view.

    Or a convolution did, which compiled code lays with channels last: behind it a view is none.
    """
    first = next(n for n in run.nodes if storages(n) & storages(node))
    made, value = first.meta["example_value"], node.meta["example_value"]
    if not isinstance(made, torch.Tensor) or effects.is_view(first):
        return False
    if is_convolution(first):
        return True
    lying = [(expression(tuple(t.shape)), expression(t.stride())) for t in (made, value)]
    return bool(lying[0] == lying[1])


def _pass_on(
    graph: torch.fx.Graph,
    node: torch.fx.Node,
    order: list[int],
    readers: Iterable[tuple[torch.fx.Node, Sequence[torch.fx.Node]]],
) -> None:
    """Have each run's ``readers`` take ``node`` from a copy, made where it is.

    ``readers``: of each run, with the node before which they get it back. What they get is said
    to lie in ``node``'s memory, as the views that they make of it are.
    """
    backwards = [order.index(dim) for dim in range(len(order))]
    value = node.meta["example_value"]
    dense = fake_like(value, _dense(value.shape))
    with value.fake_mode, torch.inference_mode():
        turned = dense.permute(order), value.permute(order)
    with graph.inserting_after(node):
        kept = _call(graph, "clone", node, (), node, dense)
    for head, users in readers:
        with graph.inserting_before(head):
            apart = _call(graph, "permute", kept, order, users[0], turned[0])
            together = _call(graph, "clone", apart, (), users[0], turned[1])
            back = _call(graph, "permute", together, backwards, users[0], value)
        for user in users:
            user.replace_input_with(node, back)


def _call(
    graph: torch.fx.Graph,
    method: str,
    given: torch.fx.Node,
    dims: Sequence[int],
    near: torch.fx.Node,
    value: torch.Tensor,
) -> torch.fx.Node:
    made = graph.call_method(method, (given, *dims), {} if dims else _KEPT)
    made.meta = {**near.meta, "example_value": value}
    return made
