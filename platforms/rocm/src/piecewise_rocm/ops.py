"""What no HIP graph can hold, and what to do about HIP's errors in a capture."""

from __future__ import annotations

from piecewise_core.building_blocks import Advice

__all__ = ["ADVICE", "UNSAFE"]

# pylint: disable=duplicate-code
# As CUDA's list begins: a wheel stands alone, and no list is drawn from another vendor's.
UNSAFE = (
    "aten::item",
    "aten::_local_scalar_dense",
    "aten::is_nonzero",
    "aten::equal",
    "aten::allclose",
    "aten::nonzero",
    "aten::argwhere",
    "aten::masked_select",
    "aten::_unique2",
    "aten::unique_dim",
    "aten::unique_consecutive",
    "aten::bincount",
    "aten::histc",
    "aten::repeat_interleave.Tensor",
    "aten::_linalg_eigh",
    "aten::_linalg_svd",
    "aten::linalg_eig",
    "aten::linalg_lstsq",
    # MIOpen chooses an algorithm by running it, once per shape and process.
    "aten::miopen_rnn",
    "aten::miopen_ctc_loss",
)
"""Operators after which the host waits for a result, whatever their arguments."""

ADVICE: tuple[Advice, ...] = (
    (
        r"HIPBLAS_STATUS_NOT_INITIALIZED|HIPBLAS_STATUS_ALLOC_FAILED|hipblasCreate",
        "hipBLAS or hipBLASLt was first used inside the capture: run the model once at that size "
        "before warmup(), or set TORCH_BLAS_PREFER_HIPBLASLT=0.",
    ),
    (
        r"miopenStatus\w+|MIOpen",
        "MIOpen looks for an algorithm while the piece is captured: run the model once at that "
        "size before warmup(), or add the convolution to splitting_ops.",
    ),
    (
        r"hipErrorStreamCaptureUnsupported|hipErrorStreamCaptureImplicit",
        "The piece makes the host wait for the device, or works on the default stream, while it "
        "is captured: add the op that does it to splitting_ops.",
    ),
    (
        r"hipErrorOutOfMemory|hipErrorGraphExecUpdateFailure",
        "Capture fewer or smaller sizes (capture_sizes), or set memory_limit.",
    ),
)
"""Error texts that only HIP gives; core knows those that it shares with CUDA."""
