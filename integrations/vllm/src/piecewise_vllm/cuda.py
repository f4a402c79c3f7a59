"""vLLM's CUDA platform with piecewise's compiler and graph wrapper."""

from vllm.platforms.cuda import CudaPlatform

from piecewise_vllm.platform import Extended

__all__ = ["PiecewiseCuda"]


class PiecewiseCuda(Extended, CudaPlatform):  # type: ignore[misc]
    """As CudaPlatform; pieces are compiled once per range and captured by piecewise's driver."""

    @classmethod
    def get_static_graph_wrapper_cls(cls) -> str:
        return "piecewise_vllm.wrapper.PiecewiseGraphWrapper"
