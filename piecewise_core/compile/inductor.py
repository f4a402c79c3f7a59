"""Inductor as a piece compiler, through ``torch._inductor.standalone_compile``.

On a CPU a piece is kept as its generated function and built kernels (ADR 10); elsewhere as the
artifact that torch itself saves, with the kernels' binaries in it, and with how they were tuned.
"""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.compiler.config

from piecewise_core.compile import tuned
from piecewise_core.compile.constants import take_out
from piecewise_core.compile.empty_means import nothing_is_nan
from piecewise_core.compile.generated import around, native_code
from piecewise_core.compile.inductor_factors import inductor_factors
from piecewise_core.compile.lowering import is_lowered, lower
from piecewise_core.compile.native_code import from_bytes, is_archive, to_bytes, torchs_own
from piecewise_core.compile.native_piece import NativePiece
from piecewise_core.compile.own_results import keep_copies
from piecewise_core.compile.private_caches import private_caches
from piecewise_core.compile.wrapper_source import NotPortable
from piecewise_core.errors import CompilerUnavailable
from piecewise_core.ownership import foreign
from piecewise_core.protocols import CompiledGraph
from piecewise_core.torch_compat import dynamo, inductor
from piecewise_core.torch_compat.fakes import TracingContext

if TYPE_CHECKING:
    from piecewise_core.config import Config

__all__ = ["InductorCompiler"]

logger = logging.getLogger(__name__)

_SETTINGS: Mapping[str, Any] = {
    # Core checks inputs before a piece runs, and operators' outputs once per target.
    "size_asserts": False,
    "alignment_asserts": False,
}


class InductorCompiler:
    """Compiles pieces with Inductor.

    ``prepare``: called before the first compilation; raises CompilerUnavailable when the
    compiler's tools are missing, and returns further settings for this machine. ``settings``:
    Inductor configuration, by its own names.
    """

    name = "inductor"

    def __init__(
        self,
        prepare: Callable[[], Mapping[str, Any] | None] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self._prepare = prepare
        self._settings: dict[str, Any] = {**_SETTINGS, **(settings or {})}
        # What ``prepare`` found out is no factor: it comes with the first compilation, and keys
        # are wanted before.
        self._answers: Mapping[str, Any] = {}

    def compile(
        self,
        graph: torch.fx.GraphModule,
        example_inputs: Sequence[Any],
        *,
        key: str,
        config: Config,
    ) -> CompiledGraph:
        """Compile ``graph`` for the ranges of the inputs' symbols."""
        self.get_ready()
        _refuse_foreign_cache()
        # Inductor's own caches know a symbol by its name, not by its range, an operator by its
        # name, not by its schema, and some switches not at all: without a tag, code for [1, 8]
        # would be handed out for [33, 64].
        tag = f"{torch.compiler.config.cache_key_tag}piecewise:{key}"
        with torch.compiler.config.patch(cache_key_tag=tag):  # type: ignore[attr-defined]
            with dynamo.oblivious_sizes():
                lowered = lower(graph, example_inputs)
            held = take_out(lowered) if is_lowered(lowered) else []
            example_inputs = [*example_inputs, *map(_like, held)]
            if nothing_is_nan(lowered.graph) | keep_copies(lowered.graph):
                lowered.recompile()
            settings = {**self._settings, **self._answers}

            def build(**ways: Any) -> Any:
                return inductor.standalone_compile(
                    lowered,
                    list(example_inputs),
                    dynamic_shapes="from_tracing_context",
                    options={"config_patches": settings},
                    **ways,
                )

            chosen = str(lowered.meta.get("library", ""))

            def made() -> CompiledGraph:
                native = None if _on_gpu(example_inputs) else _native(build, self.library, chosen)
                if native is None:
                    with inductor.kernels_loaded() as kernels:
                        artifact: Any = build()
                    native = CompiledGraph(artifact, lambda: tuned.pack(_dump(artifact), kernels))
                return native

            compiled = _for_all_sizes(made)
        return _given(compiled, held) if held else compiled

    def load(self, handle: bytes) -> CompiledGraph:
        """Load what a handle gave, in any process of this machine with this torch."""
        if is_archive(handle):
            code = from_bytes(handle)
            call = code.call(functools.partial(self.library, code.chosen))
            return CompiledGraph(NativePiece(call, around(code)), lambda: handle)
        with tempfile.TemporaryDirectory(prefix="piecewise-") as folder:
            path = Path(folder) / "artifact"
            chosen, artifact = tuned.unpack(handle)
            path.write_bytes(artifact)
            # With more threads it starts processes to compile in, though nothing is compiled.
            threads = inductor.inductor_config().patch(compile_threads=1)
            with private_caches(), threads, inductor.kernels_loaded() as kernels:
                loaded = inductor.artifact_class().load(path=str(path), format="binary")
            tuned.choose(kernels, chosen)
            return CompiledGraph(loaded, lambda: tuned.pack(artifact, kernels, chosen))

    def hash_factors(self) -> Mapping[str, str]:
        """Torch, the settings, and the threads kernels are made for."""
        return inductor_factors(self._settings)

    def library(self, chosen: str, name: str) -> Any:
        """The function that compiled code on a CPU calls as ``extern_kernels.NAME``.

        ``chosen``: what a rewrite put into the lowered graph's ``meta["library"]``, or nothing.
        """
        return torchs_own(name)

    def get_ready(self) -> None:
        """Make the compiler's one-time checks now rather than in the first compilation."""
        if self._prepare is not None:
            self._answers = self._prepare() or {}
            self._prepare = None


def _refuse_foreign_cache() -> None:
    """Raise CompilerUnavailable where others can put code into what Inductor loads from."""
    others = foreign(inductor.cache_dir(), group=False)  # torch makes it group-writable for some
    if others is not None:
        raise CompilerUnavailable(
            f"Inductor loads what it builds from its cache, and {others}; set "
            "TORCHINDUCTOR_CACHE_DIR to a directory of your own"
        )


def _on_gpu(inputs: Sequence[Any]) -> bool:
    return any(isinstance(i, torch.Tensor) and i.device.type != "cpu" for i in inputs)


def _native(
    build: Callable[..., Any], library: Callable[[str, str], Any], chosen: str
) -> CompiledGraph | None:
    """The piece as native code; None where torch cannot say what it consists of."""
    try:
        artifact = build(aot=True)
    except RuntimeError as error:
        # All that it says where the piece holds something that torch's caches cannot.
        if "should have serialize method" not in str(error):
            raise
        return None
    try:
        code, call = native_code(artifact)
        code = replace(code, chosen=chosen)
        if any(library(chosen, name) is not torchs_own(name) for name in code.library):
            call = code.call(functools.partial(library, chosen))
        run = NativePiece(call, around(code))
    except NotPortable as error:
        return CompiledGraph(artifact, functools.partial(_not_portable, str(error)))
    except (AttributeError, ImportError, KeyError, TypeError) as error:
        # A torch whose private parts are others: its code runs all the same, in its wrappers.
        why = f"this torch keeps its code in another form ({type(error).__name__}: {error})"
        logger.warning("compiled pieces are not kept: %s", why)
        return CompiledGraph(artifact, functools.partial(_not_portable, why))
    return CompiledGraph(run, functools.partial(to_bytes, code))


def _given(made: CompiledGraph, held: Sequence[torch.Tensor]) -> CompiledGraph:
    """What was compiled, with ``held`` passed on as its last inputs."""
    run = made.run
    why = "an operator in it makes a tensor of Python data"
    return CompiledGraph(lambda *args: run(*args, *held), functools.partial(_not_portable, why))


def _for_all_sizes(made: Callable[[], CompiledGraph]) -> CompiledGraph:
    """What ``made()`` compiles, without guards on sizes if that can be done.

    Inductor gives up where it may ask nothing and cannot prove that ``rows // 2`` is at most
    ``rows``. With guards, core reads for which sizes the code holds.
    """
    try:
        with dynamo.oblivious_sizes():
            return made()
    except CompilerUnavailable:
        raise
    except Exception as error:
        logger.debug("compiled with guards on sizes, since without them: %s", error)
        try:
            return made()
        except Exception:
            raise error from None


def _like(value: torch.Tensor) -> torch.Tensor:
    """A fake tensor like ``value`` in the mode of the compilation."""
    mode = TracingContext.get().fake_mode
    if mode is None:
        return value
    with mode, torch.inference_mode(False), torch.no_grad():
        return torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device=value.device
        )


def _not_portable(why: str) -> bytes:
    raise NotPortable(why)


def _dump(artifact: Any) -> bytes:
    with tempfile.TemporaryDirectory(prefix="piecewise-") as folder:
        path = Path(folder) / "artifact"
        artifact.save(path=str(path), format="binary")
        return path.read_bytes()
