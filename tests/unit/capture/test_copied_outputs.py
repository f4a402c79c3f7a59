"""Copies of results: apart from what they copy, and joined as it was."""

from __future__ import annotations

import pytest
import torch

from piecewise_core.capture.copied_outputs import copier

BASE = torch.arange(24.0).reshape(4, 6)

CASES = {
    "one": lambda x: (x,),
    "two that are apart": lambda x: (x, x + 1),
    "a view of another": lambda x: (x, x.view(-1)),
    "a part of another": lambda x: (x[1:], x, 3),
    "gaps": lambda x: (x[:, ::2],),
    "repeats": lambda x: (x[:1].expand(5, 6),),
    "transposed": lambda x: (x.T,),
    "bytes of another": lambda x: (x, x.view(torch.int32)),
    "conjugate": lambda x: (torch.complex(x, x).conj(),),
    "a view that is conjugate": lambda x: (c := torch.complex(x, x), c.conj()),
    "negative": lambda x: (torch.complex(x, x).conj().imag,),
    "empty": lambda x: (x[:0], x[:, :0]),
    "no tensor": lambda x: (None, 7),
}


@pytest.mark.parametrize("case", CASES)
def test_copies_are_equal_lie_alike_and_share_with_each_other_what_was_shared(case):
    outs = CASES[case](BASE.clone())
    copied = copier(outs)(outs)
    for out, again in zip(outs, copied, strict=True):
        if not isinstance(out, torch.Tensor):
            assert again == out
            continue
        assert torch.equal(out, again)
        assert out.numel() == 0 or out.data_ptr() != again.data_ptr()
        assert out.stride() == again.stride()
    tensors = [o for o in outs if isinstance(o, torch.Tensor)]
    again = [o for o in copied if isinstance(o, torch.Tensor)]
    if len(tensors) == 2 and tensors[0].numel() and "repeats" not in case:
        for both in (tensors, again):
            both[0].fill_(9.0)
        assert torch.equal(tensors[1], again[1])


def test_beginnings_of_results_are_copied_as_the_whole_ones_are():
    whole = BASE.clone()
    copies = copier((whole, whole.view(2, 12)))
    first, second = copies((whole[:2], whole.view(2, 12)[:1]))
    first.zero_()
    assert torch.equal(second, torch.zeros(1, 12))
    assert torch.equal(whole, BASE)
