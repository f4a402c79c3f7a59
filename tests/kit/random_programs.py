"""Random programs, to be split, compiled, captured, and compared with what they do as written.

Programs are Python source over tensors with one or two named dims: views, in-place writes,
mutating custom ops, multiple outputs, sizes in every position, nested results. They run at every
size that tends to be special. Numbers stay small integers, so results are equal bit for bit
whatever kernel computes them.
"""

from __future__ import annotations

import contextlib
import itertools
import linecache
import sys
import textwrap
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from hypothesis import strategies as st
from torch.library import custom_op

import piecewise_core as pw

_serial = itertools.count()

# Operators --------------------------------------------------------------------------


@custom_op("split_property::fun", mutates_args=())
def _fun(x: torch.Tensor) -> torch.Tensor:
    return (x.contiguous() * 2 + 1) % 5


@_fun.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_fun.register_vmap
def _(info: Any, dims: Any, x: torch.Tensor) -> Any:
    return _fun(x), dims[0]


@custom_op("split_property::two", mutates_args=())
def _two(x: torch.Tensor, y: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    first = x.contiguous() + 1
    return first, (x.sum() if y is None else y.sum()) % 7


@_two.register_fake
def _(x: torch.Tensor, y: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(())


@custom_op("split_property::many", mutates_args=())
def _many(xs: list[torch.Tensor], add: int) -> list[torch.Tensor]:
    return [x.contiguous() + add for x in xs]


@_many.register_fake
def _(xs: list[torch.Tensor], add: int) -> list[torch.Tensor]:
    return [torch.empty_like(x, memory_format=torch.contiguous_format) for x in xs]


@custom_op("split_property::sized", mutates_args=())
def _sized(x: torch.Tensor, *, sizes: list[int], scale: float = 1.0) -> torch.Tensor:
    return (x.contiguous() + sum(sizes)) * scale % 7


@_sized.register_fake
def _(x: torch.Tensor, *, sizes: list[int], scale: float = 1.0) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@custom_op("split_property::mutate", mutates_args={"x"})
def _mutate(x: torch.Tensor, y: torch.Tensor) -> None:
    x.add_(y.sum() % 3 + 1)


@_mutate.register_fake
def _(x: torch.Tensor, y: torch.Tensor) -> None:
    return None


@custom_op("split_property::both", mutates_args={"x"})
def _both(x: torch.Tensor, k: int) -> torch.Tensor:
    before = x.contiguous().clone()
    x.copy_((x + k) % 5)
    return before


@_both.register_fake
def _(x: torch.Tensor, k: int) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


CUSTOM = tuple(f"split_property::{n}" for n in ("fun", "two", "many", "sized", "mutate", "both"))
TORCH = ("torch.abs", "torch.Tensor.clamp", "torch.nn.functional.relu", "aten::neg")
OPS = "torch.ops.split_property"

# Programs ---------------------------------------------------------------------------

Size = tuple[int, ...]
"""One dim of a value: its size under each assignment of the named dims."""


@dataclass(frozen=True)
class Value:
    """A variable of the program. ``writable``: no two elements are one."""

    name: str
    shape: tuple[Size, ...]
    writable: bool = True


@dataclass
class Random:
    """A program, and everything needed to run it.

    ``source``: the body of ``forward``. ``inputs``: name -> shape, whose entries are named dims
    or ints. ``assignments``: dim -> sizes to run at. ``alias``: whether some calls pass one
    tensor twice. ``permuted``: inputs whose first dim is the innermost in memory.
    """

    source: str
    inputs: dict[str, tuple[str | int, ...]]
    dims: dict[str, pw.Dim]
    assignments: list[dict[str, int]]
    splitting: tuple[str, ...]
    alias: bool = False
    permuted: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return (
            f"inputs={self.inputs} dims={[(d.name, d.min, d.max) for d in self.dims.values()]} "
            f"at={self.assignments} cut={self.splitting} alias={self.alias} "
            f"permuted={self.permuted}\n{self.source}"
        )


@dataclass
class Builder:
    """Draws statements whose sizes fit under every assignment."""

    draw: Callable[[Any], Any]
    count: int
    custom: ClassVar[tuple[str, ...]] = ()
    values: list[Value] = field(default_factory=list)
    numbers: list[str] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    fresh: Iterator[int] = field(default_factory=itertools.count)

    # Drawing -----------------------------------------------------------------------

    def one(self, options: Any) -> Any:
        return self.draw(st.sampled_from(list(options)))

    def chance(self) -> bool:
        return bool(self.draw(st.booleans()))

    def value(self, fits: Callable[[Value], bool] = lambda v: True) -> Value | None:
        found = [v for v in self.values if fits(v)]
        return self.one(found[::-1]) if found else None

    def const(self, number: int) -> Size:
        return (number,) * self.count

    def static(self, value: Value, low: int = 1) -> list[int]:
        """Dims of one size everywhere, at least ``low``."""
        return [i for i, s in enumerate(value.shape) if len(set(s)) == 1 and s[0] >= low]

    # Making ------------------------------------------------------------------------

    def put(self, text: str, shape: tuple[Size, ...], writable: bool = True) -> Value:
        made = Value(f"v{next(self.fresh)}", shape, writable)
        self.lines.append(f"{made.name} = {text}")
        self.values.append(made)
        return made

    def statement(self) -> None:
        kinds = [
            self.pointwise, self.pointwise, self.fold, self.joined, self.view, self.view, self.view,
            self.write, self.write, self.write, self.indexed, self.size, self.made,
            self.split_plain, self.split_plain, self.split_many, self.split_write,
            self.split_write, self.two_in_a_row, self.torch_split,
        ]  # fmt: skip
        self.one(kinds)()

    def pointwise(self) -> None:
        a = self.value()
        b = self.value(lambda v: v.shape == a.shape)
        text = self.one(
            [
                "{a} + {b}", "{a} - {b}", "({a} * {b}) % 5", "{a} * 2 % 7", "{a}.square() % 5",
                "torch.maximum({a}, {b})", "torch.where({a} > 0, {a}, {b})", "{a}.clone()",
                "{a} * {k} % 5", "{a} + {k}", "{a}.masked_fill({b} > 1, 2.0)",
                "torch.nn.functional.dropout({a}, 0.5, False)", "{a}.contiguous()",
            ]
        )  # fmt: skip
        alias = text in ("{a}.contiguous()", "torch.nn.functional.dropout({a}, 0.5, False)")
        made = text.format(a=a.name, b=b.name, k=self.number())
        self.put(made, a.shape, not alias or a.writable)

    def fold(self) -> None:
        a = self.value(lambda v: len(v.shape) > 0)
        if a is None:
            return
        if a.shape[-1] == self.const(4) and self.chance():
            self.put(f"{a.name} @ self.weight % 7", a.shape)
            return
        dim = self.draw(st.integers(0, len(a.shape) - 1))
        rest = a.shape[:dim] + a.shape[dim + 1 :]
        text = self.one(["{a}.sum({d}) % 7", "torch.sum({a}, dim={d}) % 5"])
        self.put(text.format(a=a.name, d=dim), rest)

    def joined(self) -> None:
        a = self.value(lambda v: len(v.shape) > 0)
        if a is None:
            return
        dim = self.draw(st.integers(0, len(a.shape) - 1))

        def fits(v: Value) -> bool:
            same = len(v.shape) == len(a.shape)
            return same and all(i == dim or s == a.shape[i] for i, s in enumerate(v.shape))

        b = self.value(fits)
        size = tuple(x + y for x, y in zip(a.shape[dim], b.shape[dim], strict=True))
        shape = (*a.shape[:dim], size, *a.shape[dim + 1 :])
        if max(size) <= 40:
            self.put(f"torch.cat([{a.name}, {b.name}], {dim})", shape)

    # Views -------------------------------------------------------------------------

    def view(self) -> None:
        a = self.value()
        kinds = [self.unsqueezed, self.reshaped, self.alias, self.expanded]
        if a.shape:
            kinds += [self.sliced, self.picked, self.flat]
        if len(a.shape) > 1:
            kinds += [self.transposed]
        if self.static(a, 2):
            kinds += [self.parts]
        self.one(kinds)(a)

    def unsqueezed(self, a: Value) -> None:
        if len(a.shape) < 4:
            dim = self.draw(st.integers(0, len(a.shape)))
            text = f"{a.name}.unsqueeze({dim})" if dim or self.chance() else f"{a.name}[None]"
            shape = (*a.shape[:dim], self.const(1), *a.shape[dim:])
            self.put(text, shape, a.writable)

    def alias(self, a: Value) -> None:
        text = self.one(["{a}.detach()", "{a}[...]", "{a}.to(torch.float32)", "{a}.view_as({a})"])
        self.put(text.format(a=a.name), a.shape, a.writable)

    def transposed(self, a: Value) -> None:
        i, j = self.draw(st.permutations(range(len(a.shape))))[:2]
        shape = list(a.shape)
        shape[i], shape[j] = shape[j], shape[i]
        text = self.one(["{a}.transpose({i}, {j})", "torch.swapaxes({a}, {i}, {j})"])
        self.put(text.format(a=a.name, i=i, j=j), tuple(shape), a.writable)

    def reshaped(self, a: Value) -> None:
        """By its own sizes; a copy where a view cannot be had, so never written to."""
        sizes = ", ".join(f"{a.name}.shape[{i}]" for i in range(len(a.shape)))
        text = self.one(["{a}.reshape({a}.shape)", "{a}.reshape({a}.size())", "{a}.reshape({s})"])
        if sizes:
            self.put(text.format(a=a.name, s=sizes), a.shape, a.writable)

    def flat(self, a: Value) -> None:
        size = self.const(1)
        for s in a.shape:
            size = tuple(x * y for x, y in zip(size, s, strict=True))
        product = " * ".join(f"{a.name}.shape[{i}]" for i in range(len(a.shape)))
        text = self.one(["{a}.contiguous().view({p})", "{a}.clone().flatten()"])
        # contiguous() is the same memory only for some sizes; writes would show which.
        self.put(text.format(a=a.name, p=product), (size,), "clone" in text)

    def expanded(self, a: Value) -> None:
        if len(a.shape) < 3:
            number, size = self.one([("2", 2), ("3", 3)])
            self.put(
                f"{a.name}.expand({number}, *{a.name}.shape)", (self.const(size), *a.shape), False
            )

    def sliced(self, a: Value) -> None:
        dim = self.draw(st.integers(0, len(a.shape) - 1))
        size = a.shape[dim]
        options = [("1:", tuple(max(s - 1, 0) for s in size)), (":", size)]
        if min(size) >= 2:
            options += [(":-1", tuple(s - 1 for s in size)), ("1:2", self.const(1))]
        if min(size) >= 4:
            options += [("1:4:2", self.const(2)), ("2:", tuple(s - 2 for s in size))]
        if len(set(size)) > 1:
            half = tuple(s // 2 for s in size)
            options += [(f":{a.name}.shape[{dim}] // 2", half)]
        text, new = self.one(options)
        index = ", ".join([*[":"] * dim, text])
        self.put(f"{a.name}[{index}]", (*a.shape[:dim], new, *a.shape[dim + 1 :]), a.writable)

    def picked(self, a: Value) -> None:
        dim = self.draw(st.integers(0, len(a.shape) - 1))
        if min(a.shape[dim]) < 1:
            return
        index = self.one(["0", "-1"])
        text = self.one(["{a}.select({d}, {i})", "{a}[{colons}{i}]"])
        made = text.format(a=a.name, d=dim, i=index, colons=":, " * dim)
        self.put(made, a.shape[:dim] + a.shape[dim + 1 :], a.writable)

    def parts(self, a: Value) -> None:
        dim = self.one(self.static(a, 2))
        size = a.shape[dim][0]
        text, sizes = self.one(
            [
                (f"{a.name}.chunk(2, {dim})", [(size + 1) // 2, size // 2]),
                (f"{a.name}.split([1, {size - 1}], {dim})", [1, size - 1]),
                (f"torch.split({a.name}, 1, dim={dim})", [1] * size),
                (f"{a.name}.unbind({dim})", None),
            ]
        )
        name = f"p{next(self.fresh)}"
        self.lines.append(f"{name} = {text}")
        for place in range(size if sizes is None else len(sizes)):
            if self.chance():
                new = () if sizes is None else (self.const(sizes[place]),)
                shape = (*a.shape[:dim], *new, *a.shape[dim + 1 :])
                self.put(f"{name}[{place}]", shape, a.writable)

    # Writes ------------------------------------------------------------------------

    def write(self) -> None:
        a = self.value(lambda v: v.writable)
        if a is None:
            return
        b = self.value(lambda v: v.shape == a.shape) or a
        options = [
            "{a}.add_(1)", "{a}.mul_(2).remainder_(5)", "{a}.copy_({b}.clone())", "{a}.zero_()",
            "{a}.masked_fill_({b} > 1, 1.0)", "{a}[...] = {b}.clone()",
            "torch.relu_({a})", "torch.nn.functional.relu({a}, inplace=True)", "{a} += 1",
            "{a}.sub_({b}.clone())", "{a} -= {k} % 3",
            "torch.ops.aten.add_.Tensor({a}, {b}.clone())", "{a}.fill_({k} % 3)",
        ]  # fmt: skip
        if a.name.startswith("self."):  # Dynamo takes only a contiguous out=
            options += ["torch.add({b}.clone(), 1, out={a})"]
        if a.shape:
            # Of no dims, Dynamo asks how many elements a mask holds.
            options += [
                "{a}[:1] = 2.0",
                "{a}[1:].add_(1)",
                "{a}[..., :1] += 1",
                "{a}[{a} > 2] = 1.0",
            ]
            options += ["{a}[torch.arange({a}.shape[0])] = 3.0"]
            if min(a.shape[0]) >= 1:
                options += [
                    "{a}[0] = 1.0",
                    "{a}[-1].add_(2)",
                    "{a}.index_fill_(0, torch.tensor([0]), 4.0)",
                ]
        self.lines.append(self.one(options).format(a=a.name, b=b.name, k=self.number()))

    def indexed(self) -> None:
        a = self.value(lambda v: len(v.shape) > 0)
        if a is None:
            return
        kind = self.one(["flip", "fixed"])
        if kind == "fixed" and min(a.shape[0]) >= 1:
            self.put(f"{a.name}[torch.tensor([0, 0])]", (self.const(2), *a.shape[1:]))
        else:
            self.put(f"{a.name}[torch.arange({a.name}.shape[0]).flip(0)]", a.shape)

    # Sizes -------------------------------------------------------------------------

    def size(self) -> None:
        a = self.value(lambda v: len(v.shape) > 0)
        if a is None:
            return
        dim = self.draw(st.integers(0, len(a.shape) - 1))
        text = self.one(
            [
                "{a}.shape[{d}] * 2", "{a}.size({d}) // 2 + 1", "{a}.shape[{d}] + {k}",
                "{a}.numel()", "min({a}.shape[{d}], 40)", "{a}.size()[{d}] - 1", "len({a})",
            ]
        )  # fmt: skip
        name = f"k{next(self.fresh)}"
        self.lines.append(f"{name} = {text.format(a=a.name, d=dim, k=self.number())}")
        self.numbers.append(name)

    def number(self) -> str:
        return str(self.one([*self.numbers[::-1], 2, 3]))

    def made(self) -> None:
        a = self.value()
        text = self.one(
            [
                "torch.ones({a}.shape)", "torch.zeros_like({a})", "{a}.new_ones({a}.size())",
                "torch.full({a}.shape, {k} % 5, dtype=torch.float32)",
            ]
        )  # fmt: skip
        self.put(text.format(a=a.name, k=self.number()), a.shape)

    # Splitting ops -----------------------------------------------------------------

    def split_plain(self) -> None:
        a = self.value()
        if self.chance():
            self.put(f"{OPS}.fun({a.name})", a.shape)
            return
        sizes = [self.number(), *(f"{a.name}.shape[{i}]" for i in range(len(a.shape)))]
        scale = self.one(["", ", scale=2.0"])
        self.put(f"{OPS}.sized({a.name}, sizes=[{', '.join(sizes)}]{scale})", a.shape)

    def split_many(self) -> None:
        a, b = self.value(), self.value()
        name = f"p{next(self.fresh)}"
        if self.chance():
            extra = self.one(["", f", {b.name}", f", y={b.name}"])
            self.lines.append(f"{name} = {OPS}.two({a.name}{extra})")
            shapes = [a.shape, ()]
        else:
            self.lines.append(f"{name} = {OPS}.many([{a.name}, {b.name}], {self.number()})")
            shapes = [a.shape, b.shape]
        for place in self.one([(0,), (1,), (0, 1), (1, 0), (-1,), ()]):
            self.put(f"{name}[{place}]", shapes[place])

    def split_write(self) -> None:
        a, b = self.value(lambda v: v.writable), self.value()
        if a is None:
            return
        if self.chance():
            self.lines.append(f"{OPS}.mutate({a.name}, {b.name}.clone())")
        else:
            self.put(f"{OPS}.both({a.name}, {self.number()})", a.shape)
        if a.shape and self.chance():
            self.put(f"{a.name}[torch.arange({a.name}.shape[0]).flip(0)]", a.shape)

    def two_in_a_row(self) -> None:
        a = self.value()
        self.put(f"{OPS}.fun({OPS}.fun({a.name}))", a.shape)

    def torch_split(self) -> None:
        a = self.value()
        text = self.one(
            ["torch.abs({a})", "{a}.clamp(0, 3)", "torch.nn.functional.relu({a})", "torch.neg({a})"]
        )
        self.put(text.format(a=a.name), a.shape)

    # Results -----------------------------------------------------------------------

    def leaves(self) -> list[str]:
        leaves = [v.name for v in self.values[::-1]] + self.numbers
        leaves += ["None", "self.state", "2.5"]
        return leaves + [f"{v.name}.shape" for v in self.values[:2] if v.shape]

    def result(self) -> str:
        items = self.draw(st.lists(st.sampled_from(self.leaves()), min_size=1, max_size=4))
        forms = [
            "({0},)", "[{0}]", "{{'all': ({0},)}}", "{{'a': [{0}], 'b': ({{'c': x}},)}}",
            "Pair({first}, [{0}])",
        ]  # fmt: skip
        if len(items) == 1:
            forms.append("{0}")
        return str(self.one(forms)).format(", ".join(items), first=items[0])


SHAPES: tuple[tuple[str | int, ...], ...] = (("n", 4), ("n",), ("n", "m"), ("m", "n", 2), (4, "n"))


@st.composite
def programs(draw: Callable[[Any], Any], kind: type[Builder] = Builder) -> Random:
    """A random program of the statements that ``kind`` draws."""
    shapes = [("n", 4), *draw(st.lists(st.sampled_from(SHAPES), max_size=2))]
    inputs = dict(zip("xyz", shapes, strict=False))
    names = sorted({d for shape in shapes for d in shape if isinstance(d, str)})
    low = {name: draw(st.sampled_from([0, 0, 1, 2])) for name in names}
    dims = {name: pw.Dim(name, min=low[name], max=9) for name in names}
    special = [[6, 3], [1, 1], [0, 2], [9, 9], [2, 0], [3, 3]]
    order = draw(st.permutations(special))[:5]
    assignments = [
        {n: max(low[n], pair[i]) for i, n in enumerate(reversed(names))} for pair in order
    ]
    builder = kind(draw, len(assignments))
    for name, shape in inputs.items():
        size = tuple(
            tuple(a[d] for a in assignments) if isinstance(d, str) else builder.const(d)
            for d in shape
        )
        builder.values.append(Value(name, size))
    builder.values.append(Value("self.state", (builder.const(4),)))
    for _ in range(draw(st.integers(1, 8)) + draw(st.integers(0, 8))):
        builder.statement()
    builder.lines.append(f"return {builder.result()}")
    custom = (*CUSTOM, *builder.custom)
    splitting = [op for op in custom if f"{OPS}.{op[16:]}(" in "\n".join(builder.lines)]
    splitting = [op for op in splitting if draw(st.integers(0, 5))]
    found = {
        "torch.abs": "torch.abs(", "torch.Tensor.clamp": ".clamp(",
        "torch.nn.functional.relu": "functional.relu(", "aten::neg": "torch.neg(",
    }  # fmt: skip
    text = "\n".join(builder.lines)
    splitting += [op for op in TORCH if found[op] in text and draw(st.booleans())]
    alias = len(shapes) > 1 and shapes[0] == shapes[1] and draw(st.booleans())
    able = [n for n, s in inputs.items() if len(s) > 1 and min(at(s, assignments[0])) > 1]
    permuted = tuple(n for n in able if not alias and draw(st.integers(0, 3)) == 0)
    return Random(text, inputs, dims, assignments, tuple(splitting), alias, permuted)


def at(shape: tuple[str | int, ...], sizes: dict[str, int]) -> list[int]:
    return [sizes[d] if isinstance(d, str) else d for d in shape]


# Running ----------------------------------------------------------------------------


@contextlib.contextmanager
def module_of(program: Random) -> Iterator[type[torch.nn.Module]]:
    """A module class whose forward is the program; Dynamo finds its lines through linecache."""
    text = "\n".join(
        [
            "import torch",
            "from typing import NamedTuple",
            "class Pair(NamedTuple):",
            "    first: object",
            "    rest: object",
            "class Model(torch.nn.Module):",
            "    def __init__(self):",
            "        super().__init__()",
            "        self.register_buffer('state', torch.arange(4.0))",
            "        self.register_buffer('weight', torch.arange(16.0).reshape(4, 4) % 3)",
            f"    def forward(self, {', '.join(program.inputs)}):",
            textwrap.indent(program.source, " " * 8),
            "",
        ]
    )
    name = f"split_property_{next(_serial)}"
    linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    made = sys.modules[name] = types.ModuleType(name)
    try:
        exec(compile(text, name, "exec"), vars(made))
        yield made.Model
    finally:
        del sys.modules[name], linecache.cache[name]


def arguments(program: Random, sizes: dict[str, int], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for name, shape in program.inputs.items():
        value = torch.randint(-3, 4, at(shape, sizes), generator=generator).float()
        if name in program.permuted:
            value = value.movedim(0, -1).contiguous().movedim(-1, 0)
        made.append(value)
    if program.alias and seed % 2:
        made[1] = made[0]
    return made


def tensors_of(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_of(item)


def shown(value: Any, layout: bool = True) -> Any:
    """A result as something that compares: types, numbers, and every bit of every tensor.

    ``layout``: whether strides count.
    """
    if isinstance(value, torch.Tensor):
        bits = value.detach().clone(memory_format=torch.contiguous_format)
        bits = bits.view(torch.int32) if bits.dtype is torch.float32 else bits
        strides = [s for s, n in zip(value.stride(), value.shape, strict=True) if n > 1]
        strides = strides if value.numel() else []
        strides = strides if layout else []
        return value.dtype, tuple(value.shape), strides, bits.tolist()
    if isinstance(value, dict):
        return dict, [(k, shown(v, layout)) for k, v in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [shown(v, layout) for v in value]
    return type(value), value


def sharing(tensors: list[torch.Tensor]) -> list[tuple[int, int, bool]]:
    """For each tensor: the first that shares its memory, the offset there, whether it is it."""
    first: dict[int, int] = {}
    found = []
    for place, tensor in enumerate(tensors):
        memory = tensor.untyped_storage()._cdata
        leader = first.setdefault(memory, place)
        offset = tensor.storage_offset() if tensor.numel() else 0
        found.append((leader, offset, tensor is tensors[leader]))
    return found


def run(
    model: torch.nn.Module, args: list[torch.Tensor], call: Any, layout: bool = True
) -> tuple[Any, Any, Any]:
    """The result, what the inputs and the buffer hold then, and what shares memory."""
    # torch.manual_seed notes the whole stack for each kind of device that is not started yet.
    torch.default_generator.manual_seed(len(args))
    result = call(*args)
    held = [*args, model.state]
    return shown(result, layout), [shown(t) for t in held], sharing([*held, *tensors_of(result)])
