"""Operators that work on each example of a batch by itself, on all of it."""

from __future__ import annotations

from piecewise_core.graph.padding.calls import Call
from piecewise_core.graph.padding.extents import Axes, axes_of
from piecewise_core.graph.padding.rule import Rule, fixed, fixed_tensors, known

__all__ = ["RULES"]

_NEIGHBOURS = "has each element see its neighbours"


def _batched(dims: int | None) -> Rule:
    """Dim 0 is the batch where the input has ``dims`` dims; None: where it has as many as the
    second tensor, its weight.
    """

    def apply(call: Call) -> list[Axes]:
        value, *others = call.tensors
        axes = known(value)
        fixed_tensors(others, "has weights that vary")
        has_batch = value.dims == (others[0].dims if dims is None else dims)
        fixed(axes[1:] if has_batch else axes, _NEIGHBOURS)
        lead = axes[:1] if has_batch else ()
        return [(*lead, *axes_of(shape[len(lead) :])) for shape in call.results]

    return Rule(apply)


RULES = {
    **dict.fromkeys(
        (
            *("conv1d", "conv2d", "conv3d", "convolution", "_convolution", "mkldnn_convolution"),
            *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "cudnn_convolution"),
            *("thnn_conv2d", "conv_depthwise3d"),
        ),
        _batched(None),
    ),
    **{
        f"{name}{spatial}d": _batched(spatial + 2)
        for spatial in (1, 2, 3)
        for name in (
            *("max_pool", "avg_pool", "adaptive_avg_pool", "_adaptive_avg_pool"),
            *("adaptive_max_pool", "reflection_pad", "replication_pad", "upsample_nearest"),
            *("_upsample_nearest_exact",),
        )
    },
    **{f"max_pool{n}d_with_indices": _batched(n + 2) for n in (1, 2, 3)},
    "upsample_linear1d": _batched(3),
    **dict.fromkeys(("upsample_bilinear2d", "_upsample_bilinear2d_aa"), _batched(4)),
    **dict.fromkeys(("upsample_bicubic2d", "_upsample_bicubic2d_aa"), _batched(4)),
    "upsample_trilinear3d": _batched(5),
    **dict.fromkeys(("pixel_shuffle", "pixel_unshuffle", "im2col"), _batched(4)),
}
