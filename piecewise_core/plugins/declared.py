"""What a platform declares beyond what every one has: asked for once, when it is selected."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from piecewise_core.protocols import BudgetContext, ReplayCall

__all__ = ["Declared", "declared"]


@dataclass(frozen=True)
class Declared:
    """A platform's device and driver, with all that RuntimeExtras and GraphExtras leave open.

    ``by``: who made it, for messages. What it lacks is what those Protocols say core does without;
    None where that is another way altogether. ``operators_only``: whether captures miss kernels
    that do not pass torch's dispatcher. ``noting``: ``noting(compiler, run)``, what has captures
    of such a driver note the code of a compiler that does not tell it.
    """

    by: str
    device_type: str
    device: Any
    graphs: Any
    # RuntimeExtras
    rng: Callable[[], torch.Generator] | None
    empty_cache: Callable[[], None]
    memory_info: Callable[[], tuple[int, int]] | None
    memory_stats: Callable[[], Mapping[str, int]] | None
    fingerprint: Callable[[], Mapping[str, str]]
    elapsed: Callable[[Callable[[], object]], float] | None
    stream_order: Callable[[], Callable[[], None] | None] | None
    # GraphExtras
    runs_captures: bool
    compiler: str
    operators_only: bool
    noting: Callable[[str, Callable[..., Any]], Callable[..., Any]] | None
    replayer: Callable[[Any], Callable[[], None]]
    weak_ref: Callable[[torch.Tensor], torch.Tensor] | None
    register_generator: Callable[[Any, torch.Generator], None] | None
    graph_like: Callable[[Any], Any] | None
    executables: Callable[[Any], int] | None
    wait_stream: Callable[[Any, Any], None] | None
    resource_budget: Callable[[BudgetContext], int | None]
    explain: Callable[[BaseException], str | None]
    unsafe_ops: Callable[[], Iterable[str]]
    capture_context: Callable[[], AbstractContextManager[Any]]
    abort_capture: Callable[[Any], None]
    before_replay: Callable[[Any, ReplayCall], None] | None
    pool_bytes: Callable[[Any], int]
    driver_bytes: Callable[[Any], int]
    live_bytes: Callable[[Any], int]
    stager: Callable[[Sequence[torch.Tensor]], Callable[[Sequence[torch.Tensor]], None] | None]
    stages: bool
    dump: Callable[[Any, Path], None] | None

    def captures(self, compiler: str) -> bool:
        """Whether captures hold what code of ``compiler`` does; it runs as written in them if not.

        Code that leaves torch passes no dispatcher: what it computed once would be replayed.
        """
        if not self.operators_only or self.noting is not None or compiler == "eager":
            return True
        return compiler == self.compiler != "inductor"


def declared(platform: Any) -> Declared:
    """Ask ``platform`` for everything that it may have or lack."""
    device, graphs = platform.device, platform.graphs

    def has(name: str, otherwise: Any = None, part: Any = graphs) -> Any:
        found = getattr(part, name, None)
        return otherwise if found is None else found

    return Declared(
        by=has("by", "the platform", platform),
        device_type=has("device_type", "cpu", platform),
        device=device,
        graphs=graphs,
        rng=has("rng", None, device),
        empty_cache=has("empty_cache", _nothing, device),
        memory_info=has("memory_info", None, device),
        memory_stats=has("memory_stats", None, device),
        fingerprint=has("fingerprint", dict, device),
        elapsed=has("elapsed", None, device),
        stream_order=has("stream_order", None, device),
        runs_captures=has("runs_captures", False),
        compiler=getattr(getattr(platform, "compiler", None), "name", "eager"),
        operators_only=has("operators_only", False),
        noting=has("noting"),
        replayer=has("replayer", lambda graph: partial(graphs.replay, graph)),
        weak_ref=has("weak_ref"),
        register_generator=has("register_generator"),
        graph_like=has("graph_like"),
        executables=has("executables"),
        wait_stream=has("wait_stream"),
        resource_budget=has("resource_budget", _nothing),
        explain=has("explain", _nothing),
        unsafe_ops=has("unsafe_ops", tuple),
        capture_context=has("capture_context", nullcontext),
        abort_capture=has("abort_capture", has("capture_end")),
        before_replay=has("before_replay"),
        pool_bytes=has("pool_bytes", _none_held),
        driver_bytes=has("driver_bytes", _none_held),
        live_bytes=has("live_bytes", _none_held),
        stager=has("stager", _nothing),
        stages=has("stager") is not None,
        dump=has("dump"),
    )


def _nothing(*_: Any) -> None:
    """What is done, and reported, where a platform lacks a method."""


def _none_held(_: Any) -> int:
    return 0
