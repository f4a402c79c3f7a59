"""A split model whose messages are small and large, on two processes: who sums how."""

from __future__ import annotations

import gc
import json
import logging
import multiprocessing
import traceback
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as functional

import piecewise_core as pw
from piecewise_core.plugins import select
from piecewise_core.testing import SimulatedPlatform
from tests.kit.ranks.shares import HostShares, Noting

WIDTH = 8192
ROWS = (1, 4, 16, 400)
"""All but the last are small enough for symmetric memory, in float32 just so."""


class Split(torch.nn.Module):
    """Two layers, each with its sum."""

    def __init__(self, rank):
        super().__init__()
        made = torch.Generator().manual_seed(rank)
        self.scale = torch.nn.Parameter(torch.rand(2, WIDTH, generator=made))

    def forward(self, x):
        for layer in range(2):
            x = torch.tanh(functional.all_reduce(x * self.scale[layer], "sum", dist.group.WORLD))
        return x


def platform_of(device, fails=""):
    """A platform whose symmetric memory notes what it is asked; the device's own where it has."""
    made = SimulatedPlatform() if device == "cpu" else select("cuda").platform
    memory = HostShares(fails) if device == "cpu" else made.capabilities.symmetric_memory
    noting = Noting(memory)
    made.capabilities = replace(made.capabilities, symmetric_memory=noting)
    return made, noting


def config(device, mode, **changes):
    """CPUs make collectives between graphs, so there they are inside of pieces without graphs."""
    graphs = {"graph_mode": "none"}
    if device != "cpu" and mode != "none":
        graphs = {"graph_mode": mode, "capture_sizes": ROWS}
    dims = {"x": {0: pw.Dim("rows", max=max(ROWS))}}
    compiler = {"compiler": "eager"} if device == "cpu" else {}
    return pw.Config(dynamic=dims, splitting_ops=("torch.tanh",), **graphs, **compiler, **changes)


def case(rank, device, dtype, mode="none", fails="", **changes):
    """What is wrong, the ways that were taken, what explain() says, and what was replayed."""
    model = Split(rank).to(device, dtype).eval()
    platform, noting = platform_of(device, fails if rank == 1 else "")
    fast = pw.compile(model, config(device, mode, **changes), platform)
    wrong, ways = [], {}
    for rows in ROWS:
        for turn in range(4):
            noting.ways.clear()
            x = torch.rand(rows, WIDTH, generator=torch.Generator().manual_seed(100 * rows + turn))
            x = x.to(device, dtype)
            got, want = fast(x), model(x)
            if not torch.allclose(got, want, atol=1e-6 if dtype == torch.float32 else 2e-2):
                apart = float((got - want).abs().max())
                wrong.append(f"{rows} rows, turn {turn}: apart by {apart:.3g}")
            ways.setdefault(rows, sorted(set(noting.ways)))
    (said,) = [r.off for r in fast.explain().rewrites if r.name == "small_all_reduces"]
    return wrong, list(ways.values()), said, fast.stats().calls["replayed"]


CASES = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "piecewise": {"dtype": "float32", "mode": "piecewise"},
    "full": {"dtype": "bfloat16", "mode": "full"},
    "off by name": {"dtype": "float32", "rewrites_off": ("small_all_reduces",)},
    "one without": {"dtype": "float32", "fails": "connect"},
}


def work(rank, meeting, results, device, names):
    """One process: the cases by name, in the order of the other."""
    ready = {}
    if device == "cuda":
        torch.cuda.set_device(rank)
        ready = {"device_id": torch.device(f"cuda:{rank}")}
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo" if device == "cpu" else "nccl",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=2,
        timeout=timedelta(seconds=60),
        **ready,
    )
    found = {}
    with torch.inference_mode():
        for name in names:
            how = dict(CASES[name])
            how["dtype"] = getattr(torch, how["dtype"])
            try:
                found[name] = case(rank, device, **how)
            except Exception:
                found[name] = [traceback.format_exc()[-3000:]], [], "", 0
            gc.collect()
            Path(f"{results}{rank}").write_text(json.dumps(found))
    dist.barrier()
    gc.collect()
    dist.destroy_process_group()


def both(folder, device, names):
    """What two processes found, each, as far as they came."""
    context = multiprocessing.get_context("spawn")
    paths = (f"{folder}/meeting", f"{folder}/results")
    processes = [
        context.Process(target=work, args=(rank, *paths, device, names)) for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        if process.is_alive():
            process.kill()
    return [json.loads(Path(f"{paths[1]}{rank}").read_text()) for rank in range(2)]
