"""vLLM on piecewise: compiler and graph wrapper for its platforms. See the README."""

from piecewise_vllm.engine import report

__all__ = ["report"]
