"""Attention that is captured uncut, and reads what the host keeps: lengths, tables, a mode."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.library import custom_op

from piecewise_core.testing import SimulatedPlatform
from silent.base import SIZE, Call, Mutant, Program, calls, platform, random, rows
from silent.parts import Driver

__all__ = ["HOSTS"]

CAPTURED = {"capture_sizes": (SIZE,), "capture_max": False}


@dataclass
class Host:
    """What the host knows of a batch, as serving engines keep it beside the model."""

    length: int = 4
    gain: float = 1.0
    table: list[int] = field(default_factory=lambda: [0, 1, 2, 3])
    causal: bool = False


HOST = Host()


def reset(**state):
    """The host's state, put to what it is before the first call and then as said."""
    for name, value in {**vars(Host()), **state}.items():
        setattr(HOST, name, value)


def _attend(q, k, v):
    scores = q @ k.mT / 8**0.5 * HOST.gain
    columns = torch.arange(k.shape[-2])
    scores = scores.masked_fill(columns >= HOST.length, float("-inf"))
    if HOST.causal:
        scores = scores.masked_fill(columns > torch.arange(q.shape[-2])[:, None], float("-inf"))
    return torch.softmax(scores, -1) @ v


@custom_op("silent::attend", mutates_args=())
def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return _attend(q, k, v)


@custom_op("silent::paged", mutates_args=())
def paged(q: torch.Tensor, cache: torch.Tensor) -> torch.Tensor:
    rows = cache[torch.tensor(HOST.table)]
    return _attend(q, rows, rows)


@custom_op("silent::attend_into", mutates_args={"out"})
def attend_into(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(_attend(q, k, v))


attend.register_fake(lambda q, k, v: torch.empty_like(q))
paged.register_fake(lambda q, cache: torch.empty_like(q))
attend_into.register_fake(lambda q, k, v, out: None)


class TakesByValue(Driver):
    """A device: what a kernel's launch read of the host is in the graph, by value."""

    def alter(self, graph, operations):
        for operation in operations:
            if operation.function._schema.name.startswith("silent::"):
                object.__setattr__(operation, "function", _launched(operation.function))


def _launched(function):
    state = {name: getattr(HOST, name) for name in vars(Host())}
    state["table"] = list(HOST.table)

    def launch(*args, **kwargs):
        before = dict(vars(HOST))
        vars(HOST).update(state)
        try:
            return function(*args, **kwargs)
        finally:
            vars(HOST).update(before)

    return launch


class Heads(nn.Module):
    def __init__(self, dtype, call):
        super().__init__()
        self.project = nn.Linear(8, 24, dtype=dtype)
        self.project.weight.data = random(24, 8, dtype=dtype)
        self.project.bias.data = random(24, dtype=dtype)
        self.register_buffer("cache", random(8, 8, dtype=dtype, seed=4))
        self.call = call

    def forward(self, x):
        q, k, v = self.project(x).chunk(3, -1)
        return {"attended": self.call(self, q, k, v) + x}


def by_value(module, q, k, v):
    return torch.ops.silent.attend(q, k, v)


def by_keyword(module, q, k, v):
    return torch.ops.silent.attend(q, v=v, k=k)


def from_pages(module, q, k, v):
    return torch.ops.silent.paged(q, module.cache)


def into_memory(module, q, k, v):
    out = torch.zeros_like(q)
    torch.ops.silent.attend_into(q, k, v, out)
    return out


def attending(call, dtype=torch.float32, **state):
    def program():
        reset()
        steps = [*calls(4, 4, dtype=dtype), lambda: reset(**state), *calls(4, 4, dtype=dtype)]
        return Program(Heads(dtype, call), steps)

    return program


def in_python():
    """Attention that is written in Python, and reads the host's lengths itself."""
    reset()
    lengths = [4]

    def model(x):
        scores = x @ x.mT
        scores = scores.masked_fill(torch.arange(x.shape[0]) >= lengths[0], float("-inf"))
        return torch.softmax(scores, -1) @ x

    return Program(model, [*calls(4, 4), lambda: lengths.__setitem__(0, 2), *calls(4, 4)])


def lengths_on_the_host():
    """Lengths that are a tensor, from which Python takes a number."""

    def model(x, lengths):
        scores = x @ x.mT
        scores = scores.masked_fill(torch.arange(x.shape[0]) >= int(lengths[0]), float("-inf"))
        return torch.softmax(scores, -1) @ x

    return Program(model, [Call(rows(seed=i), torch.tensor([4 - i])) for i in range(3)])


def _mutants():
    kind = "attention reads host state"
    lying = platform(driver=TakesByValue)
    for what, program in (
        ("a length", attending(by_value, length=2)),
        ("a length, float64", attending(by_value, torch.float64, length=1)),
        ("a mode, by keyword", attending(by_keyword, causal=True)),
        ("a scale, bfloat16", attending(by_value, torch.bfloat16, gain=9.0)),
        ("a table of pages", attending(from_pages, table=[7, 5, 3, 1])),
        ("a length, and writes to memory that it is given", attending(into_memory, length=2)),
    ):
        yield Mutant(kind, f"{what}, captured uncut", program, lying, settings=CAPTURED)
    for what, program in (
        ("a length", attending(by_value, length=2)),
        ("a table of pages", attending(from_pages, table=[7, 5, 3, 1])),
        ("a length, and writes to memory that it is given", attending(into_memory, length=2)),
    ):
        yield Mutant(
            kind, f"{what}, recorded uncut", program, lying, front="record", settings=CAPTURED
        )
    yield Mutant(
        kind, "a length, in one graph", attending(by_value, length=2), lying,
        settings={**CAPTURED, "graph_mode": "full"},
    )  # fmt: skip
    yield Mutant(kind, "a length in a list, in Python", in_python, settings=CAPTURED, blind=True)
    yield Mutant(
        kind, "a length in a list, in Python, recorded", in_python, front="record",
        settings=CAPTURED, blind=True,
    )  # fmt: skip
    yield Mutant(
        kind, "a length that Python takes of a tensor, recorded", lengths_on_the_host,
        SimulatedPlatform, "record", CAPTURED,
    )  # fmt: skip


HOSTS = tuple(_mutants())
