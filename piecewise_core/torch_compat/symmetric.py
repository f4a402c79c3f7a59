"""torch's symmetric memory on CUDA: one-shot and two-shot sums over NVLink or PCIe.

Read in torch 2.11 to 2.13: ``CUDASymmetricMemory.cu`` and ``CUDASymmetricMemoryOps.cu`` under
``torch/csrc/distributed/c10d/symm_mem``. Absent where torch is built without it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch

from piecewise_core.torch_compat.lookup import optional

__all__ = ["TorchSymmetricMemory", "torch_symmetric_memory"]

_NO_MULTICAST = "TORCH_SYMM_MEM_DISABLE_MULTICAST"


class TorchSymmetricMemory:
    """A ``piecewise_core.protocols.SymmetricMemory``.

    Shares are blocks of their own, not torch's workspace of a group: that one is shared by all who
    use the group, on whatever stream, and outlives the group.
    """

    def allocate(self, nbytes: int) -> torch.Tensor:
        """As in the Protocol; at the start of its block, which the kernels take for granted."""
        from torch._C._distributed_c10d import _SymmetricMemory

        device = torch.device("cuda", torch.cuda.current_device())
        found: torch.Tensor = _SymmetricMemory.empty_strided_p2p(
            (nbytes,), (1,), torch.uint8, device
        )
        return found

    def connect(self, memory: torch.Tensor, group_name: str) -> None:
        """As in the Protocol.

        torch keeps the interpreter's lock while it waits for the others, so a process whose peers
        never come stands still: call this right behind a meeting of all.
        """
        import torch.distributed._symmetric_memory as symmetric

        with _without_multicast():
            symmetric.rendezvous(memory, group_name)  # type: ignore[arg-type]

    def total(
        self, memory: torch.Tensor, x: torch.Tensor, group_name: str, *, one_shot: bool
    ) -> torch.Tensor:
        """As in the Protocol. One kernel; two-shot: copies before and behind it."""
        share = memory[: x.numel() * x.element_size()].view(x.dtype).view(x.shape)
        ops = torch.ops.symm_mem
        made: torch.Tensor
        if one_shot:
            made = ops.one_shot_all_reduce_copy(share, x, "sum", group_name)
            return made
        share.copy_(x)
        ops.two_shot_all_reduce_(share, "sum", group_name)
        return share.clone()

    def takes(self, dtype: Any, nbytes: int) -> bool:
        """As in the Protocol: the kernels have these two dtypes, and read 4 bytes or more."""
        return dtype in (torch.float32, torch.bfloat16) and nbytes % 4 == 0


def torch_symmetric_memory() -> TorchSymmetricMemory | None:
    """Symmetric memory of CUDA devices by torch; None where this torch has none."""
    names = ("one_shot_all_reduce_copy", "two_shot_all_reduce_")
    has = optional("_C._distributed_c10d._SymmetricMemory.empty_strided_p2p") is not None
    if not has or not all(hasattr(torch.ops.symm_mem, name) for name in names):
        return None
    return TorchSymmetricMemory()


@contextlib.contextmanager
def _without_multicast() -> Iterator[None]:
    """Keep torch from setting NVLink multicast up: a program that ends badly may lock GPUs by it.

    It asks for the variable at each rendezvous.
    """
    before = os.environ.get(_NO_MULTICAST)
    os.environ[_NO_MULTICAST] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[_NO_MULTICAST]
        else:
            os.environ[_NO_MULTICAST] = before
