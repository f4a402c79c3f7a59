"""A transformer block on several devices: ``torchrun --nproc-per-node 2 tensor_parallel.py``.

With GPUs each process has one, and they reduce through NCCL; without, through gloo on the CPU.
"""

from __future__ import annotations

import gc

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

import piecewise_core as pw

WIDTH, HEADS = 64, 8


class Block(torch.nn.Module):
    """Attention and an MLP, as anybody writes them for one device."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.out = torch.nn.Linear(WIDTH, WIDTH)
        self.up = torch.nn.Linear(WIDTH, 4 * WIDTH)
        self.down = torch.nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x``: [rows, WIDTH], the same on every rank, as is the result."""
        size = WIDTH // HEADS
        q, k, v = (
            made(x).view(1, x.shape[0], -1, size).transpose(1, 2)
            for made in (self.q, self.k, self.v)
        )
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape[0], -1))
        return x + self.down(torch.relu(self.up(x)))


def main() -> None:
    """Serve the block on every rank."""
    gpus = torch.cuda.is_available()
    dist.init_process_group("nccl" if gpus else "gloo")
    rank, world = dist.get_rank(), dist.get_world_size()
    device = f"cuda:{rank % torch.cuda.device_count()}" if gpus else "cpu"
    if gpus:
        torch.cuda.set_device(device)
    torch.manual_seed(0)  # the same weights on every rank, before they are split
    model = Block().eval().to(device)
    plan = {name: ColwiseParallel() for name in ("q", "k", "v", "up")}
    plan |= {name: RowwiseParallel() for name in ("out", "down")}
    parallelize_module(model, init_device_mesh("cuda" if gpus else "cpu", (world,)), plan)

    fast = pw.compile(
        model,
        pw.Config(
            dynamic={"x": {0: pw.Dim("rows", max=64)}},
            splitting_ops=("torch.nn.functional.scaled_dot_product_attention",),
            capture_sizes=(1, 8),
        ),
    )
    worst = 0.0
    with torch.no_grad():
        fast.warmup(torch.rand(8, WIDTH, device=device), progress=False)
        for rows in (1, 8, 8, 64, 5):
            x = torch.rand(rows, WIDTH, generator=torch.Generator().manual_seed(rows)).to(device)
            worst = max(worst, float((fast(x) - model(x)).abs().max()))
    calls = fast.stats().calls
    print(
        f"rank {rank} of {world}: {calls['replayed']} calls replayed, {calls['compiled_range']} by "
        f"ranges, apart from eager by {worst:.0e}",
        flush=True,
    )
    del fast  # a group is not destroyed while graphs live that its collectives are in
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
