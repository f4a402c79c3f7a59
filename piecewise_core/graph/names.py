"""Splitting ops by name: resolved to operators and torch functions, matched against nodes."""

from __future__ import annotations

import difflib
import logging
import operator
import pkgutil
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from piecewise_core.errors import NothingToSplit, UnknownSplittingOp
from piecewise_core.torch_compat.operators import (
    HigherOrderOperator,
    OpOverload,
    OpOverloadPacket,
    all_names,
    overload_name,
    overloads_of,
    packet_name,
    schema_of,
)
from piecewise_core.torch_compat.targets import PUBLIC_MODULES, builtin_function

__all__ = ["Matcher", "bodies", "called_name", "op_name", "source_of"]

logger = logging.getLogger(__name__)

_ATTENTION = ("attention", "attn", "sdpa", "mamba", "moe", "all_reduce", "all_gather")


def op_name(node: torch.fx.Node) -> str:
    """What to call a node's operation in messages, in the form that splitting_ops accepts."""
    target = node.target
    if node.op == "call_method":
        return f"torch.Tensor.{target}"
    if isinstance(target, OpOverload):
        name = schema_of(target).name
        return name if overload_name(target) == "default" else f"{name}.{overload_name(target)}"
    if isinstance(target, OpOverloadPacket):
        return str(packet_name(target))
    if callable(target):
        module = getattr(target, "__module__", None) or ""
        name = getattr(target, "__name__", str(target))
        return f"{PUBLIC_MODULES.get(module, module)}.{name}"
    return str(target)


def called_name(node: Any) -> str:
    """The bare name of the function or method that a node calls, or ""."""
    return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")


def source_of(node: torch.fx.Node) -> str:
    """``file:line`` of the user code that made ``node``, or ""."""
    found = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    found = [f for f in found if not f[0].startswith("<piecewise")]
    return f"{found[-1][0]}:{found[-1][1]}" if found else ""


class Matcher:
    """Decides which nodes are splitting ops.

    ``names``: as in ``Config.splitting_ops``, or "auto". ``unsafe``: the platform's operators
    that static graphs cannot hold, used with "auto". Raises UnknownSplittingOp.
    """

    def __init__(self, names: Sequence[str] | str, unsafe: Iterable[str] = ()) -> None:
        self.auto = names == "auto"
        texts = list(unsafe) if self.auto else list(names)
        self._names = {text: _test_of(text) for text in texts}
        self._met: set[str] = set()
        self._looked = False

    def __bool__(self) -> bool:
        return self.auto or bool(self._names)

    def __call__(self, node: torch.fx.Node) -> bool:
        """Whether ``node`` is a splitting op, or a higher-order operator with one in a branch."""
        if node.op not in ("call_function", "call_method"):
            return False
        if self.auto and _tagged_unsafe(node.target):
            return True
        if any(matches(node) for matches in self._names.values()):
            return True
        return any(self(inner) for body in bodies(node) for inner in body.nodes)

    @property
    def unmet(self) -> tuple[str, ...]:
        """The names given that no graph looked at has."""
        given = () if self.auto or not self._looked else self._names
        return tuple(name for name in given if name not in self._met)

    def look(self, graph: torch.fx.Graph) -> None:
        """Note which names ``graph`` has; reports once those that the first one lacks.

        A list may serve many models. Raises NothingToSplit when the first graph has none of them.
        """
        if self.auto or not self._names:
            return
        calls = list(_calls(graph))
        met = {name for name, matches in self._names.items() if any(map(matches, calls))}
        if not self._looked and not met:
            raise _nothing(list(self._names), calls)
        first, self._looked = not self._looked, True
        self._met |= met
        if first and self.unmet:
            listed = ", ".join(map(repr, self.unmet))
            logger.info("splitting ops not in the traced graph: %s", listed)


def _nothing(names: Sequence[str], calls: Sequence[torch.fx.Node]) -> NothingToSplit:
    counts = Counter(op_name(c) for c in calls if not _is_ours(c))
    near = [m for text in names for m in difflib.get_close_matches(text, counts, 3, 0.5)]
    likely = [n for n in counts if _is_candidate(n)]
    listed = ", ".join(f"{n} (x{counts[n]})" for n in dict.fromkeys([*likely, *near]))
    common = ", ".join(f"{n} (x{c})" for n, c in counts.most_common(12))
    return NothingToSplit(
        f"splitting op {', '.join(map(repr, names))} is not in the traced graph; "
        f"candidates in it: {listed or common}. Name one of these in splitting_ops, or use "
        "splitting_ops=() to compile the whole graph as one piece"
    ).having(names=tuple(names), candidates=tuple(dict.fromkeys([*likely, *near])))


def bodies(node: torch.fx.Node) -> Iterator[torch.fx.Graph]:
    """The graphs that a higher-order operator runs: a branch of torch.cond, say."""
    if not isinstance(node.target, HigherOrderOperator):
        return
    for used in node.all_input_nodes:
        if used.op == "get_attr":
            body: Any = operator.attrgetter(str(used.target))(node.graph.owning_module)
            if isinstance(body, torch.fx.GraphModule):
                yield body.graph


def _calls(graph: torch.fx.Graph) -> Iterator[torch.fx.Node]:
    """Every call in ``graph``, those in the bodies of higher-order operators included."""
    for node in graph.nodes:
        if node.op in ("call_function", "call_method"):
            yield node
            for body in bodies(node):
                yield from _calls(body)


def _is_ours(node: torch.fx.Node) -> bool:
    """Whether the traced entry made the node, around the model."""
    return bool(node.meta.get("stack_trace")) and not source_of(node)


def _is_candidate(name: str) -> bool:
    custom = "::" in name and not name.startswith(("aten::", "prims::"))
    return custom or any(word in name.lower() for word in _ATTENTION)


def _tagged_unsafe(target: Any) -> bool:
    tag = getattr(torch.Tag, "cudagraph_unsafe", None)
    if tag is None:
        return False
    return any(tag in getattr(each, "tags", ()) for each in overloads_of(target) or [target])


def _test_of(text: str) -> Callable[[torch.fx.Node], bool]:
    """The test that a node must pass to be what ``text`` names. Raises UnknownSplittingOp."""
    if text.startswith("torch.ops."):
        text = text.removeprefix("torch.ops.").replace(".", "::", 1)
    if "::" in text:
        return _operator_test(text)
    if text.startswith("torch.Tensor.") and hasattr(torch.Tensor, text[13:]):
        method = text[13:]
        return lambda node: node.op == "call_method" and node.target == method
    function = _torch_function(text)
    if function is None:
        raise _unknown(text)
    return lambda node: node.target is function


def _operator_test(text: str) -> Callable[[torch.fx.Node], bool]:
    namespace, _, rest = text.partition("::")
    name, _, overload = rest.partition(".")
    packet = getattr(getattr(torch.ops, namespace), name, None)
    if isinstance(packet, HigherOrderOperator) and not overload:
        return lambda node: node.target is packet
    if packet is None or (overload and overload not in packet.overloads()):
        raise _unknown(text)
    # Such as softmax and layer_norm: Python around the operator of the same name.
    written = getattr(torch.nn.functional, name, None) if namespace == "aten" else None
    overloads = [getattr(packet, o) for o in ([overload] if overload else packet.overloads())]

    def matches(node: torch.fx.Node) -> bool:
        if node.target in overloads or (node.target is packet):
            return True
        # Dynamo keeps aten operators as torch functions and tensor methods of the same name.
        if namespace != "aten" or overload:
            return False
        if node.op == "call_method":
            return node.target == name
        builtin = type(node.target) is builtin_function
        same = builtin and getattr(node.target, "__name__", None) == name
        return same or node.target is (written or node)

    return matches


def _torch_function(text: str) -> Any:
    """The object that a qualified name such as ``torch.nn.functional.softmax`` names."""
    try:
        found = pkgutil.resolve_name(text) if text.startswith("torch.") else None
    except (ImportError, AttributeError, ValueError):
        return None
    return found if callable(found) else None


def _unknown(text: str) -> UnknownSplittingOp:
    registered = {name.partition(".")[0] for name in all_names()}
    functions = {f"torch.nn.functional.{n}" for n in dir(torch.nn.functional) if n[:1] != "_"}
    functions |= {f"torch.{n}" for n in dir(torch) if callable(getattr(torch, n)) and n[:1] != "_"}
    pool = sorted(registered | functions)
    wanted = text if "::" in text or text.startswith("torch.") else text.replace(".", "::", 1)
    near = difflib.get_close_matches(wanted, pool, 4, 0.6)
    if not near:
        tail = wanted.rpartition("::")[2].rpartition(".")[2]
        near = [n for n in pool if n.rpartition("::")[2].rpartition(".")[2] == tail][:4]
    return UnknownSplittingOp(
        f"splitting op {text!r} names no registered operator and no torch function"
        f'{"; did you mean " + ", ".join(near) + "?" if near else "."} Write "ns::op", '
        '"ns::op.overload" or a qualified name such as '
        '"torch.nn.functional.scaled_dot_product_attention", and import what registers the '
        "operator before compiling"
    ).having(names=(text,), near=tuple(near))
