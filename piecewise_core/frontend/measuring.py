"""Where the time of a replay goes: each piece of each captured size, timed by itself.

Steps run in order, as a call runs them, on what was staged last. A piece that writes to nothing is
repeated, so that what the host takes to launch it does not count. What they write to is put back.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from piecewise_core.capture.captured import CapturedPlan
from piecewise_core.capture.preserved import Preserved
from piecewise_core.capture.timing import seconds_of
from piecewise_core.frontend.facts import PieceTime, Times
from piecewise_core.frontend.form import Form
from piecewise_core.frontend.region import Region
from piecewise_core.frontend.session import Session
from piecewise_core.graph.collectives import is_collective
from piecewise_core.graph.effects import writes
from piecewise_core.graph.names import op_name
from piecewise_core.graph.randomness import draws
from piecewise_core.graph.sizes import valued
from piecewise_core.graph.split import Piece
from piecewise_core.plugins import Declared
from piecewise_core.ranges import Sizes

__all__ = ["measured"]

_ROUNDS, _REPEATS = 5, 10

_COPY = {"cpu": 64 << 20}
"""Bytes of the copy that shows a device's bandwidth: more than its caches hold."""

_LOOK_UPS = ("embedding", "index_select", "gather", "index.Tensor")
"""Operators that read few rows of their first input, or second."""


def measured(session: Session) -> tuple[Times, ...]:
    """The times of every captured size. Waits for calls; makes no call, and no trace of one.

    Results of earlier calls are overwritten, as a call would. Raises CaptureFailed inside a replay.
    """
    memory = session.shared.memory
    if memory is None:
        return ()
    with session.lock:
        memory.callers.refuse_inside("replays would be timed")
        if not memory.callers.may_overwrite():
            return ()
        platform = memory.platform
        sizes = [
            (form, size)
            for form in session.forms
            if form.capturing is not None and not form.model.waits
            for size in form.capturing.plans.captured
        ]
        bandwidth = _bandwidth(platform, session) if sizes else None
        return tuple(_times(session, form, size, platform, bandwidth) for form, size in sizes)


def _times(
    session: Session, form: Form, sizes: Sizes, platform: Declared, bandwidth: float | None
) -> Times:
    region, plan = form.regions.holding(sizes), form.capturing.plans.get(sizes)  # type: ignore[union-attr]
    named = ", ".join(f"{d.name} {s}" for d, s in zip(session.config.dims, sizes, strict=True))
    by = "the host's clock" if platform.elapsed is None else "the device's timer"
    head = (named or "every call", by, bandwidth)
    if region is None or plan is None:
        return Times(*head, why="it has no graphs any more")
    program = region.program
    nodes = [node for piece in program.pieces for node in piece.nodes]
    if any(is_collective(node.target) for node in nodes):
        return Times(*head, why="it holds collectives, which other ranks would have to replay too")
    if session.config.inputs == "static" and program.mutated:
        return Times(*head, why='it writes to inputs that inputs="static" leaves to the caller')
    bound = form.bound()
    written = [bound[place] for place in program.mutated_bound]
    generators = () if platform.rng is None else (platform.rng(),)
    drawn = any(map(draws, nodes))
    kept = Preserved(written, generators, draws=drawn)
    groups, rounds = list(_groups(region, plan)), []
    try:
        with torch.inference_mode(), plan.callers.using():
            for _ in range(_ROUNDS):
                rounds.append([seconds_of(platform, run, again) for _, _, run, again in groups])
                platform.device.synchronize()
                kept.put_back()
    finally:
        platform.device.synchronize()
        kept.put_back()
    found = [statistics.median(each) for each in zip(*rounds, strict=True)]
    return Times(
        *head,
        pieces=tuple(
            _piece(region, (name, piece), sizes, seconds, bandwidth)
            for (name, piece, _, _), seconds in zip(groups, found, strict=True)
        ),
    )


def _groups(
    region: Region, plan: CapturedPlan
) -> Iterator[tuple[str, Piece | None, Callable[[], None], int]]:
    """Each piece with its name, its steps as one, and how often they may run in a row."""
    steps, pieces = list(plan.direct), list(region.program.pieces)
    replays = [id(step) in plan.replays for step in plan.steps]
    if sum(replays) != len(region.program.compilable):
        yield "the whole forward", None, _all(steps), 1
        return
    place = 0
    for piece in pieces:
        begun = place
        if piece.splitting:
            while place < len(steps) and not replays[place]:
                place += 1
        else:
            place += 1
        changes = piece.varies or any(map(writes, piece.nodes))
        if place > begun:
            name = f"piece {piece.index}" + (f", {piece.ops[0]}" if piece.splitting else "")
            yield name, piece, _all(steps[begun:place]), 1 if changes else _REPEATS
    if place < len(steps):
        yield "copies of results", None, _all(steps[place:]), _REPEATS


def _all(steps: Sequence[Callable[[], Any]]) -> Callable[[], None]:
    def run() -> None:
        for step in steps:
            step()

    return run


def _piece(
    region: Region,
    named: tuple[str, Piece | None],
    sizes: Sizes,
    seconds: float,
    bandwidth: float | None,
) -> PieceTime:
    (name, piece), micro = named, round(seconds * 1e6, 2)
    if piece is None or piece.splitting:
        return PieceTime(name, micro)
    moved = _bytes(region, piece, sizes)
    share = None if not (bandwidth and seconds) else round(moved / bandwidth / seconds, 3)
    return PieceTime(name, micro, moved, share)


def _bytes(region: Region, piece: Piece, sizes: Sizes) -> int:
    """What the piece must read and write once, in bytes, at ``sizes``."""
    values = {symbol: sizes[place] for symbol, place in region.program.traced.symbols.items()}
    inside, total = set(piece.nodes), 0
    for node in dict.fromkeys((*piece.inputs, *piece.outputs)):
        value = node.meta.get("example_value")
        used = [user for user in node.users if user in inside]
        if not isinstance(value, torch.Tensor):
            continue
        few = value.is_floating_point() and used and all(_looks_up(u, node) for u in used)
        if node in piece.outputs or not few:
            total += _nbytes(value, values)
    return total


def _looks_up(user: torch.fx.Node, table: torch.fx.Node) -> bool:
    name = op_name(user)
    return any(each in name for each in _LOOK_UPS) and table in user.args[:2]


def _nbytes(value: torch.Tensor, values: dict[Any, int]) -> int:
    count = value.element_size()
    for size, stride in zip(value.shape, value.stride(), strict=True):
        if valued(stride, values):  # else one element stands for all
            count *= int(valued(size, values))
    return count


def _bandwidth(platform: Declared, session: Session) -> float | None:
    """Bytes per second of a plain copy on the device of the model's calls."""
    device = next((t.device for f in session.forms for t in f.structure.tensors), None)
    if device is None or device.type != platform.device_type:
        device = torch.device(platform.device_type)
    nbytes = _COPY.get(device.type, 256 << 20)
    try:
        with torch.inference_mode():
            source, target = (
                torch.zeros(nbytes, dtype=torch.uint8, device=device) for _ in range(2)
            )
            found = [seconds_of(platform, lambda: target.copy_(source), 3) for _ in range(_ROUNDS)]
    except (RuntimeError, torch.OutOfMemoryError):  # no room for it
        return None
    return 2 * nbytes / min(found) if min(found) > 0 else None
