"""The generated function that checks a call's arguments and picks out its tensors and sizes.

The fast path is one chain of comparisons; whatever fails it goes to `Binder.slow`, which
either repairs the call (another memory layout) or says exactly what is wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from piecewise_core.errors import InputMismatch
from piecewise_core.graph.structure import Constant, Container, Node, Structure, TensorLeaf
from piecewise_core.ranges import Sizes

__all__ = ["Binder", "Bound"]

Bound = tuple[tuple[torch.Tensor, ...], Sizes]
"""The flat tensors of a call, and its sizes in the order of the dims."""


class Binder:
    """Checks calls against a Structure.

    ``bind(*args, **kwargs)`` returns a Bound. ``raw(*args, **kwargs)`` returns the leaves'
    own tensors unchecked, for inputs that the model returns as they are. ``on_restride`` is called
    for each input copied to the traced layout or alignment.

    ``alignment``: bytes at which tensor data must start; ``static``: refuse instead of copying;
    ``mutated``: flat indices of tensors that the program writes to, which cannot be copies.
    """

    def __init__(
        self,
        structure: Structure,
        *,
        alignment: int = 1,
        static: bool = False,
        check: bool = True,
        on_restride: Callable[[], None] = lambda: None,
    ) -> None:
        self.structure = structure
        self._on_restride = on_restride
        self.mutated: set[int] = set()
        self._alignment = alignment
        self._static = static
        writer = _Writer(structure, alignment if check else 1)
        self.source = writer.source(check)
        namespace = {**writer.names, "_pw_slow": self.slow}
        exec(compile(self.source, "<piecewise binder>", "exec"), namespace)
        self.bind: Callable[..., Bound] = namespace["bind"]
        self.raw: Callable[..., tuple[torch.Tensor, ...]] = namespace["raw"]

    def slow(self, values: Mapping[str, Any]) -> Bound:
        """Check one call leaf by leaf.

        ``values``: parameter name -> value. Raises InputMismatch naming argument, expected and
        got; copies inputs of another layout.
        """
        found: list[torch.Tensor] = []
        for name, node in self.structure.arguments.items():
            found += self._collect(node, values[name])
        sizes = self._sizes(found)
        return tuple(self._to_layout(t, x) for t, x in self._pairs(found)), sizes

    def _pairs(self, found: Iterable[torch.Tensor]) -> Iterator[tuple[TensorLeaf, torch.Tensor]]:
        return zip(self.structure.tensors, found, strict=True)

    def _collect(self, node: Node, value: Any) -> Iterator[torch.Tensor]:
        if isinstance(node, Container):
            _check_container(node, value)
            for key, child in zip(node.keys, node.children, strict=True):
                yield from self._collect(child, value[key])
        elif isinstance(node, Constant):
            _check_constant(node, value)
        else:
            _check_tensor(node, value)
            yield value

    def _sizes(self, found: list[torch.Tensor]) -> Sizes:
        sizes: dict[str, tuple[int, str]] = {}
        for leaf, tensor in self._pairs(found):
            for dim, named in leaf.dims.items():
                size = tensor.shape[dim]
                first, where = sizes.setdefault(named.name, (size, f"{leaf.path} dim {dim}"))
                if first != size:
                    raise InputMismatch(
                        f'dim "{named.name}" has size {first} in {where} and {size} in '
                        f"{leaf.path} dim {dim}; one name is one size at every call: pass equal "
                        "sizes, or give the two dims different names in Config.dynamic"
                    )
        return tuple(sizes[d.name][0] for d in self.structure.dims)

    def _to_layout(self, leaf: TensorLeaf, tensor: torch.Tensor) -> torch.Tensor:
        in_order = tensor.permute(leaf.order).is_contiguous()
        if in_order and tensor.data_ptr() % self._alignment == 0:
            return tensor
        why = (
            f"strides {tuple(tensor.stride())} where the program was traced for "
            f"{'contiguous tensors' if leaf.is_contiguous else f'dims in memory order {leaf.order}'}"
            if not in_order
            else f"data that does not start at a multiple of {self._alignment} bytes"
        )
        if leaf.index in self.mutated:
            raise InputMismatch(
                f'argument "{leaf.path}" has {why}; the model writes to it, so a copy would lose '
                "the write: pass a tensor of the traced layout"
            )
        if self._static:
            raise InputMismatch(
                f'argument "{leaf.path}" has {why}; with inputs="static" it cannot be copied: '
                'pass a tensor of the traced layout, or set inputs="copy"'
            )
        self._on_restride()
        size = [tensor.shape[d] for d in leaf.order]
        ordered = torch.empty(size, dtype=tensor.dtype, device=tensor.device)
        back = sorted(range(len(leaf.order)), key=leaf.order.__getitem__)
        return ordered.permute(back).copy_(tensor)


def _check_container(node: Container, value: Any) -> None:
    if type(value) is not node.kind:
        raise InputMismatch(
            f'argument "{node.path}" is a {type(value).__name__}; traced with {node.kind.__name__}'
        )
    keys = tuple(value) if node.is_mapping else tuple(range(len(value)))
    if set(keys) != set(node.keys):
        raise InputMismatch(
            f'argument "{node.path}" has keys {list(keys)}; traced with {list(node.keys)}'
        )


def _check_constant(node: Constant, value: Any) -> None:
    if isinstance(value, torch.Tensor):
        raise InputMismatch(
            f'argument "{node.path}" is a tensor of shape {tuple(value.shape)}; traced with the '
            f"constant {node.value!r}: compile the model again for calls of this form"
        )
    if node.by_identity:
        if value is not node.value:
            raise InputMismatch(
                f'argument "{node.path}" is another {type(value).__name__} object than the '
                f"{type(node.value).__name__} traced; objects are constants by identity: pass "
                "the same one, or pass its tensors as arguments"
            )
    elif not same_value(node.value, value):
        raise InputMismatch(
            f'argument "{node.path}" is {value!r}; traced with the constant {node.value!r}: pass '
            "that value, pass a tensor, or compile the model once per value"
        )


def _check_tensor(leaf: TensorLeaf, value: Any) -> None:
    def refuse(what: str, expected: object, got: object) -> InputMismatch:
        return InputMismatch(f'argument "{leaf.path}": {what} expected {expected}, got {got}')

    if not isinstance(value, torch.Tensor):
        raise refuse("a tensor", f"of {leaf.dtype}", f"{type(value).__name__} {value!r}")
    if type(value) not in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer):
        raise refuse("type", "torch.Tensor", type(value).__name__)
    if value.layout is not torch.strided:
        raise refuse("layout", torch.strided, value.layout)
    if value.dtype is not leaf.dtype:
        raise refuse("dtype", leaf.dtype, value.dtype)
    if value.device != leaf.device:
        raise refuse("device", leaf.device, value.device)
    if value.dim() != len(leaf.sizes):
        raise refuse("rank", len(leaf.sizes), f"{value.dim()}, shape {tuple(value.shape)}")
    for dim, size in enumerate(leaf.sizes):
        if dim not in leaf.dims and value.shape[dim] != size:
            raise InputMismatch(
                f'argument "{leaf.path}": size of dim {dim} expected {size}, got '
                f"{value.shape[dim]}; to let it vary, name it in Config.dynamic: "
                f'{{"{leaf.path}": {{{dim}: Dim("...", max=...)}}}}'
            )


def same_value(a: Any, b: Any) -> bool:
    """Whether two plain values are of one type and equal; NaN equals NaN."""
    return type(a) is type(b) and (bool(a == b) or (a != a and b != b))


class _Writer:
    """Writes the source of ``bind`` and ``raw``."""

    def __init__(self, structure: Structure, alignment: int) -> None:
        self.structure = structure
        self.names: dict[str, Any] = {"_pw_T": torch.Tensor}
        self._alignment = alignment
        self._reads: list[str] = []
        self._tests: list[str] = []
        self._tensor_names: list[str] = []

    def name(self, value: Any) -> str:
        """A name bound to ``value`` in the generated module."""
        name = f"_pw_k{len(self.names)}"
        self.names[name] = value
        return name

    def source(self, check: bool) -> str:
        for parameter, node in self.structure.arguments.items():
            self._walk(node, parameter)
        signature, passed = self._parameters()
        sizes, size_tests = self._size_lines()
        tensors = _tuple(self._tensor_names)
        tests = " and ".join(self._tests) if check else ""
        lines = [f"def bind({signature}):", "  try:", *(f"   {r}" for r in self._reads)]
        lines.append(f"   if {tests or 'True'}:")
        lines += [f"    {line}" for line in sizes]
        lines.append(f"    if {' and '.join(size_tests) if check and size_tests else 'True'}:")
        lines.append(f"     return {tensors}, {_tuple(_size_names(self.structure))}")
        lines.append("  except (AttributeError, IndexError, KeyError, TypeError, ValueError):")
        lines.append("   pass")
        lines.append(f"  return _pw_slow({{{passed}}})")
        lines += [f"def raw({signature}):", *(f"  {r}" for r in self._reads), f"  return {tensors}"]
        return "\n".join(lines)

    def _parameters(self) -> tuple[str, str]:
        """The parameter list of the generated functions, and its names as a dict display."""
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
        return ", ".join(parts), ", ".join(f"{p.name!r}: {p.name}" for p in parameters)

    def _walk(self, node: Node, at: str) -> None:
        if isinstance(node, Container):
            self._tests.append(f"type({at}) is {self.name(node.kind)}")
            self._tests.append(f"len({at}) == {len(node.keys)}")
            for key, child in zip(node.keys, node.children, strict=True):
                local = f"_pw_v{len(self._reads)}"
                text = repr(key) if type(key) in (str, int) else self.name(key)
                self._reads.append(f"{local} = {at}[{text}]")
                self._walk(child, local)
        elif isinstance(node, Constant):
            self._tests.append(self._constant(node, at))
        else:
            self._tensor_names.append(at)
            self._tests += self._tensor(node, at)

    def _constant(self, node: Constant, at: str) -> str:
        value = node.value
        if value is None or value is True or value is False:
            return f"{at} is {value}"
        if node.by_identity:
            return f"{at} is {self.name(value)}"
        return f"type({at}) is {self.name(type(value))} and {at} == {self.name(value)}"

    def _tensor(self, leaf: TensorLeaf, at: str) -> list[str]:
        tests = [f"type({at}) is _pw_T", f"{at}.dtype is {self.name(leaf.dtype)}"]
        on_cpu = leaf.device.type == "cpu"
        tests.append(f"{at}.is_cpu" if on_cpu else f"{at}.device == {self.name(leaf.device)}")
        if leaf.is_contiguous:
            tests.append(f"{at}.is_contiguous()")
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
            new = {leaf.dims[i].name for i in leaf.dims} - known
            if not new:
                tests.append(f"{at}.shape == {_tuple(expected)}")
            else:
                targets = [f"_pw_x{leaf.index}_{i}" for i in range(len(expected))]
                for i, named in leaf.dims.items():
                    if named.name not in known:
                        targets[i] = size_name[named.name]
                        known.add(named.name)
                lines.append(f"{', '.join(targets)}, = {at}.shape")
                tests += [f"{t} == {e}" for t, e in zip(targets, expected, strict=True) if t != e]
            if not leaf.is_contiguous:
                tests.append(f"{at}.stride() == {_tuple(_strides(leaf, expected))}")
        return lines, tests


def _strides(leaf: TensorLeaf, sizes: list[str]) -> list[str]:
    """Source of the strides of a dense tensor whose dims lie in memory as ``leaf.order``."""
    strides = ["1"] * len(sizes)
    for inner, outer in zip(reversed(leaf.order), list(reversed(leaf.order))[1:], strict=False):
        strides[outer] = f"{strides[inner]}*{sizes[inner]}"
    return strides


def _size_names(structure: Structure) -> list[str]:
    return [f"_pw_s{i}" for i in range(len(structure.dims))]


def _tuple(items: Iterable[str]) -> str:
    return "(" + "".join(f"{item}, " for item in items) + ")"
