"""Models split over two processes, by hand, by torch and by transformers: right, and replayed."""

from __future__ import annotations

import importlib.util

import pytest
import torch

pytestmark = [
    pytest.mark.skipif(
        not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
        reason="needs gloo",
    ),
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None, reason="needs transformers"
    ),
]


# A trace over tensors that torch shares out takes many seconds: whole or cut, not both.
TRIED = {
    "not at all": ("compiled", "recorded", "at the door"),
    "by hand": ("compiled", "compiled and cut", "recorded", "at the door"),
    "by parallelize_module": ("compiled", "recorded", "at the door"),
    "by tp_plan": ("compiled and cut", "recorded", "at the door"),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Name of a model and a way -> what is wrong and how many calls were replayed, per process."""
    from tests.integration.split_models import both

    return both(str(tmp_path_factory.mktemp("split")), TRIED)


@pytest.mark.parametrize(
    ("split", "way"), [(split, way) for split, ways in TRIED.items() for way in ways]
)
def test_a_split_model_is_right_at_every_call_and_replayed(found, split, way):
    for wrong, replayed in (each[f"{split}, {way}"] for each in found):
        assert not wrong, wrong
        # The first call of a size looks a table of words up as no later one does.
        expected = {"at the door": 0, "recorded": 2 if split == "by tp_plan" else 4}
        assert replayed == expected.get(way, 4)
