"""The binder: checks a call's arguments and picks out its tensors and sizes.

The fast path is generated, one chain of comparisons; whatever fails it goes to `Binder.slow`,
which either repairs the call (another memory layout) or says exactly what is wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from piecewise_core.errors import InputMismatch
from piecewise_core.graph.bindsource import bind_source
from piecewise_core.graph.generated import define
from piecewise_core.graph.input_checks import check_constant, check_container, check_tensor
from piecewise_core.graph.lying import Lying, dense_strides, lying_of
from piecewise_core.graph.structure import Constant, Container, Node, Structure, TensorLeaf
from piecewise_core.ranges import Sizes

__all__ = ["AnotherLayout", "AsWritten", "Binder", "Bound"]


class AsWritten(InputMismatch):
    """A call that the model itself serves.

    ``quiet``: that is as it should be. ``short``: why, in a few words.
    """

    def __init__(self, why: str, *, quiet: bool = False, short: str = "") -> None:
        super().__init__(why)
        self.quiet, self.short = quiet, short or why


class AnotherLayout(AsWritten):
    """A call in another layout than the traced one, of a model that may take another path there."""


Bound = tuple[tuple[torch.Tensor, ...], Sizes]
"""The flat tensors of a call, and its sizes in the order of the dims."""


class Binder:
    """Checks calls against a Structure.

    ``bind(*args, **kwargs)`` returns a Bound. ``fits(*args, **kwargs)`` returns the same, or None
    for a call that would have to be repaired or refused. ``raw(*args, **kwargs)`` returns the
    leaves' own tensors unchecked, for inputs that the model returns as they are. ``on_restride`` is
    called for each input copied to the traced layout or alignment.

    ``alignment``: bytes at which tensor data must start; ``static``: refuse instead of copying;
    ``mutated``: flat indices of tensors that the program writes to, which cannot be copies.
    ``returned``: of those that results are views of; a call that gives another layout there is
    AnotherLayout.
    ``matters(leaf, lying)``: whether a model that may ask for layouts takes another path for an
    input that lies so; then a copy in the traced layout would not do, and AnotherLayout is raised.
    ``asked``: as for ``bind_source``, or "class": whether an argument is a Parameter. ``refuses``:
    whether a call with another answer is AnotherLayout. ``is_foreign``: set by calls whose tensors
    are not as the fast path has them: copied, of another class, or with another answer.
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
        self.returned: set[int] = set()
        self.matters: Callable[[TensorLeaf, Lying], bool] = lambda leaf, lying: True
        self._alignment = alignment
        self._static = static
        self._check = check
        self.is_exact = False
        self.is_foreign = self.refuses = False
        self.asked: frozenset[str] = frozenset()
        self._generate()

    def exactly(self) -> Callable[..., Bound]:
        """``bind``, from now on for a model that may ask for the layouts of its inputs."""
        if not self.is_exact:
            self.is_exact = True
            self._generate()
        return self.bind

    def expect(self, asked: frozenset[str]) -> None:
        """From now on calls with another answer to what was ``asked`` are foreign."""
        if not asked <= self.asked:
            self.asked |= asked
            self._generate()

    def follow(self, structure: Structure) -> None:
        """From now on take calls of a structure that differs in constant objects."""
        self.structure = structure
        self._generate()

    def _generate(self) -> None:
        exact = self.is_exact or "stride" in self.asked
        self.source, names = bind_source(
            self.structure, self._alignment, self._check, exact=exact, asked=self.asked
        )
        names["_pw_slow"] = self.slow
        define(self.source, "<piecewise binder>", names)
        # Off their own globals, which hold the calls' objects: a circle would keep those.
        self.bind: Callable[..., Bound] = names.pop("bind")
        self.fits: Callable[..., Bound | None] = names.pop("fits")
        self.raw: Callable[..., tuple[torch.Tensor, ...]] = names.pop("raw")

    def slow(self, values: Mapping[str, Any]) -> Bound:
        """Check one call leaf by leaf.

        ``values``: parameter name -> value. Raises InputMismatch naming argument, expected and
        got; copies inputs of another layout.
        """
        found: list[torch.Tensor] = []
        for name, node in self.structure.arguments.items():
            found += self._collect(node, values[name])
        sizes = self._sizes(found)
        if self.refuses:
            self._refuse_other_answers(found)
        tensors = tuple(self._fit(t, x, found) for t, x in self._pairs(found))
        for given, taken in zip(found, tensors, strict=True):
            if taken is not given:
                self._on_restride()
        self.is_foreign = True
        return tensors, sizes

    def _pairs(self, found: Iterable[torch.Tensor]) -> Iterator[tuple[TensorLeaf, torch.Tensor]]:
        return zip(self.structure.tensors, found, strict=True)

    def _collect(self, node: Node, value: Any) -> Iterator[torch.Tensor]:
        if isinstance(node, Container):
            check_container(node, value)
            for key, child in zip(node.keys, node.children, strict=True):
                yield from self._collect(child, value[key])
        elif isinstance(node, Constant):
            check_constant(node, value)
        else:
            check_tensor(node, value)
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
        # A dim that calls of this form are without changes nothing: it has its least size.
        return tuple(
            sizes[d.name][0] if d.name in sizes else d.sizes.start for d in self.structure.dims
        )

    def _fit(
        self, leaf: TensorLeaf, tensor: torch.Tensor, others: Iterable[torch.Tensor]
    ) -> torch.Tensor:
        """The tensor itself, or a copy of it in the traced layout. Raises InputMismatch."""
        if self.is_exact:
            self._refuse_other_path(leaf, tensor)
        why = self._misfit(leaf, tensor)
        if not why:
            return tensor
        self._refuse_copy(leaf, tensor, others, why)
        if leaf.index in self.returned:
            raise AnotherLayout(
                f'argument "{leaf.path}" has {why}; a result is a view of it, and one of a copy '
                "would not be: whoever writes to the one means the other as well"
            )
        size = [tensor.shape[d] for d in leaf.order]
        ordered = torch.empty(size, dtype=tensor.dtype, device=tensor.device)
        back = sorted(range(len(leaf.order)), key=leaf.order.__getitem__)
        return ordered.permute(back).copy_(tensor)

    def _misfit(self, leaf: TensorLeaf, tensor: torch.Tensor) -> str:
        """What is wrong with the tensor's layout, or ""."""
        if not tensor.permute(leaf.order).is_contiguous():
            order = f"dims in memory order {leaf.order}"
            traced = "contiguous tensors" if leaf.is_contiguous else order
            return f"strides {tuple(tensor.stride())} where the program was traced for {traced}"
        if tensor.is_conj() or tensor.is_neg():
            return "a conjugate or negative bit, which compiled code does not look at,"
        if tensor.data_ptr() % self._alignment:
            return f"data that does not start at a multiple of {self._alignment} bytes"
        return ""

    def _refuse_other_answers(self, found: Sequence[torch.Tensor]) -> None:
        """Raise AnotherLayout where the model may ask what this call answers otherwise."""
        asked, why = self.asked, ""
        if "no gradients" in asked and torch.is_grad_enabled():
            why = "the call is made with gradients enabled, and the model asks for that"
        if "apart" in asked and len({*map(id, found)}) < len(found):
            why = "one tensor is given twice, and the model asks what is the same object"
        for leaf, tensor in self._pairs(found):
            own = ""
            if "gradients" in asked and tensor.requires_grad:
                own = "needs gradients"
            elif "class" in asked and type(tensor) is not torch.Tensor:
                own = f"is a {type(tensor).__name__}"
            elif "attributes" in asked and _marked(tensor):
                own = "has attributes of its own"
            why = f'argument "{leaf.path}" {own}, and the model may ask for that' if own else why
        if why:
            raise AnotherLayout(f"{why}; it was traced for calls that have none of it")

    def _refuse_other_path(self, leaf: TensorLeaf, tensor: torch.Tensor) -> None:
        """Raise AnotherLayout where the model does something else for the tensor's layout."""
        as_traced = tensor.stride() == dense_strides(tensor.shape, leaf.order)
        if not as_traced and self.matters(leaf, lying_of(tensor)):
            raise AnotherLayout(
                f'argument "{leaf.path}" has strides {tuple(tensor.stride())} where the program '
                f"was traced for dims in memory order {leaf.order}; the model asks for layouts, so "
                "it is not copied to that"
            )

    def _refuse_copy(
        self, leaf: TensorLeaf, tensor: torch.Tensor, others: Iterable[torch.Tensor], why: str
    ) -> None:
        """Raise InputMismatch where a copy would not do."""
        if self._static:
            raise InputMismatch(
                f'argument "{leaf.path}" has {why}; with inputs="static" it cannot be copied: '
                'pass a tensor of the traced layout, or set inputs="copy"'
            )
        for other, value in self._pairs(others):
            if other.index in self.mutated and _one_storage(tensor, value):
                where = "it" if other is leaf else f'"{other.path}", which shares its memory'
                raise InputMismatch(
                    f'argument "{leaf.path}" has {why}; the model writes to {where}, so a copy '
                    "would not see the write: pass a tensor of the traced layout"
                )


def _marked(tensor: torch.Tensor) -> bool:
    """Whether somebody but Dynamo set an attribute."""
    return any(not name.startswith("_dynamo") for name in vars(tensor))


def _one_storage(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr() and a.numel() > 0
