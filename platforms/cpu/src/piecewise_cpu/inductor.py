"""Inductor, whose pieces tell captures what kernels they call."""

from __future__ import annotations

import functools
import io
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from piecewise_core.building_blocks import InductorCompiler, is_archive
from piecewise_core.protocols import CompiledGraph
from piecewise_cpu.driver import CpuGraphDriver
from piecewise_cpu.linear import library_function
from piecewise_cpu.native import Native

if TYPE_CHECKING:
    from piecewise_core.config import Config

__all__ = ["CpuInductor"]


class CpuInductor(InductorCompiler):
    """Inductor for the CPU. ``driver``: whose captures are told. ``native``: code of our own."""

    def __init__(
        self,
        driver: CpuGraphDriver,
        prepare: Callable[[], Mapping[str, Any] | None],
        native: Native,
    ) -> None:
        super().__init__(prepare=prepare)
        self._driver = driver
        self._native = native

    def compile(
        self,
        graph: torch.fx.GraphModule,
        example_inputs: Sequence[Any],
        *,
        key: str,
        config: Config,
    ) -> CompiledGraph:
        """Compile ``graph`` for the ranges of the inputs' symbols."""
        made = super().compile(graph, example_inputs, key=key, config=config)
        handle = made.handle
        if handle is not None:
            made = replace(made, handle=lambda: self._with_native(handle()))
        return self._announcing(made)

    def load(self, handle: bytes) -> CompiledGraph:
        """Load what a handle gave."""
        if is_archive(handle):
            with zipfile.ZipFile(io.BytesIO(handle)) as archive:
                members = {n: functools.partial(archive.read, n) for n in archive.namelist()}
                self._native.bring(members)
        return self._announcing(super().load(handle))

    def library(self, chosen: str, name: str) -> Any:
        """Products of the library that the piece was made for, else torch's."""
        return library_function(chosen, name, self._native)

    def _with_native(self, handle: bytes) -> bytes:
        """``handle`` of native code, with our own beside Inductor's kernels."""
        native = self._native.take_along()
        if not native or not is_archive(handle):
            return handle
        buffer = io.BytesIO(handle)
        with zipfile.ZipFile(buffer, "a") as archive:
            # Its date is no clock's, so that equal code gives equal bytes.
            archive.writestr(zipfile.ZipInfo(self._native.name), native, zipfile.ZIP_DEFLATED, 1)
        return buffer.getvalue()

    def _announcing(self, made: CompiledGraph) -> CompiledGraph:
        run, driver = made.run, self._driver

        def piece(*args: Any) -> Sequence[Any]:
            recording = driver.recording
            found: Sequence[Any] = run(*args) if recording is None else recording.piece(run, args)
            return found

        return CompiledGraph(piece, made.handle)
