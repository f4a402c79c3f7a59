"""Programs of two processes that reduce together, and the ways in which they are served."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import traceback
import warnings
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

import piecewise_core as pw
from piecewise_core.testing import SimulatedPlatform

EXCHANGE = "collective_programs::routed"
ROWS = {"x": {0: pw.Dim("rows", max=8)}}


def summed(x):
    return functional.all_reduce(x * 2, "sum", dist.group.WORLD) + x


def summed_twice(x):
    y = functional.all_reduce(x * 2, "sum", dist.group.WORLD) + x
    return functional.all_reduce(torch.softmax(y, -1), "max", dist.group.WORLD)


def gathered(x):
    return functional.all_gather_tensor(x + 1, 0, dist.group.WORLD) * 2


def scattered(x):
    return functional.reduce_scatter_tensor(x + 1, "sum", 1, dist.group.WORLD) * 2


def coalesced(x):
    a, b = functional.all_reduce_coalesced([x * 2, x + 1], "sum", dist.group.WORLD)
    return a - b.sin()


def exchanged(x):
    return functional.all_to_all_single(x + 1, None, None, dist.group.WORLD) * 2


def waited_late(x):
    y = torch.ops._c10d_functional.all_reduce(x * 2, "sum", dist.group.WORLD.group_name)
    z = torch.softmax(x, -1) + 1
    return torch.ops._c10d_functional.wait_tensor(y) + z


def viewed(x):
    return functional.all_reduce(x * 2, "sum", dist.group.WORLD).view(-1).sin()


def softened(x):
    y = functional.all_reduce(x * 2, "sum", dist.group.WORLD)
    return torch.softmax(y, -1) + x


def in_place(x):
    y = x * 2
    dist.all_reduce(y)
    return y + x


def into_the_argument(x):
    dist.all_reduce(x)
    return x + 1


def broadcast(x):
    y = x * 2
    dist.broadcast(y, 1)
    return y + x


def gathered_into_a_list(x):
    y = x + 1
    parts = [torch.empty_like(y) for _ in range(2)]
    dist.all_gather(parts, y)
    return parts[0] - parts[1] * 2


def exchanged_in_place(x):
    y = x + 1
    out = torch.empty_like(y)
    dist.all_to_all_single(out, y)
    return out * 2


@torch.library.custom_op("collective_programs::routed", mutates_args=())
def routed(x: torch.Tensor) -> torch.Tensor:
    """As many rows to each rank as the values say; what came, and rows of zeros behind it."""
    here = int(x.sum()) % x.shape[0]
    counts = torch.tensor([here, x.shape[0] - here], device=x.device)
    coming = torch.empty_like(counts)
    dist.all_to_all_single(coming, counts)
    out = x.new_empty(int(coming.sum()), x.shape[1])
    # A copy: gloo's own thread lets go of what it was given, and memory of the simulated device's
    # graphs, kept until then, would die in the middle of a replay.
    dist.all_to_all_single(out, x.clone(), coming.tolist(), counts.tolist())
    room = x.new_zeros(2 * x.shape[0], x.shape[1])
    room[: out.shape[0]] = out
    return room


@routed.register_fake
def _(x):
    return x.new_empty(2 * x.shape[0], x.shape[1])


def by_experts(x):
    return routed(x * 2).sin() + x.repeat(2, 1)


def handled(x):
    y = x * 2
    work = dist.all_reduce(y, async_op=True)
    z = torch.softmax(x, -1)
    work.wait()
    return y + z


def two_handles(x):
    y, z = x * 2, x + 1
    works = [dist.all_reduce(t, async_op=True) for t in (y, z)]
    for work in works:
        work.wait()
    return y - z * 3


def by_turns(x):
    y = x * 2
    dist.barrier()
    if dist.get_rank() == 0:
        dist.send(y, 1)
    else:
        dist.recv(y, 0)
    return y + x


FUNCTIONAL = [summed, summed_twice, gathered, scattered, coalesced, exchanged, waited_late, viewed]
IN_PLACE = [
    *(
        in_place,
        into_the_argument,
        broadcast,
        gathered_into_a_list,
        exchanged_in_place,
        handled,
        two_handles,
        by_turns,
    ),
]
SPLITS = {
    "none": (),
    "softmax": ("torch.softmax",),
    "collectives": (
        *("_c10d_functional::all_reduce", "_c10d_functional::all_gather_into_tensor"),
        *("_c10d_functional::reduce_scatter_tensor", "_c10d_functional::all_reduce_coalesced"),
        "_c10d_functional::all_to_all_single",
    ),
}


def platform(device):
    return SimulatedPlatform() if device == "simulated" else device


def config(**changes):
    settings = {"dynamic": ROWS, "capture_sizes": (4,), "capture_max": False, **changes}
    return pw.Config(**settings)


def ways(devices=("simulated", "cpu")):
    """Name -> function, and how it is served."""
    for device in devices:
        for fn in FUNCTIONAL:
            for name, splits in SPLITS.items():
                named = [s for s in splits if used(fn, s)]
                if splits and not named:
                    continue
                yield (
                    f"compiled {fn.__name__} cut at {name} on {device}",
                    fn,
                    lambda fn=fn, named=named, device=device: pw.compile(
                        fn,
                        config(compiler="eager", splitting_ops=tuple(named)),
                        platform(device),
                    ),
                )
        yield (
            f"compiled by_experts cut at their exchange on {device}",
            by_experts,
            lambda device=device: pw.compile(
                by_experts, config(compiler="eager", splitting_ops=(EXCHANGE,)), platform(device)
            ),
        )
        yield (
            f"recorded by_experts cut at their exchange on {device}",
            by_experts,
            lambda device=device: pw.record(
                by_experts, config(splitting_ops=(EXCHANGE,)), platform(device)
            ),
        )
        yield (
            f"compiled summed whole on {device}",
            summed,
            lambda device=device: pw.compile(
                summed, config(compiler="eager", graph_mode="full_and_piecewise"), platform(device)
            ),
        )
        yield (
            f"recorded softened cut at softmax on {device}",
            softened,
            lambda device=device: pw.record(
                softened, config(splitting_ops=("torch.softmax",)), platform(device)
            ),
        )
        for fn in (*FUNCTIONAL, *IN_PLACE):
            yield (
                f"recorded {fn.__name__} on {device}",
                fn,
                lambda fn=fn, device=device: pw.record(fn, config(), platform(device)),
            )


def used(fn, op):
    """Whether a program has an operator, by the names in its code."""
    names = {n.removesuffix("_tensor") for n in fn.__code__.co_names}
    found = op.rpartition("::")[2].rpartition(".")[2].removesuffix("_tensor")
    return found.removesuffix("_into") in names


def outcome(fn, make, rank, device="cpu"):
    """What is wrong with one way of serving ``fn``; whether graphs replayed it."""
    fast = make()
    for turn in range(1, 5):
        x = torch.arange(8.0).view(4, 2) / 8 + turn + 10 * rank
        x = x.to(device)
        own = x.clone()
        want = fn(own)
        got = fast(x)
        if not torch.allclose(got, want) or not torch.equal(x, own):
            return f"turn {turn}: {got.tolist()} for {want.tolist()}", 0
    return "", fast.stats().calls["replayed"]


def work(rank, meeting, results, backend="gloo", devices=("simulated", "cpu")):
    """One process: every way, in the same order as the other."""
    here, ready = "cpu", {}
    if backend == "nccl":
        torch.cuda.set_device(rank)
        here = f"cuda:{rank}"
        # Makes the communicator now: its first collective may be in a capture.
        ready = {"device_id": torch.device(here)}
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        backend,
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=20),
        **ready,
    )
    found = {}
    with torch.inference_mode():
        for name, fn, make in ways(devices):
            try:
                found[name] = outcome(fn, make, rank, here)
            except Exception:
                found[name] = traceback.format_exc()[-2000:], 0
    Path(f"{results}{rank}").write_text(json.dumps(found))
    dist.barrier()
    gc.collect()  # NCCL waits for the graphs that it is in before it lets go of its communicator
    dist.destroy_process_group()


def both(folder, *how):
    """What two processes found, each."""
    context = multiprocessing.get_context("spawn")
    paths = (f"{folder}/meeting", f"{folder}/results")
    processes = [context.Process(target=work, args=(rank, *paths, *how)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        if process.is_alive():
            process.kill()
    return [json.loads(Path(f"{paths[1]}{rank}").read_text()) for rank in range(2)]
