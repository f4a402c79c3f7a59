"""L1: compilers that are right about ordinary inputs only, or about the first call's sizes."""

from __future__ import annotations

import torch

from mutants.base import device
from mutants.compilers import _Wrong

__all__ = ["NUMBERS"]


class AssumesRows(_Wrong):
    """Reads every input as rows, one behind the other."""

    def change(self, run, sizes, args):
        return run(*map(self.as_rows, args))

    def as_rows(self, value):
        if not isinstance(value, torch.Tensor) or value.is_contiguous():
            return value
        behind = value.untyped_storage().nbytes() // value.element_size() - value.storage_offset()
        if value.numel() > behind:
            return value.contiguous()
        dense = torch.empty(value.shape, device="meta").stride()
        return value.as_strided(value.shape, dense)


class Narrow(_Wrong):
    """Computes ``dtype`` as ``through``."""

    dtype, through = torch.float64, torch.float32

    def change(self, run, sizes, args):
        outs = run(*args)
        return tuple(o.to(self.through).to(o.dtype) if o.dtype is self.dtype else o for o in outs)


class NarrowWhole(Narrow):
    dtype, through = torch.int64, torch.int32


class HidesNan(_Wrong):
    def change(self, run, sizes, args):
        outs = run(*args)
        hidden = (o.nan_to_num(0.0, torch.inf, -torch.inf) for o in outs)
        return tuple(h if o.isnan().any() else o for h, o in zip(hidden, outs, strict=True))


class FirstSizes(_Wrong):
    """Computes with the sizes of its first call."""

    def __init__(self):
        self.first = {}

    def change(self, run, sizes, args):
        kept = [
            a if isinstance(a, torch.Tensor) else self.first.setdefault((run, place), a)
            for place, a in enumerate(args)
        ]
        return run(*kept)


class OneSize(_Wrong):
    """Takes the first size for all of them."""

    def change(self, run, sizes, args):
        return run(*(a if isinstance(a, torch.Tensor) else args[0] for a in args))


class NoScalars(_Wrong):
    def change(self, run, sizes, args):
        return tuple(o if o.dim() else o.reshape(1) for o in run(*args))


_WIDE = "test_wide_numbers_stay_wide"

NUMBERS = (
    device(
        "inputs that are read as rows, however they lie",
        "test_inputs_that_lie_otherwise_are_as_eager",
        compiler=AssumesRows,
    ),
    device("float64 computed as float32", _WIDE, compiler=Narrow),
    device("int64 computed as int32", _WIDE, compiler=NarrowWhole),
    device(
        "code that makes numbers of nan", "test_nan_and_infinity_are_as_eager_s", compiler=HidesNan
    ),
    device(
        "the first call's sizes as constants",
        "test_sizes_used_as_numbers_are_as_eager",
        compiler=FirstSizes,
    ),
    device("one size taken for two", "test_two_sizes_are_told_apart", compiler=OneSize),
    device(
        "results without dims that get one",
        "test_results_of_any_rank_are_as_eager_s",
        compiler=NoScalars,
    ),
)
