"""Code for a device that is not the first of its kind is neither kept nor looked up."""

from __future__ import annotations

import pytest

from piecewise_core.compile.maker import _refuse_index
from piecewise_core.errors import StoreError
from piecewise_core.graph.canonical import Form


@pytest.mark.parametrize("devices", [(), ("cuda:0",), ("cuda:0", "xpu:0")])
def test_first_devices_and_those_without_an_index_are_kept(devices):
    _refuse_index(Form("text", devices))


@pytest.mark.parametrize("devices", [("cuda:1",), ("cuda:0", "cuda:10")])
def test_other_indices_are_not_and_the_reason_says_what_to_do(devices):
    with pytest.raises(StoreError, match=r"cuda:10?.*CUDA_VISIBLE_DEVICES"):
        _refuse_index(Form("text", devices))
