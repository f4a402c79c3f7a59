"""What is in force around an operator when it is captured, and when its step runs."""

from __future__ import annotations

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from piecewise_core.capture.ambient import Ambient


def attention():
    """Which kernels attention may use."""
    return (
        torch.backends.cuda.flash_sdp_enabled(),
        torch.backends.cuda.mem_efficient_sdp_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.cudnn_sdp_enabled(),
    )


def test_where_nothing_is_in_force_nothing_is_put_around():
    assert Ambient("cuda").inside() is None


def test_autocast_is_in_force_again():
    ambient = Ambient("cuda")
    with torch.autocast("cpu", torch.bfloat16):
        around = ambient.inside()
    dtype = around(lambda x: (x @ x).dtype)
    assert dtype(torch.ones(2, 2)) is torch.bfloat16
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_that_is_off_inside_of_autocast_is_off():
    ambient = Ambient("cpu")
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        assert ambient.inside() is None


def test_attention_has_the_kernels_it_had():
    before, ambient = attention(), Ambient("cpu")
    with sdpa_kernel([SDPBackend.MATH]):
        around = ambient.inside()
    assert around(attention)() == (False, False, True, False)
    assert attention() == before


def test_what_is_in_force_outside_already_is_not_put_around():
    with sdpa_kernel([SDPBackend.MATH]):
        assert Ambient("cpu").inside() is None
