"""Memory that is shared, written or kept without leave; operators that do not tell."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn
from torch.library import custom_op

from silent.base import CUT, SIZE, Call, Mutant, Program, calls, platform, random, rows
from silent.parts import Compiler, Driver, floats

__all__ = ["MEMORY"]

CAPTURED = {"capture_sizes": (SIZE,), "capture_max": False}


class WritesToInputs(Compiler):
    """Works in its inputs' memory."""

    def change(self, run, args, kept):
        outs = run(*args)
        for a in args:
            if isinstance(a, torch.Tensor) and a.dim() == 2 and a.is_floating_point():
                a.mul_(2)
        return outs


class KeepsResults(Compiler):
    """Returns the same memory at every call, as runtimes with outputs of their own do."""

    def change(self, run, args, kept):
        def own(place, out):
            mine = kept.setdefault((place, out.shape), torch.empty_like(out))
            return mine.copy_(out)

        return [own(place, out) for place, out in enumerate(run(*args))]


class ScratchInWeights(Compiler):
    """Plans its memory over that of weights that it has read for the last time."""

    def change(self, run, args, kept):
        outs = run(*args)
        for a in args:
            if isinstance(a, torch.Tensor) and tuple(a.shape) == (8, 8):
                a.mul_(1.5)
        return outs


class WritesToCopies(Compiler):
    """Writes to copies of what it is to write to."""

    def change(self, run, args, kept):
        return run(*(a.clone() if isinstance(a, torch.Tensor) else a for a in args))


class RoundsInHalf(Compiler):
    """Keeps results in half precision on the way."""

    def change(self, run, args, kept):
        return floats(run(*args), lambda o: o.to(torch.float8_e4m3fn).to(o.dtype))


class FlushesSmall(Compiler):
    """Takes what is small for nothing."""

    def change(self, run, args, kept):
        return floats(run(*args), lambda o: torch.where(o.abs() < 0.02, 0, o))


class SwapsOutputs(Compiler):
    """Returns results of one shape in another order."""

    def change(self, run, args, kept):
        outs = list(run(*args))
        same = len(outs) > 1 and outs[0].shape == outs[1].shape
        return [outs[1], outs[0], *outs[2:]] if same else outs


class WrongAtOne(Compiler):
    """Takes one row for something to broadcast."""

    def change(self, run, args, kept):
        return floats(run(*args), lambda o: o * 2 if o.dim() and o.shape[0] == 1 else o)


class WrongAtTheEnd(Compiler):
    """Leaves the last row of an uneven number out."""

    def change(self, run, args, kept):
        def cut(out):
            uneven = out.dim() == 2 and out.shape[0] % 2 == 1
            return torch.cat([out[:-1], torch.zeros_like(out[-1:])]) if uneven else out

        return floats(run(*args), cut)


class DropsLast(Driver):
    def alter(self, graph, operations):
        graph.recording.steps.remove(operations[-1])


class ReplaysOnce(Driver):
    """A second replay that does nothing."""

    def replay(self, graph):
        if not getattr(graph, "replayed", False):
            super().replay(graph)
        graph.replayed = True

    def replayer(self, graph):
        return lambda: self.replay(graph)


class KeepsInputs(Driver):
    """Reads what the capture was given."""

    def alter(self, graph, operations):
        for operation in operations:
            self.keep(operation, lambda frozen: frozen._owner is not None)


class KeepsNeighbours(Driver):
    """Reads what other graphs wrote when it was captured."""

    def alter(self, graph, operations):
        own = {block.address for step in operations for block in step.results.values()}
        for operation in operations:
            self.keep(operation, lambda f: f._owner is None and f.address not in own)


@custom_op("silent::untold_write", mutates_args=())
def untold_write(x: torch.Tensor) -> torch.Tensor:
    """Writes to its argument, and does not tell."""
    result = x * 2
    x.add_(1)
    return result


@custom_op("silent::longer", mutates_args=())
def longer(x: torch.Tensor) -> torch.Tensor:
    return torch.cat([x, x])


@custom_op("silent::wider", mutates_args=())
def wider(x: torch.Tensor) -> torch.Tensor:
    return x.double()


for lies in (untold_write, longer, wider):
    lies.register_fake(torch.empty_like)


def chained(dtype=torch.float32):
    def model(x):
        y = torch.softmax(x * 2, -1)
        return torch.softmax(y + x.sin(), -1) * 3, (y - 1).cos()

    return lambda: Program(model, calls(4, 4, 7, 1, dtype=dtype))


def kept_results(dtype):
    def model(x):
        return {"y": torch.softmax(x, -1) * 2}

    return lambda: Program(model, calls(4, 4, 4, dtype=dtype), keeps=True)


def weighed():
    weights = random(8, 8, seed=3)

    def model(x):
        return torch.softmax(x @ weights, -1) @ weights

    return Program(model, calls(4, 4, 6))


class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.zeros(8))

    def forward(self, x):
        self.total += x.sum(0)
        return torch.softmax(x, -1) + self.total


def counted():
    return Program(Counts(), calls(4, 4, 4))


def into_the_argument():
    def model(x, into):
        into.add_(x.sin())
        return torch.softmax(into, -1)

    return Program(
        model,
        [Call(rows(seed=i), rows(seed=i + 5)) for i in range(3)],
        dynamic={},
    )


def longer_than_told(x):
    y = torch.ops.silent.longer(x.sin())
    return torch.softmax(y, -1) * y.shape[0]


def wider_than_told(x):
    y = torch.ops.silent.wider(x.sin())
    return torch.softmax(y, -1) * (3 if y.dtype is torch.float64 else 2)


def written_untold(x):
    y = x.sin()
    z = torch.ops.silent.untold_write(y)
    return torch.softmax(z, -1) + y


class ReadsEarly(Compiler):
    """Computes what nothing writes to in between where it is first known."""

    def compile(self, graph, example_inputs, *, key, config):
        nodes = list(graph.graph.nodes)
        lying = [n for n in nodes if "untold_write" in str(n.target)]
        for node in lying:
            with graph.graph.inserting_before(node):
                early = graph.graph.call_function(torch.clone, (node.args[0],))
            for user in list(node.args[0].users):
                if user not in (node, early):
                    user.replace_input_with(node.args[0], early)
        graph.recompile()
        return super().compile(graph, example_inputs, key=key, config=config)


def _mutants():
    kind = "memory and numbers"
    for what, program, part, settings in (
        ("code writes to its inputs", chained(), WritesToInputs, CUT),
        ("code writes to its inputs, captured", chained(), WritesToInputs, {**CUT, **CAPTURED}),
        ("a buffer's write goes to a copy", counted, WritesToCopies, CUT),
        ("an argument's write goes to a copy", into_the_argument, WritesToCopies, CUT),
        ("results of few bits", chained(), RoundsInHalf, CUT),
        ("small numbers are nothing, float64", chained(torch.float64), FlushesSmall, CUT),
        ("results change places", chained(), SwapsOutputs, CUT),
        ("one row is broadcast", chained(), WrongAtOne, CUT),
        ("the last row of an uneven number", chained(torch.float64), WrongAtTheEnd, CUT),
    ):
        yield Mutant(kind, what, program, platform(compiler=part), settings=settings)
    for what, dtype, settings in (
        ("results of every call in the same memory", torch.float32, {}),
        ("results of every call in the same memory, cut, bfloat16", torch.bfloat16, CUT),
    ):
        yield Mutant(
            kind, what, kept_results(dtype), platform(compiler=KeepsResults), settings=settings,
            late=True,
        )  # fmt: skip
    for name, settings in (("", CUT), (", captured", {**CUT, **CAPTURED})):
        yield Mutant(
            kind, f"weights are scratch{name}", weighed, platform(compiler=ScratchInWeights),
            settings=settings,
        )  # fmt: skip
    kind = "replays"
    for front in ("compile", "record"):
        for what, program, part in (
            ("the last operator is lost", chained(), DropsLast),
            ("a second one does nothing", chained(torch.float64), ReplaysOnce),
            ("inputs are those of the capture", chained(), KeepsInputs),
            ("what other graphs wrote is old", chained(torch.float16), KeepsNeighbours),
            ("a buffer's write happens once", counted, ReplaysOnce),
        ):
            yield Mutant(
                kind, f"{what}, {front.rstrip('e')}ed", program, platform(driver=part), front,
                {**CUT, **CAPTURED},
            )  # fmt: skip
    yield Mutant(
        kind, "the last operator is lost, in one graph", chained(), platform(driver=DropsLast),
        settings={**CAPTURED, "graph_mode": "full"},
    )  # fmt: skip
    kind = "operators that lie"
    for what, model, op in (
        ("a longer result", longer_than_told, "silent::longer"),
        ("a wider result", wider_than_told, "silent::wider"),
    ):
        program = partial(Program, model, calls(4, 4, 6))
        yield Mutant(kind, f"{what}, cut at it", program, settings={"splitting_ops": (op,)})
        yield Mutant(kind, what, program)
        yield Mutant(kind, f"{what}, captured", program, settings=CAPTURED)
    program = partial(Program, written_untold, calls(4, 4, 6))
    for name, settings in (("", {}), (", captured", CAPTURED), (", cut", CUT)):
        what = f"a write that is not declared{name}"
        yield Mutant(kind, what, program, platform(compiler=ReadsEarly), settings=settings)


MEMORY = tuple(_mutants())
