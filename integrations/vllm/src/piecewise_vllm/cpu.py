"""vLLM's CPU platform with piecewise's compiler."""

from vllm.platforms.cpu import CpuPlatform

from piecewise_vllm.platform import Extended

__all__ = ["PiecewiseCpuPlatform"]


class PiecewiseCpuPlatform(Extended, CpuPlatform):  # type: ignore[misc]
    """As CpuPlatform; models are cut at attention, and pieces compiled once per range."""

    @classmethod
    def get_pass_manager_cls(cls) -> str:
        return "piecewise_vllm.passes.UserPasses"
