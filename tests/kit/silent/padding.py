"""Rows of padding that reach a call's own rows."""

from __future__ import annotations

from functools import partial

import torch
from torch.library import custom_op

from silent.base import CUT, Call, Mutant, Program, platform, rows
from silent.parts import Compiler, floats

__all__ = ["PADDINGS"]

PADDED = {"capture_sizes": (8,), "capture_max": False, "padding": "capture_sizes"}


def lying(name, change):
    """An operator that says it is element-wise, and mixes rows: what ``change`` does."""

    @custom_op(f"silent::{name}", mutates_args=(), tags=(torch.Tag.pointwise,))
    def op(x: torch.Tensor) -> torch.Tensor:
        return change(x).to(x.dtype)

    op.register_fake(torch.empty_like)
    return getattr(torch.ops.silent, name)


OPERATORS = {
    "the mean of all rows": lying("less_mean", lambda x: x - x.mean(0)),
    "how many rows there are": lying("by_count", lambda x: x * x.shape[0]),
    "a softmax over rows": lying("over_rows", lambda x: torch.softmax(x.float(), 0)),
    "the last row": lying("last_row", lambda x: x + x[-1:]),
    "sums from the end": lying("from_the_end", lambda x: x.flip(0).cumsum(0).flip(0)),
    "the sum of magnitudes, as a quantiser": lying(
        "quantised", lambda x: (x / x.abs().sum() * 1000).round()
    ),
    "the number of ones": lying("ones", lambda x: x + (x == 1).sum()),
    "a row for another, turned around": lying("turned", lambda x: x.flip(0).contiguous()),
}


LATE = {"on": False}


@custom_op("silent::late", mutates_args=(), tags=(torch.Tag.pointwise,))
def late(x: torch.Tensor) -> torch.Tensor:
    """Mixes rows from some call on, when nobody compares padded calls any more."""
    return x - x.mean(0) if LATE["on"] else x.clone()


late.register_fake(torch.empty_like)


def leaking_late(dtype):
    def model(x):
        return {"y": torch.softmax(torch.ops.silent.late(x.cos()), -1), "rows": x.shape[0]}

    def program():
        LATE["on"] = False
        turn = partial(LATE.update, on=True)
        steps = [Call(rows(s, dtype=dtype, seed=i)) for i, s in enumerate((8, 5, 5, 3, 3))]
        return Program(model, [*steps, turn, *steps])

    return program


def through(op, dtype):
    def model(x):
        return torch.softmax(op(x.cos()).float(), -1) * 2, op(x.cos() + 1)

    def program():
        sizes = (8, 5, 5, 3, 3, 5, 3)
        return Program(model, [Call(rows(s, dtype=dtype, seed=i)) for i, s in enumerate(sizes)])

    return program


class MixesEight(Compiler):
    """Fused code for eight rows, which every row takes the last of."""

    def change(self, run, args, kept):
        return floats(run(*args), lambda o: o + o[7:].abs() if o.shape[0] == 8 else o)


def plain():
    def model(x):
        return torch.softmax(x.cos() + 1, -1) * 2

    return Program(model, [Call(rows(s, seed=i)) for i, s in enumerate((5, 5, 3, 3, 5))])


def _mutants():
    kind = "leaked padding"
    for place, (what, op) in enumerate(OPERATORS.items()):
        dtype = (torch.float32, torch.float64, torch.bfloat16, torch.float16)[place % 4]
        name = f"{what}, {str(dtype)[6:]}"
        yield Mutant(kind, name, through(op, dtype), settings={**CUT, **PADDED})
        if place % 2:
            yield Mutant(
                kind, f"{name}, recorded", through(op, dtype), front="record",
                settings={**CUT, **PADDED},
            )  # fmt: skip
    for dtype, front in ((torch.float32, "compile"), (torch.bfloat16, "compile"),
                         (torch.float64, "record")):  # fmt: skip
        name = f"from some call on, {str(dtype)[6:]}, {front.rstrip('e')}ed"
        settings = {**CUT, **PADDED}
        yield Mutant(kind, name, leaking_late(dtype), front=front, settings=settings)
    yield Mutant(
        kind, "code that mixes rows where there are eight", plain,
        platform(compiler=MixesEight), settings={**CUT, **PADDED},
    )  # fmt: skip


PADDINGS = tuple(_mutants())
