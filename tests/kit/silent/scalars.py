"""Numbers that are fixed where they vary: sizes, scalars that are tensors, arguments, counts."""

from __future__ import annotations

import contextvars
import itertools
import os

import torch
from torch import nn

from piecewise_core.protocols import CompiledGraph
from silent.base import CUT, SIZE, Call, Mutant, Program, calls, platform, rows
from silent.parts import Compiler

__all__ = ["SCALARS"]

CAPTURED = {"capture_sizes": (SIZE,), "capture_max": False}


# Parts --------------------------------------------------------------------------------------------


class BakesSizes(Compiler):
    """Keeps the first call's sizes where code computes with them."""

    def change(self, run, args, kept):
        sizes = [a for a in args if isinstance(a, int)]
        if not sizes or args[0] == 1:
            return run(*args)
        first = kept.setdefault("sizes", sizes[0])
        outs = run(*args)
        return [
            o * (first / sizes[0]) if o.is_floating_point() and o.dim() > 1 else o for o in outs
        ]


class BakesNumbers(Compiler):
    """Keeps the first value of every tensor of no dims."""

    def change(self, run, args, kept):
        for place, a in enumerate(args):
            if isinstance(a, torch.Tensor) and a.dim() == 0:
                kept.setdefault(place, a.clone())
        return run(*(kept.get(place, a) for place, a in enumerate(args)))


class BakesRows(Compiler):
    """Keeps the first call's row sums, as a quantiser that calibrates once."""

    def change(self, run, args, kept):
        outs = run(*args)
        peak = kept.setdefault("peak", max(float(o.abs().max()) for o in outs if o.numel()))
        return [o.clamp(-peak, peak) if o.is_floating_point() else o for o in outs]


class KeyedByOps(Compiler):
    """Takes code for that of another piece with the same operators, whatever their numbers."""

    def __init__(self):
        super().__init__()
        self.made = {}

    def compile(self, graph, example_inputs, *, key, config):
        nodes = tuple(str(n.target) for n in graph.graph.nodes if n.op == "call_function")
        run = self.made.setdefault((nodes, len(example_inputs)), graph.forward)
        return CompiledGraph(lambda *args: run(*args))


# Programs -----------------------------------------------------------------------------------------


def by_rows(dtype):
    def model(x):
        return torch.softmax(x * x.shape[0], -1) + x.shape[0]

    def program():
        return Program(model, calls(4, 6, 3, 9, 4, dtype=dtype))

    return program


def by_number(dtype):
    class Timed(nn.Module):
        def forward(self, x, t):
            return torch.softmax(x + t, -1) * t

    def program():
        steps = [
            Call(rows(SIZE, dtype=dtype, seed=i), torch.tensor(float(i + 1), dtype=dtype))
            for i in range(4)
        ]
        return Program(Timed(), steps)

    return program


def keyword_number(x, *, gain):
    return {"y": [torch.softmax(x, -1) * gain["by"]], "rows": x.shape[0]}


def by_keyword():
    steps = [Call(rows(seed=i), gain={"by": torch.tensor(i + 2.0)}) for i in range(4)]
    return Program(keyword_number, steps)


def held_number():
    class Held(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.tensor(2.0))

        def forward(self, x):
            return torch.softmax(x, -1) * self.scale

    model = Held()
    return Program(model, [*calls(4, 4), lambda: model.scale.fill_(5.0), *calls(4, 4)])


def growing(dtype):
    def model(x):
        return torch.softmax(x, -1) + x * 2

    def program():
        loud = [Call(rows(size, dtype=dtype, seed=9) * 7) for size in (4, 4, 5)]
        return Program(model, [*calls(4, 4, dtype=dtype), *loud])

    return program


def two_layers():
    def model(x):
        return torch.softmax(torch.softmax(x * 2 + 1, -1) * 3 + 4, -1) - 1

    return Program(model, calls(4, 4, 7))


CONTEXT = contextvars.ContextVar("gain", default=2.0)
VARIABLE = "PIECEWISE_MUTANT_GAIN"


def in_context():
    def model(x):
        return torch.softmax(x, -1) * CONTEXT.get()

    CONTEXT.set(2.0)
    return Program(model, [*calls(4, 4), lambda: CONTEXT.set(5.0) and None, *calls(4, 4)])


def in_environment():
    def model(x):
        return torch.softmax(x, -1) * float(os.environ[VARIABLE])

    def put(value):
        os.environ[VARIABLE] = value

    put("2.0")
    return Program(model, [*calls(4, 4), lambda: put("5.0"), *calls(4, 4)])


class Slots:
    __slots__ = ("gain",)

    def __init__(self):
        self.gain = 2.0


def in_slots():
    held = Slots()

    def model(x):
        return torch.softmax(x, -1) * held.gain

    return Program(model, [*calls(4, 4), lambda: setattr(held, "gain", 5.0), *calls(4, 4)])


def in_generator():
    counter = itertools.count(1)

    def model(x):
        return torch.softmax(x, -1) * next(counter)

    return Program(model, calls(4, 4, 4))


def read_of_a_tensor():
    def model(x):
        return torch.softmax(x, -1) * float(x[0, 0])

    return Program(model, calls(4, 4, 4))


def as_integers():
    def model(x):
        return torch.softmax(x.float(), -1) + x * x.shape[0]

    return Program(model, calls(4, 6, 4, dtype=torch.int32))


def _mutants():
    kind = "baked scalar"
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        name = str(dtype)[6:]
        yield Mutant(
            kind, f"a compiler keeps the first call's size, {name}", by_rows(dtype),
            platform(compiler=BakesSizes), settings=CUT,
        )  # fmt: skip
    for dtype, captured in ((torch.float32, False), (torch.float32, True), (torch.float16, True)):
        name = f"{str(dtype)[6:]}{', captured' if captured else ''}"
        settings = {**CUT, **(CAPTURED if captured else {})}
        yield Mutant(
            kind, f"a compiler keeps a timestep of no dims, {name}", by_number(dtype),
            platform(compiler=BakesNumbers), settings=settings,
        )  # fmt: skip
    yield Mutant(
        kind, "a compiler keeps a number in a dict that is a keyword", by_keyword,
        platform(compiler=BakesNumbers), settings=CUT,
    )  # fmt: skip
    yield Mutant(
        kind, "a compiler keeps a buffer of no dims", held_number,
        platform(compiler=BakesNumbers), settings=CUT,
    )  # fmt: skip
    yield Mutant(
        kind, "a compiler keeps a timestep, at torch.compile's door", by_number(torch.float32),
        platform(compiler=BakesNumbers), front="door", settings=CUT,
    )  # fmt: skip
    for dtype in (torch.float32, torch.float16):
        yield Mutant(
            kind, f"a quantiser that calibrates once, {str(dtype)[6:]}", growing(dtype),
            platform(compiler=BakesRows), settings=CUT,
        )  # fmt: skip
    yield Mutant(
        kind, "code that is found by its operators alone", two_layers,
        platform(compiler=KeyedByOps), settings=CUT,
    )  # fmt: skip
    yield Mutant(
        kind, "code found by its operators alone, captured", two_layers,
        platform(compiler=KeyedByOps), settings={**CUT, **CAPTURED},
    )  # fmt: skip
    for front in ("compile", "record"):
        for what, program in (
            ("in a context variable", in_context),
            ("in an environment variable", in_environment),
            ("in a slot", in_slots),
        ):
            settings = {**CUT, **(CAPTURED if front == "record" else {})}
            yield Mutant(
                kind,
                f"a number {what}, {front.rstrip('e')}ed",
                program,
                front=front,
                settings=settings,
                blind=True,
            )
        if front == "compile":
            yield Mutant(kind, "a number from a counter", in_generator, settings=CUT)
    yield Mutant(
        kind, "a number that Python reads of a tensor, recorded", read_of_a_tensor, front="record",
        settings={**CUT, **CAPTURED},
    )  # fmt: skip
    yield Mutant(
        kind, "a compiler keeps the first call's size, integers beside", as_integers,
        platform(compiler=BakesSizes), settings=CUT,
    )  # fmt: skip


SCALARS = tuple(_mutants())
