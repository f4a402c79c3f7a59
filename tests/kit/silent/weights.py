"""Weights that were packed, copied or captured before others were loaded."""

from __future__ import annotations

import torch
from torch import nn

from silent.base import CUT, SIZE, Mutant, Program, calls, platform, random
from silent.parts import Compiler, Driver

__all__ = ["WEIGHTS"]

CAPTURED = {**CUT, "capture_sizes": (SIZE,), "capture_max": False}


class Packs(Compiler):
    """Packs weights at their first use: what has a weight's shape."""

    def change(self, run, args, kept):
        for place, a in enumerate(args):
            if isinstance(a, torch.Tensor) and tuple(a.shape) in ((8, 8), (8,)):
                kept.setdefault(place, a.detach().clone())
        return run(*(kept.get(place, a) for place, a in enumerate(args)))


class PacksByAddress(Compiler):
    """Packs weights once per address, as a cache of prepared weights does."""

    packed: dict[int, torch.Tensor]

    def __init__(self):
        super().__init__()
        self.packed = {}

    def change(self, run, args, kept):
        def pack(a):
            if not isinstance(a, torch.Tensor) or tuple(a.shape) != (8, 8):
                return a
            return self.packed.setdefault(a.data_ptr(), a.detach().clone())

        return run(*map(pack, args))


class CopiesOutside(Driver):
    """Graphs that read copies of all that lies outside their pool, but what is staged."""

    def alter(self, graph, operations):
        for operation in operations:
            self.keep(operation, lambda frozen: frozen._owner is not None and _is_weight(frozen))


def _is_weight(frozen):
    return tuple(frozen._layout.size) in ((8, 8), (8,))


class Block(nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("shift", random(8, dtype=dtype, seed=5))
        self.linear.to(dtype)
        self.load_state_dict(state(1, dtype))
        self.requires_grad_(False)

    def forward(self, x):
        return torch.softmax(self.linear(x), -1) @ self.linear.weight + self.shift


def state(seed, dtype=torch.float32):
    return {
        "linear.weight": random(8, 8, dtype=dtype, seed=seed),
        "linear.bias": random(8, dtype=dtype, seed=seed + 1),
        "shift": random(8, dtype=dtype, seed=seed + 2),
    }


def reloaded(change, dtype=torch.float32):
    def program():
        model = Block(dtype)
        steps = [*calls(4, 4, 6, dtype=dtype), lambda: change(model), *calls(4, 4, 6, dtype=dtype)]
        return Program(model, steps)

    return program


def load(model):
    model.load_state_dict(state(7, model.shift.dtype))


def assign(model):
    model.load_state_dict(state(7, model.shift.dtype), assign=True)


def swap_data(model):
    model.linear.weight.data = state(7)["linear.weight"]


def halve(model):
    model.linear.weight.mul_(0.5)


def write_shift(model):
    model.shift.copy_(state(7)["shift"])


def merge(model):
    """As an adapter is merged: a product of two thin matrices is added in place."""
    model.linear.weight.addmm_(random(8, 2, seed=8), random(2, 8, seed=9))


def replace_layer(model):
    other = nn.Linear(8, 8)
    other.weight.data, other.bias.data = random(8, 8, seed=7), random(8, seed=8)
    model.linear = other.requires_grad_(False)


def held_in_a_list():
    """Weights that no module owns, in a list whose tensor is written to."""
    weights = [random(8, 8, seed=1)]

    def model(x):
        return torch.softmax(x @ weights[0], -1)

    return Program(
        model, [*calls(4, 4), lambda: weights[0].copy_(random(8, 8, seed=7)), *calls(4, 4)]
    )


def _mutants():
    kind = "stale weights"
    for what, change, dtype in (
        ("a state dict is loaded", load, torch.float32),
        ("a state dict is loaded, float64", load, torch.float64),
        ("a state dict is assigned", assign, torch.float32),
        ("a layer is replaced", replace_layer, torch.float32),
        ("a parameter's data are others", swap_data, torch.float32),
        ("an adapter is merged", merge, torch.float32),
        ("a buffer is written to", write_shift, torch.float32),
    ):
        yield Mutant(
            kind, f"packed at first use, then {what}", reloaded(change, dtype),
            platform(compiler=Packs), settings=CUT,
        )  # fmt: skip
    for what, change in (("a state dict is loaded", load), ("weights are halved", halve)):
        yield Mutant(
            kind, f"packed per address, then {what}", reloaded(change),
            platform(compiler=PacksByAddress), settings=CAPTURED,
        )  # fmt: skip
        for front in ("compile", "record"):
            yield Mutant(
                kind, f"copied into a graph, then {what}, {front.rstrip('e')}ed",
                reloaded(change), platform(driver=CopiesOutside), front, CAPTURED,
            )  # fmt: skip
    yield Mutant(
        kind, "packed at first use, at torch.compile's door", reloaded(load),
        platform(compiler=Packs), front="door", settings=CUT,
    )  # fmt: skip
    yield Mutant(
        kind, "copied into a graph from a list of weights", held_in_a_list,
        platform(driver=CopiesOutside), settings=CAPTURED,
    )  # fmt: skip


WEIGHTS = tuple(_mutants())
