"""Random programs with sizes that depend on data, before, behind and beside cuts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from random_programs import OPS, Size, Value
from wider_programs import Wider


@dataclass(frozen=True)
class Ragged:
    """A variable whose first size depends on data; ``rest``: the others. ``writable`` as ever."""

    name: str
    rest: tuple[Size, ...]
    writable: bool = True


@dataclass
class Varying(Wider):
    """Draws the statements of ``Wider``, and those that make and use such sizes."""

    ragged: list[Ragged] = field(default_factory=list)

    def statement(self) -> None:
        if not self.chance():
            super().statement()
        elif self.ragged and self.chance():
            self.one([self.used, self.used, self.written, self.folded, self.cut, self.counted])()
        else:
            self.one([self.selected, self.repeated, self.prefix, self.sized])()

    # Making ------------------------------------------------------------------------

    def loose(self, text: str, rest: tuple[Size, ...], writable: bool = True) -> None:
        made = Ragged(f"d{next(self.fresh)}", rest, writable)
        self.lines.append(f"{made.name} = {text}")
        self.ragged.append(made)

    def selected(self) -> None:
        """Some elements, or their places."""
        a = self.value(lambda v: len(v.shape) > 0)
        if a is None:
            return
        whole = self.one(
            [
                "{a}.masked_select({a} > 0)", "{a}[{a} > 0]", "torch.unique({a})",
                "({a} > 0).flatten().nonzero()[:, 0].float()",
                "torch.unique({a}.flatten(), return_counts=True)[1].float()",
            ]
        )  # fmt: skip
        rows = self.one(
            [
                "{a}[{m}]", "{a}[{m}.nonzero()[:, 0]]", "{a}.index_select(0, {m}.nonzero()[:, 0])",
                "{a}[torch.where({m})[0]]",
            ]
        )  # fmt: skip
        if self.chance():
            self.loose(whole.format(a=a.name), ())
        else:
            self.loose(rows.format(a=a.name, m=self.mask(a)), a.shape[1:])

    def mask(self, a: Value) -> str:
        return f"({a.name}.flatten(1).sum(1) > 0)" if len(a.shape) > 1 else f"({a.name} > 0)"

    def repeated(self) -> None:
        a = self.value(lambda v: len(v.shape) > 0)
        if a is not None:
            self.loose(f"{a.name}.repeat_interleave({self.mask(a)}.long() + 1, 0)", a.shape[1:])

    def rows(self, a: Value) -> str:
        """A number of rows of ``a``, which data gives."""
        name = f"u{next(self.fresh)}"
        self.lines.append(f"{name} = {self.mask(a)}.sum().item()")
        if self.chance():
            self.lines.append(f"torch._check({name} >= 0)")
            self.lines.append(f"torch._check({name} <= {a.name}.shape[0])")
        return name

    def prefix(self) -> None:
        """Rows of ``a`` itself: writes to them are seen there."""
        a = self.value(lambda v: len(v.shape) > 0)
        if a is not None:
            n = self.rows(a)
            text = self.one(["{a}[:{n}]", "{a}.narrow(0, 0, {n})", "{a}[{a}.shape[0] - {n}:]"])
            self.loose(text.format(a=a.name, n=n), a.shape[1:], a.writable)

    def sized(self) -> None:
        a = self.value(lambda v: len(v.shape) > 0)
        if a is not None:
            n = self.rows(a)
            text, rest = self.one(
                [("torch.zeros({n}, 4)", (self.const(4),)), ("torch.arange({n}).float()", ()),
                 ("torch.full(({n},), {k} % 5.0)", ())]
            )  # fmt: skip
            self.loose(text.format(n=n, k=self.number()), rest)

    # Using -------------------------------------------------------------------------

    def any_ragged(self, fits: Callable[[Ragged], bool] = lambda r: True) -> Ragged | None:
        found = [r for r in self.ragged if fits(r)]
        return self.one(found[::-1]) if found else None

    def used(self) -> None:
        d = self.any_ragged()
        assert d is not None
        text, writable = self.one(
            [
                ("{d} * 2 % 5", True), ("{d} + 1", True), ("{d}.clone()", True),
                ("{d}[...]", d.writable), ("{d}.flip(0)", True), ("torch.cat([{d}, {d}])", True),
                ("{d} + {k} % 3", True), ("torch.where({d} > 0, {d}, -{d})", True),
                ("{d}.masked_fill({d} > 1, 2.0)", True), ("{d}[1:]", d.writable),
            ]
        )  # fmt: skip
        self.loose(text.format(d=d.name, k=self.number()), d.rest, writable)

    def written(self) -> None:
        d = self.any_ragged(lambda r: r.writable)
        if d is not None:
            text = self.one(
                ["{d}.add_(1)", "{d}.mul_(2).remainder_(5)", "{d} += 1", "{d}[:1] = 2.0",
                 "{d}.zero_()", OPS + ".mutate({d}, {d}.clone())"]
            )  # fmt: skip
            self.lines.append(text.format(d=d.name))

    def folded(self) -> None:
        """Sizes that are known again: what follows may be compiled and captured."""
        d = self.any_ragged()
        assert d is not None
        self.put(self.one(["{d}.sum(0) % 7", "({d} > 0).sum(0).float()"]).format(d=d.name), d.rest)

    def cut(self) -> None:
        d = self.any_ragged()
        assert d is not None
        text = self.one(["fun({d})", "two({d})[0]", "one({d})[0]", "nested({d})[1][1]",
                         "sized({d}, sizes=[{d}.shape[0], 2])", "named({d}, 'layer')"])  # fmt: skip
        self.loose(f"{OPS}.{text.format(d=d.name)}", d.rest)

    def counted(self) -> None:
        d = self.any_ragged()
        assert d is not None
        text = self.one(["{d}.shape[0]", "{d}.size(0) * 2", "{d}.numel() + 1"])
        name = f"k{next(self.fresh)}"
        self.lines.append(f"{name} = {text.format(d=d.name)}")
        self.numbers.append(name)

    def leaves(self) -> list[str]:
        return [r.name for r in self.ragged[::-1]] * 2 + super().leaves()
