"""Inductor as the CUDA platform uses it: Triton kernels, graphs left to piecewise."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import torch

from piecewise_core.building_blocks import InductorCompiler, foreign, is_archive
from piecewise_core.errors import CompilerUnavailable
from piecewise_core.protocols import CompiledGraph
from piecewise_cuda.parcel import pack, unpack
from piecewise_cuda.triton_files import collect, put_back
from piecewise_cuda.triton_private import cache_directories, hash_beside

if TYPE_CHECKING:
    from piecewise_core.config import Config

__all__ = ["CudaInductor"]

_SETTINGS = {
    # Two layers of graphs would capture each other.
    "triton.cudagraphs": False,
    "graph_partition": False,
}


class CudaInductor(InductorCompiler):
    """Inductor for the current CUDA device.

    A piece on disk brings the files of Triton's cache that its process rested on when the bytes
    were asked for, so that the next process needs no C compiler to start.
    """

    def __init__(self) -> None:
        super().__init__(prepare=require_triton, settings=_SETTINGS)
        self._hashing: Thread | None = None

    def compile(
        self,
        graph: torch.fx.GraphModule,
        example_inputs: Sequence[Any],
        *,
        key: str,
        config: Config,
    ) -> CompiledGraph:
        """Compile ``graph`` for the ranges of the inputs' symbols."""
        return _with_files(super().compile(graph, example_inputs, key=key, config=config), {})

    def load(self, handle: bytes) -> CompiledGraph:
        """Load what a handle gave, and put the files that it brought where Triton looks."""
        piece, files = unpack(handle)
        # First: loading a piece may start Triton's driver, which looks for its library.
        put_back(files)
        if self._hashing is not None:
            self._hashing.join()  # else it would be done twice
        return _with_files(super().load(piece), files)

    def hash_factors(self) -> Mapping[str, str]:
        """Inductor's own, and the device that kernels are made for.

        Asked for before code is loaded: what that waits for is begun.
        """
        self._hashing = self._hashing or hash_beside()
        major, minor = torch.cuda.get_device_capability()
        return {
            **super().hash_factors(),
            "cuda": str(torch.version.cuda),
            "device": torch.cuda.get_device_name(),
            "capability": f"{major}.{minor}",
        }


def _with_files(made: CompiledGraph, brought: Mapping[str, bytes]) -> CompiledGraph:
    if made.handle is None:
        return made
    return replace(made, handle=partial(_parcel, made.handle, brought))


def _parcel(handle: Callable[[], bytes], brought: Mapping[str, bytes]) -> bytes:
    """The piece with the files as they are now: a bundle is saved after sizes were captured."""
    piece = handle()
    if is_archive(piece):  # of a CPU, which needs no Triton
        return piece
    files = {**brought, **collect()}
    return pack(piece, files) if files else piece


def require_triton() -> None:
    """Raise CompilerUnavailable unless Triton is installed and its cache this user's alone."""
    if importlib.util.find_spec("triton") is None:
        raise CompilerUnavailable(
            "Inductor needs Triton for CUDA and it is not installed; pip install triton in the "
            'version that this torch asks for, or set compiler="eager"'
        )
    for directory in filter(Path.exists, cache_directories()):
        others = foreign(directory, group=False)  # Triton makes it group-writable for some
        if others is not None:
            raise CompilerUnavailable(
                f"Triton loads what it builds from its cache, and {others}; set TRITON_CACHE_DIR "
                "to a directory of your own"
            )
