"""What replays keep, and what it costs to put inputs where graphs read them."""

from __future__ import annotations

from typing import Any

import torch
from _gpu_measure import Contender, take_turns
from _place import Place
from _targets import Target, print_table, print_targets
from _toy_case import settings
from toy_decoder import Decoder, inputs

__all__ = ["endurance", "held", "staging"]


def endurance(place: Place) -> dict[str, Any]:
    """Bytes gained over many replays and over rounds of release and restore."""
    replays, rounds = (10, 2) if place.simulated else (1000, 5) if place.quick else (10_000, 20)
    hidden = 64
    model = place.new(lambda: Decoder(2 if place.simulated else 8, hidden))
    module = place.compile(model, **settings((4, 8)))
    given = inputs(8, hidden, place.device, place.dtype)
    with torch.inference_mode():
        module.warmup(*given, progress=False)
        module(*given)
        module.release()
        module.restore()
        found = [held(place)]
        for _ in range(replays):
            module(*given)
        found.append(held(place))
        for _ in range(rounds):
            module.release()
            module.restore()
            module(*given)
        found.append(held(place))
    names = ("live", "reserved", "driver")
    gained = {
        f"over {replays} replays": dict(zip(names, _less(found[1], found[0]), strict=True)),
        f"over {rounds} release/restore": dict(zip(names, _less(found[2], found[1]), strict=True)),
    }
    rows = [(when, *each.values()) for when, each in gained.items()]
    print_table("bytes gained", ("", *names), rows)
    live = [each["live"] for each in gained.values()]
    targets = [
        Target(f"live bytes gained over {replays} replays", live[0], 0, "bytes"),
        Target(f"live bytes gained over {rounds} release/restore", live[1], 0, "bytes"),
    ]
    return {"gained": gained, "targets": print_targets(targets, simulated=place.simulated)}


def staging(place: Place) -> dict[str, Any]:
    """Eight inputs of a decode step, of mixed dtypes, by one launch against eight copies."""
    rows = 4 if place.simulated else 64
    shapes: list[tuple[tuple[int, ...], torch.dtype]] = [
        ((rows,), torch.int64),
        ((rows,), torch.int64),
        ((rows, 2048), torch.bfloat16),
        ((rows, 512), torch.bool),
        ((rows,), torch.float32),
        ((rows, 32), torch.int32),
        ((rows, 8), torch.float16),
        ((rows,), torch.uint8),
    ]
    buffers = [torch.zeros(shape, dtype=dtype, device=place.device) for shape, dtype in shapes]
    given = [torch.ones(shape, dtype=dtype, device=place.device) for shape, dtype in shapes]
    make = getattr(place.platform.graphs, "stager", None)
    stager = make(buffers) if make is not None else None
    if stager is None:
        return {"skipped": "this platform stages inputs one by one"}

    def copies() -> None:
        for buffer, tensor in zip(buffers, given, strict=True):
            buffer.copy_(tensor)

    def by_dtype() -> None:
        for buffer, tensor in zip(buffers, given, strict=True):
            torch._foreach_copy_([buffer], [tensor])

    with torch.inference_mode():
        stager(given)
        place.synchronize()
        right = all(map(torch.equal, buffers, given))
    contenders = [
        Contender("stager", lambda: stager(given)),
        Contender("8 copy_", copies),
        Contender("8 _foreach_copy_, one per dtype", by_dtype),
    ]
    times = take_turns(contenders, place, repeats=10 * place.repeats)
    table = [(n, t.host, t.wall) for n, t in times.items()]
    print_table("8 inputs of mixed dtypes; us", ("", "host", "wall"), table)
    launches = None if place.simulated else _launches(lambda: stager(given))
    targets = [
        Target(
            "host of the stager over 8 copy_", times["stager"].host / times["8 copy_"].host, 0.6
        ),
        Target("kernels launched for 8 inputs", launches, 1, ""),
    ]
    return {
        "microseconds": {n: {"host": t.host, "wall": t.wall} for n, t in times.items()},
        "copied_right": right,
        "launches": launches,
        "targets": print_targets(targets, simulated=place.simulated),
    }


def held(place: Place) -> tuple[int, int, int]:
    """Live and reserved bytes of torch, and what the driver has given out besides."""
    place.synchronize()
    if place.simulated:
        return 0, 0, 0
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    reserved = torch.cuda.memory_reserved()
    return torch.cuda.memory_allocated(), reserved, total - free - reserved


def _less(now: tuple[int, ...], before: tuple[int, ...]) -> list[int]:
    return [a - b for a, b in zip(now, before, strict=True)]


def _launches(call: Any) -> int | None:
    """Device activities of one call; None where the profiler sees nothing."""
    from torch.profiler import ProfilerActivity, profile

    try:
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            call()
            torch.cuda.synchronize()
        count = sum(1 for e in seen.events() if e.device_type == torch.autograd.DeviceType.CUDA)
    except RuntimeError:
        return None
    return count or None
