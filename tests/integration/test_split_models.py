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


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Name of a model and a way -> what is wrong and how many calls were replayed, per process."""
    from tests.integration.split_models import both

    return both(str(tmp_path_factory.mktemp("split")))


@pytest.mark.parametrize("way", ["compiled", "compiled and cut", "recorded", "at the door"])
@pytest.mark.parametrize("split", ["not at all", "by hand", "by parallelize_module", "by tp_plan"])
def test_a_split_model_is_right_at_every_call_and_replayed(found, split, way):
    for wrong, replayed in (each[f"{split}, {way}"] for each in found):
        assert not wrong, wrong
        # The first call of a size looks a table of words up as no later one does.
        expected = {"at the door": 0, "recorded": 2 if split == "by tp_plan" else 4}
        assert replayed == expected.get(way, 4)
