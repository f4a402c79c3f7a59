"""What core and a platform hand each other: small frozen values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from piecewise_core.protocols.symmetric import SymmetricMemory
    from piecewise_core.ranges import Box

__all__ = [
    "BudgetContext",
    "Capabilities",
    "CompiledGraph",
    "Probe",
    "ReplayCall",
]


@dataclass(frozen=True)
class Probe:
    """Whether a platform can work on this machine, found without initialising its device.

    ``available``: usable now. ``reason``: one sentence for `piecewise doctor`, in either case.
    ``facts``: short name -> value pairs worth showing (driver version, instruction set).
    """

    available: bool
    reason: str
    facts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Capabilities:
    """What a platform declares about itself; core reads every field.

    ``alignment``: bytes at which compiled code expects the data of tensor inputs to start, a
    power of two; an input that starts elsewhere is copied and counted as restrided. 1 accepts
    any address.

    ``symmetric_memory``: what sums small messages of several devices faster than the library that
    torch.distributed uses. None: that library sums all of them. Since API 1.1.
    """

    alignment: int = 1
    symmetric_memory: SymmetricMemory | None = None


@dataclass(frozen=True)
class BudgetContext:
    """What is about to be captured: asked before warm-up captures anything.

    ``graphs_per_size``: static graphs that one size needs. ``sizes``: the capture sizes, largest
    first, in rows per dim. ``captured``: graphs of this model that exist already.
    """

    graphs_per_size: int
    sizes: tuple[tuple[int, ...], ...]
    captured: int


@dataclass(frozen=True)
class ReplayCall:
    """One call that graphs are about to be replayed for.

    ``captured``: the sizes that the graphs were captured for. ``sizes``: the call's own, smaller
    where it is padded. ``inputs``: its tensors, in the order of its signature; borrowed, so a
    driver keeps none of them beyond the call. ``host``: what the caller gave with
    ``building_blocks.host_values(name=value)``, by name; empty where it gave nothing. Since API
    1.1.
    """

    captured: tuple[int, ...]
    sizes: tuple[int, ...]
    inputs: Sequence[torch.Tensor]
    host: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class CompiledGraph:
    """What a compiler returns for one piece.

    ``run``: takes the piece's inputs positionally, in the order of its placeholders, and returns
    its outputs as a tuple or list, tensors that the caller owns from then on. It is called from
    any thread, one at a time, on the current stream, under ``torch.inference_mode()``, and inside
    captures; a call must not wait for the device.

    ``handle``: a callable without arguments that returns the code as bytes, for
    ``CompilerAdaptor.load`` in another process of a like machine; None when the code cannot be
    persisted. Core calls it at most once, soon after ``compile``, and only when it wants the bytes.
    They should hold no absolute path and nothing of this process. When it raises, the piece is
    used as it is and named as not persisted.

    ``serves``: the sizes that the code holds for, where it is not all that were asked for: a Box of
    one whole Range per size among ``example_inputs``, in their order. The piece runs as written
    at other sizes. None: all but those that break a guard. Since API 1.1.

    ``freeze``: makes a ``run`` for the same inputs with the values of some built in, where that is
    faster: ``freeze({place: tensor})``, from places among the inputs to what they hold. The
    tensors are copies that core owns and nobody writes to; they may be kept. ``freezes``: the
    places that it wants. Core asks it for those that are weights, which it never does for what
    goes into ``handle``: weights are in no store. It runs the code only while the weights hold the
    bytes that were built in. None: every input is read at every call. Since API 1.1.
    """

    run: Callable[..., Sequence[Any]]
    handle: Callable[[], bytes] | None = None
    serves: Box | None = None
    freezes: Sequence[int] = ()
    freeze: Callable[[Mapping[int, torch.Tensor]], Callable[..., Sequence[Any]]] | None = None
