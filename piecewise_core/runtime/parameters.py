"""The tensors a model holds: bound once, read anew at every call, checked for replacement.

A replaced parameter is another object under the same name; ``.to()`` keeps the object and swaps
what it holds. One generated function reads all of them and notices both, and replaced modules and
changes of mode with them.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from piecewise_core.errors import UnsupportedModule

__all__ = ["Parameters", "roots_of"]


@dataclass(frozen=True)
class Place:
    """Where a module tree keeps a tensor: the path of submodules, the dict, and the key."""

    root: torch.nn.Module
    path: tuple[str, ...]
    holder: str
    key: str

    def owner(self) -> torch.nn.Module:
        """The module that holds the tensor now. Raises KeyError when the path is gone."""
        module = self.root
        for name in self.path:
            module = module._modules[name]  # type: ignore[assignment]
        return module

    def dictionary(self) -> dict[str, Any]:
        """The dict that holds the tensor now."""
        owner = self.owner()
        return vars(owner) if self.holder == "" else getattr(owner, self.holder)


def roots_of(fn: Callable[..., Any]) -> tuple[torch.nn.Module, ...]:
    """The modules that ``fn`` reaches by itself: its own, or those in its closure and globals."""
    if isinstance(fn, torch.nn.Module):
        return (fn,)
    owner = getattr(fn, "__self__", None)
    if isinstance(owner, torch.nn.Module):
        return (owner,)
    plain = inspect.unwrap(fn)
    if not inspect.isfunction(plain):
        return ()
    seen = inspect.getclosurevars(plain)
    reached = [*seen.nonlocals.values(), *seen.globals.values(), owner]
    found = [v for v in reached if isinstance(v, torch.nn.Module)]
    for value in reached:
        if hasattr(value, "__dict__") and not isinstance(value, (torch.nn.Module, type)):
            found += [v for v in vars(value).values() if isinstance(v, torch.nn.Module)]
    return tuple(dict.fromkeys(found))


class Parameters:
    """The bound tensors of one model, in the order in which tracing met them.

    ``read()`` returns them as a tuple, or None when one was replaced or moved since ``settle``, or
    a module was replaced or changed between training and evaluation.
    ``checked``: False returns the tensors that tracing met, without looking.
    """

    def __init__(self, roots: Sequence[torch.nn.Module], *, checked: bool = True) -> None:
        self._roots = tuple(roots)
        self._checked = checked
        self._tensors: list[torch.Tensor] = []
        self._kinds: list[Any] = []
        self._place: dict[int, int] = {}
        self._places: list[list[Place]] = []
        self._tree = _tree(self._roots)
        self.read: Callable[[], tuple[torch.Tensor, ...] | None] = tuple

    def __len__(self) -> int:
        return len(self._tensors)

    def add(self, tensor: torch.Tensor) -> int:
        """The place of ``tensor`` among the bound ones; new ones go last."""
        if id(tensor) not in self._place:
            if is_traceable_wrapper_subclass(tensor):
                raise UnsupportedModule(
                    f"the model holds a {type(tensor).__name__}, a tensor subclass with its own "
                    "dispatch; convert it to plain tensors before compiling"
                )
            self._place[id(tensor)] = len(self._tensors)
            self._tensors.append(tensor)
            self._kinds.append(_kind(tensor))
        return self._place[id(tensor)]

    def settle(self) -> None:
        """Generate ``read`` for what was added; call after each trace."""
        if not self._checked:
            bound = tuple(self._tensors)
            self.read = lambda: bound
            return
        index = _index(self._roots)
        self._places = [index.get(id(t), []) for t in self._tensors]
        self._tree = _tree(self._roots)
        self.read = _reader(self._tensors, self._places, self._roots)

    def rebind(self) -> bool:
        """Take the tensors now in place, if they are of the kinds traced; whether they are.

        A kind is dtype, device, shape and strides. False means that the model must be traced
        again, as it must when a module was replaced or its mode changed; nothing is changed then.
        """
        if self._tree != _tree(self._roots):
            return False
        try:
            now = [
                places[0].dictionary()[places[0].key] if places else tensor
                for tensor, places in zip(self._tensors, self._places, strict=True)
            ]
            twins = [
                p.dictionary()[p.key] is t
                for t, ps in zip(now, self._places, strict=True)
                for p in ps
            ]
        except (KeyError, AttributeError):
            return False
        if not all(twins) or [_kind(t) for t in now] != self._kinds:
            return False
        self._tensors = now
        self._place = {id(t): i for i, t in enumerate(self._tensors)}
        self.settle()
        return True

    def need_grad(self) -> bool:
        """Whether a bound tensor requires gradients."""
        return any(t.requires_grad for t in self._tensors)


def _kind(tensor: Any) -> Any:
    if not isinstance(tensor, torch.Tensor):
        return None
    return tensor.dtype, tensor.device, tuple(tensor.shape), tensor.stride(), type(tensor)


def _index(roots: Sequence[torch.nn.Module]) -> dict[int, list[Place]]:
    """Every place of every tensor in the module trees, by the tensor's id."""
    found: dict[int, list[Place]] = {}
    seen: set[int] = set()

    def walk(root: torch.nn.Module, module: torch.nn.Module, path: tuple[str, ...]) -> None:
        if id(module) in seen:
            return
        seen.add(id(module))
        for holder in ("_parameters", "_buffers", ""):
            place = Place(root, path, holder, "")
            held = vars(module) if holder == "" else getattr(module, holder)
            for key, value in held.items():
                if isinstance(value, torch.Tensor):
                    found.setdefault(id(value), []).append(replace(place, key=key))
        for name, child in module._modules.items():
            if child is not None:
                walk(root, child, (*path, name))

    for root in roots:
        walk(root, root, ())
    return found


def _reader(
    tensors: Sequence[torch.Tensor],
    places: Sequence[Sequence[Place]],
    roots: Sequence[torch.nn.Module],
) -> Callable[[], tuple[torch.Tensor, ...] | None]:
    """``read()``: gathers every tensor from where it is kept, then compares.

    Tuples compare by identity first, so an unchanged tensor costs one pointer; a replaced one
    makes the comparison fail or raise. ``.to()`` works module by module, so one data pointer per
    owning module shows it.
    """
    names: dict[str, Any] = {}
    items, tests, watched = [], [], []
    owners: dict[int, torch.nn.Module] = {}
    for i, (tensor, known) in enumerate(zip(tensors, places, strict=True)):
        if not known:
            items.append(_name(names, tensor))
            continue
        items.append(_item(names, known[0]))
        tests += [f"{_item(names, twin)} is not p[{i}]" for twin in known[1:]]
        owner = known[0].owner()
        if id(owner) not in owners or tensor.numel() == 1:
            watched.append(i)
        owners[id(owner)] = owner
    readers = _mode_readers(roots)
    modes = "".join(f"{_name(names, vars(m))}['training'], " for m in readers)
    names["_pw_modes"] = tuple(m.training for m in readers)
    parents = [m for root in roots for m in root.modules() if m._modules]
    modules = "".join(f"*{_name(names, m._modules)}.values(), " for m in parents)
    names["_pw_modules"] = tuple(child for m in parents for child in m._modules.values())
    names["_pw_was"] = tuple(tensors)
    names["_pw_ptr"] = torch.Tensor.data_ptr
    names["_pw_ptrs"] = [tensors[i].data_ptr() for i in watched]
    source = "\n".join(
        [
            f"def read({', '.join(f'{n}={n}' for n in names)}):",
            " try:",
            f"  p = ({''.join(f'{i}, ' for i in items)})",
            "  if p != _pw_was: return None",
            f"  if {' or '.join(tests) or 'False'}: return None",
            f"  if ({modes}) != _pw_modes or ({modules}) != _pw_modules: return None",
            " except (KeyError, RuntimeError):",
            "  return None",
            f" if [*map(_pw_ptr, ({''.join(f'p[{i}], ' for i in watched)}))] != _pw_ptrs:",
            "  return None",
            " return p",
        ]
    )
    exec(compile(source, "<piecewise parameters>", "exec"), names)
    read: Callable[[], tuple[torch.Tensor, ...] | None] = names["read"]
    return read


def _tree(roots: Sequence[torch.nn.Module]) -> list[tuple[torch.nn.Module, bool]]:
    """Every module, with its mode."""
    return [(m, m.training) for root in roots for m in root.modules()]


def _mode_readers(roots: Sequence[torch.nn.Module]) -> list[torch.nn.Module]:
    """The roots, and every module whose code asks whether it is training."""
    modules = [m for root in roots for m in root.modules()]
    kinds = {kind for kind in set(map(type, modules)) if _reads_mode(kind)}
    return [m for m in modules if type(m) in kinds or m in roots]


def _reads_mode(kind: type[torch.nn.Module]) -> bool:
    """Whether a method of the class mentions ``training``, or hides its code."""
    classes = kind.__mro__[: kind.__mro__.index(torch.nn.Module)]
    methods = [inspect.unwrap(f) for c in classes for f in vars(c).values() if callable(f)]
    codes = [getattr(f, "__code__", None) for f in methods if not isinstance(f, type)]
    return any(code is None or "training" in code.co_names for code in codes)


def _name(names: dict[str, Any], value: Any) -> str:
    """The name that ``value`` has among ``names``, given now if it has none."""
    name = f"_pw_{id(value):x}"
    names[name] = value
    return name


def _item(names: dict[str, Any], place: Place) -> str:
    return f"{_name(names, place.dictionary())}[{place.key!r}]"
