"""Results that lie in the memory of earlier ones, which somebody may still hold."""

from __future__ import annotations

import torch

from piecewise_core.runtime.handedback import HandedBack


def _nothing() -> list[torch.Tensor]:
    return []


def test_a_result_in_memory_that_is_still_held_is_named():
    handed, x = HandedBack(), torch.ones(4)
    assert handed.again({"a": x}, _nothing) is None
    assert handed.again({"a": torch.ones(4), "b": x[1:]}, _nothing) == "b"


def test_memory_that_was_let_go_of_may_be_used_again():
    handed, memory = HandedBack(), bytearray(16)
    x = torch.frombuffer(memory, dtype=torch.float32)
    handed.again({"a": x}, _nothing)
    del x
    assert handed.again({"a": torch.frombuffer(memory, dtype=torch.float32)}, _nothing) is None


def test_only_what_may_lie_there_is_excused_and_it_is_asked_for_only_then():
    handed, x, asked = HandedBack(), torch.ones(4), []

    def allowed():
        asked.append(1)
        return [x[:1], None, "text"]

    assert handed.again({"a": x}, allowed) is None
    assert handed.again({"a": torch.ones(4)}, allowed) is None
    assert not asked
    handed.again({"a": x}, allowed)
    assert handed.again({"a": x.view(2, 2)}, allowed) is None
    assert asked
    y = torch.ones(4)
    handed.again({"a": y}, allowed)
    assert handed.again({"a": x, "b": y}, allowed) == "b"
