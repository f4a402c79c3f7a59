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
        # In-place forms are refused in recordings on a device, and run as written.
        functional = {n: calls for n, (_, calls) in found.items() if not _in_place(n)}
        assert all(calls == 4 for calls in functional.values()), functional


def _in_place(name: str) -> bool:
    from tests.integration.collective_programs import IN_PLACE

    return any(f"recorded {fn.__name__} " in name for fn in IN_PLACE)


def test_symmetric_memory_sums_small_messages_right(tmp_path):
    """In one shot and by NCCL; captured in pieces and whole, and not captured."""
    from tests.integration.sum_programs import both

    names = ("float32", "bfloat16", "piecewise", "full", "off by name")
    one, library = ["one-shot"], []
    for each in both(str(tmp_path), "cuda", names):
        assert not {name: wrong for name, (wrong, *_) in each.items() if wrong}
        off = {name: said for name, (_, _, said, _) in each.items() if name != "off by name"}
        if any(off.values()):
            pytest.skip(f"these GPUs share no memory: {off}")
        assert each["float32"][1] == [one, one, one, library]
        assert each["bfloat16"][1] == [one, one, one, library]
        assert each["off by name"][1] == [library] * 4
        for mode in ("piecewise", "full"):
            # A capture is tried at the smallest size as well.
            for way, ways in zip((one, one, one), each[mode][1], strict=False):
                assert set(way) <= set(ways)
            assert each[mode][3] >= 12
