"""Weights are compared byte for byte, by two threads where there are many bytes."""

from __future__ import annotations

import pytest
import torch

from piecewise_core.runtime import frozen
from piecewise_core.runtime.frozen import Copies, can_be_frozen


@pytest.fixture(params=["alone", "helped"])
def threads(request, monkeypatch):
    before = torch.get_num_threads()
    if request.param == "helped":
        monkeypatch.setattr(frozen, "_LARGE", 8)
        torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def weights():
    return [torch.arange(n, dtype=torch.float32).reshape(-1, 4) for n in (400, 64, 16, 4)]


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("at", [0, -1])
def test_one_bit_of_any_weight_is_seen(place, at):
    given = weights()
    copies = Copies(range(4))
    assert not copies.are(given)  # nothing was taken yet
    copies.take(given)
    assert copies.are(given)
    given[place].view(torch.int32).view(-1)[at] ^= 1
    assert not copies.are(given)
    given[place].view(torch.int32).view(-1)[at] ^= 1
    assert copies.are(given)


@pytest.mark.usefixtures("threads")
def test_what_was_taken_stays_and_other_tensors_of_the_same_bytes_will_do():
    given = weights()
    copies = Copies((1, 2))
    copies.take(given)
    kept = copies.values[1].clone()
    given[1].zero_()
    assert torch.equal(copies.values[1], kept)
    given[1] = kept.clone()
    given[0].zero_()  # not among them
    assert copies.are(given)
    given[2] = given[2].reshape(2, 8)
    assert not copies.are(given)


def test_not_a_number_is_itself_and_zeros_of_either_sign_are_two():
    given = [torch.tensor([[torch.nan, 0.0]])]
    copies = Copies((0,))
    copies.take(given)
    assert copies.are(given)
    given[0][0, 1] = -0.0
    assert not copies.are(given)


@pytest.mark.parametrize(
    ("tensor", "can"),
    [
        (torch.ones(3, 4), True),
        (torch.ones(()), True),
        (torch.ones(0, 4), True),
        (torch.ones(3, 4).t(), False),
        (torch.ones(3, 4)[:, ::2], False),
        (torch.ones(1).expand(4), False),
        (torch.ones(3, device="meta"), False),
        (torch.ones(3, dtype=torch.complex64).conj(), False),
        (torch.eye(3).to_sparse(), False),
    ],
)
def test_dense_tensors_of_the_host_can_be_built_in(tensor, can):
    assert can_be_frozen(tensor) is can
