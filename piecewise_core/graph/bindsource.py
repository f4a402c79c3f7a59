"""The source of the function that checks a call and picks its tensors and sizes out.

For ``f(x, mask=None)`` with one named dim it reads, in short::

    def bind(x, mask=_pw_k1):
      try:
       if _pw_type(x) is _pw_T and x.dtype is _pw_k2 and x.is_contiguous() and mask is None:
        _pw_s0, _pw_x0_1, = x.shape
        if _pw_x0_1 == 4:
         return (x, ), (_pw_s0, )
      except (AttributeError, ...):
       pass
      return _pw_slow({'x': x, 'mask': mask})

and ``fits`` the same with None in the last line.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Iterable
from itertools import combinations
from typing import Any

import torch

from piecewise_core.errors import ConfigError
from piecewise_core.graph.input_checks import same_value
from piecewise_core.graph.structure import Constant, Container, Node, Structure, TensorLeaf

__all__ = ["bind_source"]

_OURS = "_pw_"


def bind_source(
    structure: Structure,
    alignment: int,
    check: bool,
    *,
    exact: bool = False,
    asked: frozenset[str] = frozenset(),
) -> tuple[str, dict[str, Any]]:
    """The source of ``bind``, ``fits`` and ``raw``, and its names, ``_pw_slow`` left out.

    ``alignment``: bytes at which tensor data must start. ``check``: whether to test tensors too,
    and not only what else tells one form of calls from another.
    ``exact``: whether strides count that no address depends on. ``asked``: what else a call must
    answer as the tensors of the recorded run do: "offset", "gradients", "inference", "attributes"
    (there are none), "apart" (no tensor is given twice), "no gradients" (which mode it is).
    Raises ConfigError for a parameter whose name is kept for names of ours.
    """
    for parameter in structure.signature.parameters:
        if parameter.startswith(_OURS):
            raise ConfigError(
                f'the parameter name "{parameter}" cannot be served: names that begin with '
                f"{_OURS} are kept for generated code; give the parameter another name"
            )
    writer = _Writer(structure, alignment, exact, asked)
    return writer.source(check), writer.names


_FEW = 5

_ANSWERS = {
    "offset": "{}.storage_offset() == 0",
    "gradients": "not {}.requires_grad",
    "inference": "not {}.is_inference()",
    "attributes": "not {}.__dict__",
}
"""How buffers of ours answer, on which functions are recorded."""


class _Writer:
    def __init__(
        self, structure: Structure, alignment: int, exact: bool, asked: frozenset[str]
    ) -> None:
        self.structure = structure
        self.names: dict[str, Any] = {
            "_pw_T": torch.Tensor,
            "_pw_type": type,
            "_pw_id": id,
            "_pw_len": len,
            "_pw_tuple": tuple,
            "_pw_same": same_value,
        }
        self._alignment = alignment
        self._exact = exact
        self._asked = asked
        self._reads: list[str] = []
        self._tests: list[str] = []
        self._checks: set[str] = set()
        self._tensor_names: list[str] = []

    def name(self, value: Any) -> str:
        """A name bound to ``value`` in the generated module."""
        name = f"_pw_k{len(self.names)}"
        self.names[name] = value
        return name

    def source(self, check: bool) -> str:
        for parameter, node in self.structure.arguments.items():
            self._walk(node, parameter)
        signature = self._parameters()
        passed = ", ".join(f"{p!r}: {p}" for p in self.structure.signature.parameters)
        if "no gradients" in self._asked:
            self.names["_pw_grad"] = torch.is_grad_enabled
            self._tests.append("not _pw_grad()")
        if "apart" in self._asked:
            apart = _apart(self._tensor_names)
            self._tests += apart
            self._checks.update(apart)
        sizes, size_tests = self._size_lines()
        tensors = _tuple(self._tensor_names)
        found = _tuple(f"_pw_s{i}" for i in range(len(self.structure.dims)))
        tests = [t for t in self._tests if check or t not in self._checks]
        fast = ["  try:", *(f"   {r}" for r in self._reads), f"   if {_all(tests)}:"]
        fast += [f"    {line}" for line in sizes]
        fast.append(f"    if {_all(size_tests if check else [])}:")
        fast.append(f"     return {tensors}, {found}")
        fast.append(
            "  except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):"
        )
        fast.append("   pass")
        lines = [f"def bind({signature}):", *fast, f"  return _pw_slow({{{passed}}})"]
        lines += [f"def fits({signature}):", *fast]
        lines += [f"def raw({signature}):", *(f"  {r}" for r in self._reads), f"  return {tensors}"]
        return "\n".join(lines)

    def _parameters(self) -> str:
        """The parameter list of the generated functions: the model's own."""
        parts: list[str] = []
        star = False
        kinds = inspect.Parameter
        parameters = list(self.structure.signature.parameters.values())
        for place, parameter in enumerate(parameters):
            text = parameter.name
            if parameter.kind is kinds.VAR_POSITIONAL:
                text, star = f"*{text}", True
            elif parameter.kind is kinds.VAR_KEYWORD:
                text = f"**{text}"
            elif parameter.kind is kinds.KEYWORD_ONLY and not star:
                parts.append("*")
                star = True
            if parameter.default is not kinds.empty:
                text += f"={self.name(parameter.default)}"
            parts.append(text)
            following = parameters[place + 1].kind if place + 1 < len(parameters) else None
            if parameter.kind is kinds.POSITIONAL_ONLY and following is not kinds.POSITIONAL_ONLY:
                parts.append("/")
        return ", ".join(parts)

    def _walk(self, node: Node, at: str) -> None:
        if isinstance(node, Container):
            self._container(node, at)
        elif isinstance(node, Constant):
            self._tests.append(self._constant(node, at))
        else:
            self._tensor_names.append(at)
            tests = self._tensor(node, at)
            self._tests += tests
            self._checks.update(tests)

    def _container(self, node: Container, at: str) -> None:
        self._tests.append(f"_pw_type({at}) is {self.name(node.kind)}")
        self._tests.append(f"_pw_len({at}) == {len(node.keys)}")
        if node.is_ordered:
            self._tests.append(f"_pw_tuple({at}) == {self.name(node.keys)}")
        for key, child in zip(node.keys, node.children, strict=True):
            local = f"_pw_v{len(self._reads)}"
            text = repr(key) if type(key) in (str, int) else self.name(key)
            self._reads.append(f"{local} = {at}[{text}]")
            self._walk(child, local)

    def _constant(self, node: Constant, at: str) -> str:
        value = node.value
        if value is None or value is True or value is False:
            return f"{at} is {value}"
        if node.by_identity or isinstance(value, enum.Enum):
            return f"{at} is {self.name(value)}"
        if type(value) in (int, str, bytes, torch.dtype, torch.device):
            return f"_pw_type({at}) is {self.name(type(value))} and {at} == {self.name(value)}"
        return f"_pw_same({at}, {self.name(value)})"

    def _tensor(self, leaf: TensorLeaf, at: str) -> list[str]:
        tests = [f"_pw_type({at}) is _pw_T", f"{at}.dtype is {self.name(leaf.dtype)}"]
        on_cpu = leaf.device.type == "cpu"
        tests.append(f"{at}.is_cpu" if on_cpu else f"{at}.device == {self.name(leaf.device)}")
        if leaf.is_contiguous and not self._exact:
            tests.append(f"{at}.is_contiguous()")
        if leaf.dtype.is_complex:
            tests.append(f"not {at}.is_conj()")
        tests += [test.format(at) for kind, test in _ANSWERS.items() if kind in self._asked]
        if self._alignment > 1:
            tests.append(f"{at}.data_ptr() % {self._alignment} == 0")
        return tests

    def _size_lines(self) -> tuple[list[str], list[str]]:
        """Lines that read each tensor's sizes, and the tests over what was read."""
        known: set[str] = set()
        lines, tests = [], []
        size_name = {d.name: f"_pw_s{i}" for i, d in enumerate(self.structure.dims)}
        for leaf, at in zip(self.structure.tensors, self._tensor_names, strict=True):
            expected = [
                size_name[leaf.dims[i].name] if i in leaf.dims else str(size)
                for i, size in enumerate(leaf.sizes)
            ]
            if {named.name for named in leaf.dims.values()} <= known:
                tests.append(f"{at}.shape == {_tuple(expected)}")
            else:
                targets = [f"_pw_x{leaf.index}_{i}" for i in range(len(expected))]
                for i, named in leaf.dims.items():
                    if named.name not in known:
                        targets[i] = size_name[named.name]
                        known.add(named.name)
                lines.append(f"{', '.join(targets)}, = {at}.shape")
                tests += [f"{t} == {e}" for t, e in zip(targets, expected, strict=True) if t != e]
            if self._exact or not leaf.is_contiguous:
                tests.append(f"{at}.stride() == {_tuple(_strides(leaf, expected))}")
        absent = [d for d in self.structure.dims if d.name not in known]
        return [*lines, *(f"{size_name[d.name]} = {d.sizes.start}" for d in absent)], tests


def _apart(names: list[str]) -> list[str]:
    """Tests whether no tensor is given twice."""
    if len(names) <= _FEW:
        return [f"{a} is not {b}" for a, b in combinations(names, 2)]
    return [f"_pw_len({{{', '.join(f'_pw_id({name})' for name in names)}}}) == {len(names)}"]


def _strides(leaf: TensorLeaf, sizes: list[str]) -> list[str]:
    """Source of the strides of a dense tensor whose dims lie in memory as ``leaf.order``."""
    strides = ["1"] * len(sizes)
    for inner, outer in zip(reversed(leaf.order), list(reversed(leaf.order))[1:], strict=False):
        size = str(int(sizes[inner]) or 1) if sizes[inner].isdecimal() else f"({sizes[inner]} or 1)"
        strides[outer] = f"{strides[inner]}*{size}"
    return strides


def _tuple(items: Iterable[str]) -> str:
    return "(" + "".join(f"{item}, " for item in items) + ")"


def _all(tests: Iterable[str]) -> str:
    return " and ".join(tests) or "True"
