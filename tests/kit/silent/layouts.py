"""Memory that lies otherwise than code believes."""

from __future__ import annotations

import torch
from torch.library import custom_op

from silent.base import CUT, SIZE, Call, Mutant, Program, calls, platform, random, rows
from silent.parts import Compiler, Driver, floats

__all__ = ["LAYOUTS"]

CAPTURED = {"capture_sizes": (SIZE,), "capture_max": False}


def raw(tensor):
    """The tensor's memory in order, as a kernel that knows of no strides reads it."""
    flat = tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    return flat.clone().view(tensor.shape)


def is_turned(value):
    return isinstance(value, torch.Tensor) and value.dim() > 1 and not value.is_contiguous()


class ReadsInOrder(Compiler):
    """Code that reads every input as if it were contiguous."""

    def change(self, run, args, kept):
        return run(*(raw(a) if is_turned(a) and _dense(a) else a for a in args))


def _dense(tensor):
    return tensor.numel() == 1 + sum(
        (size - 1) * step for size, step in zip(tensor.shape, tensor.stride(), strict=True)
    )


class WritesInOrder(Compiler):
    """Code that writes what it returns in order, and says that it lies as was asked."""

    def change(self, run, args, kept):
        def written(out):
            if not is_turned(out) or not _dense(out):
                return out
            made = torch.empty_strided(out.shape, out.stride(), dtype=out.dtype)
            made.as_strided((out.numel(),), (1,)).copy_(out.reshape(-1))
            return made

        return floats(run(*args), written)


class ReturnsTurned(Compiler):
    """A vendor's pass that returns square results in column order."""

    def change(self, run, args, kept):
        return floats(run(*args), lambda o: o.mT if _is_square(o) else o)


class ReturnsForeign(Compiler):
    """Returns the right numbers in another layout, in rows that are wider than they are."""

    def change(self, run, args, kept):
        def widened(out):
            wide = out.new_full((*out.shape[:-1], out.shape[-1] + 3), 9)
            wide[..., : out.shape[-1]] = out
            return wide.as_strided(out.shape, out.stride())

        return floats(run(*args), lambda o: widened(o) if o.dim() > 1 and o.is_contiguous() else o)


class TakesFixedOffset(Compiler):
    """Code that reads a view from where its memory begins."""

    def change(self, run, args, kept):
        def begun(a):
            if isinstance(a, torch.Tensor) and a.storage_offset():
                return a.as_strided(a.shape, a.stride(), 0)
            return a

        return run(*map(begun, args))


class GraphsInOrder(Driver):
    """Records transposed operands of products as if they lay in order."""

    def alter(self, graph, operations):
        for operation in operations:
            if "mm" in operation.function._schema.name:
                object.__setattr__(operation, "function", _in_order(operation.function))


def _in_order(function):
    def run(*args):
        return function(*(raw(a) if is_turned(a) and _dense(a) else a for a in args))

    return run


def _is_square(tensor):
    return tensor.dim() > 1 and tensor.shape[-1] == tensor.shape[-2]


@custom_op("silent::in_order", mutates_args=())
def in_order(x: torch.Tensor) -> torch.Tensor:
    """A kernel that knows of no strides, behind code that gives it another layout than eager."""
    return raw(x) * 2


@custom_op("silent::heads_first", mutates_args=())
def heads_first(x: torch.Tensor) -> torch.Tensor:
    """Right, in another layout than its fake says."""
    return (x * 2).mT.contiguous().mT


in_order.register_fake(lambda x: torch.empty_like(x, memory_format=torch.contiguous_format))
heads_first.register_fake(lambda x: torch.empty_like(x, memory_format=torch.contiguous_format))


def turned(dtype=torch.float32):
    """What crosses the cut is transposed."""

    def model(x):
        z = x.view(-1, 2, 4).transpose(1, 2) * 2
        return torch.softmax(z, -1) + z.sin().transpose(1, 2).contiguous().transpose(1, 2)

    return lambda: Program(model, calls(4, 4, 6, dtype=dtype))


def returned_turned():
    def model(x):
        return [(x * 3).view(-1, 2, 4).transpose(0, 1), {"whole": x.sin()}]

    return Program(model, calls(4, 4, 6))


def given_turned():
    def model(x, w):
        return torch.softmax(x @ w, -1) @ w + 1

    weights = random(8, 8, seed=3)
    return Program(model, [Call(rows(s, seed=s), weights.mT) for s in (4, 4, 6)])


def square():
    def model(x):
        scores = x.mT @ x
        return torch.softmax(scores, -1) @ (scores.tril() + 1)

    return Program(model, calls(4, 4, 6))


def offset():
    def model(x):
        left, right = x.chunk(2, -1)
        return torch.softmax(left * 2, -1) + torch.softmax(right, -1) * right.sin()

    return Program(model, calls(4, 4, 6))


def through_a_kernel():
    def model(x):
        return torch.softmax(torch.ops.silent.in_order(x.sin() * 2), -1)

    return Program(model, calls(4, 4, 6))


def through_heads():
    def model(x):
        return torch.ops.silent.heads_first(x.sin()).view(-1) * 2

    return Program(model, calls(4, 4, 6))


class ColumnOrder(Compiler):
    """Keeps what is between its own code and a kernel in column order."""

    def compile(self, graph, example_inputs, *, key, config):
        for node in list(graph.graph.nodes):
            if "silent.in_order" in str(node.target):
                with graph.graph.inserting_before(node):
                    across = graph.graph.call_method("t", (node.args[0],))
                    laid = graph.graph.call_method("contiguous", (across,))
                    back = graph.graph.call_method("t", (laid,))
                node.args = (back,)
        graph.recompile()
        return super().compile(graph, example_inputs, key=key, config=config)


def _mutants():
    kind = "foreign layout"
    for what, program, part, settings in (
        ("code reads transposed inputs in order", turned(), ReadsInOrder, CUT),
        ("code reads them in order, float16, captured", turned(torch.float16), ReadsInOrder,
         {**CUT, **CAPTURED}),
        ("code reads a caller's transposed weights in order", given_turned, ReadsInOrder, CUT),
        ("code writes transposed results in order", turned(), WritesInOrder, CUT),
        ("code writes results of the model in order", returned_turned, WritesInOrder, {}),
        ("a vendor's pass returns squares turned", square, ReturnsTurned, CUT),
        ("a vendor's pass returns squares turned, captured", square, ReturnsTurned,
         {**CUT, **CAPTURED}),
        ("a vendor's pass pads its rows", turned(), ReturnsForeign, CUT),
        ("code reads a view from its memory's begin", offset, TakesFixedOffset, CUT),
        ("a kernel without strides is given columns", through_a_kernel, ColumnOrder, CUT),
        ("a kernel without strides is given columns, captured", through_a_kernel, ColumnOrder,
         CAPTURED),
    ):  # fmt: skip
        yield Mutant(kind, what, program, platform(compiler=part), settings=settings)
    yield Mutant(
        kind, "code writes transposed results in order, at torch.compile's door", turned(),
        platform(compiler=WritesInOrder), front="door", settings=CUT,
    )  # fmt: skip
    for front in ("compile", "record"):
        yield Mutant(
            kind, f"a graph's products read in order, {front.rstrip('e')}ed", given_turned,
            platform(driver=GraphsInOrder), front, CAPTURED,
        )  # fmt: skip


LAYOUTS = tuple(_mutants())
