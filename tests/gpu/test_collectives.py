"""Two GPUs that reduce together through NCCL: right at every call, in pieces, cut at, recorded."""

from __future__ import annotations

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.device_count() < 2 or not torch.distributed.is_nccl_available(),
        reason="needs two GPUs and NCCL",
    ),
]


def test_collectives_of_two_gpus_are_right_at_every_call(tmp_path):
    from tests.integration.collective_programs import both

    for found in both(str(tmp_path), "nccl", ("cuda",)):
        assert not {name: wrong for name, (wrong, _) in found.items() if wrong}
        assert all(calls == 4 for name, (_, calls) in found.items() if "by_turns" not in name)
