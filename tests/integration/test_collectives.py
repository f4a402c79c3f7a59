"""Two processes that reduce together: what they get is right at every call, and replayed."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="needs gloo",
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Name of a way -> what is wrong and how many calls were replayed, per process."""
    from tests.integration.collective_programs import both

    return both(str(tmp_path_factory.mktemp("collectives")))


def names():
    if not torch.distributed.is_available():
        return []
    from tests.integration import collective_programs

    return [name for name, _, _ in collective_programs.ways()]


@pytest.mark.parametrize("name", names())
def test_a_collective_is_right_at_every_call_and_replayed(found, name):
    for wrong, replayed in (each[name] for each in found):
        assert not wrong, wrong
        assert replayed == (0 if "by_turns" in name else 4)


def test_small_messages_go_by_shared_memory_where_all_ranks_have_it(tmp_path):
    from tests.integration.sum_programs import both

    for each in both(str(tmp_path), "cpu", ("float32", "off by name", "one without")):
        assert not [wrong for wrong, *_ in each.values() if wrong]
        _, ways, said, _ = each["float32"]
        assert (ways, said) == ([["one-shot"]] * 3 + [[]], "")
        assert each["off by name"][1:3] == [[[]] * 4, "rewrites_off"]
        assert each["one without"][1] == [[]] * 4
        assert "rank 1: RuntimeError: connect failed" in each["one without"][2]
